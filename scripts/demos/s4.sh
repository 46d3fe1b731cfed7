# AVSBench S4: one object sounds; in half of the clips a silent one moves just as much.
dataset=avsbench_s4
clips=demo/clips
clip_flags=(--setting=s4)
if [[ $recipe == *_sync ]]; then # synchrony reads motion at the videos' own rate
  records=demo/tfds_tracks
  build_flags=(--track_dir=demo/tracks)
  prepare() {
    $python -m avs_jax.flow --dataset=s4 --root="$clips" --output=demo/tracks --source=track --model=lucas_kanade
  }
fi
