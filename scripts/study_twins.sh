#!/usr/bin/env bash
# Does motion find the one of two look-alikes that sounds, and does synchrony? Five models x five seeds
# on generated clips in which only the sounding twin moves (still), and in which both do (moving).
# All output goes to demo/study_twins, and existing output is reused: after an interruption, run it
# again to resume. Flags are passed on to scripts/ablate.py: --seeds=0,1 --config.train.steps=800
# Tables of each kind: table.md under the clips' own sound and motion, table_late.md with the sound
# half a second late, table_scrambled_track.md with the motion track in a random order.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

python=$venv/bin/python
models=(
  --variant="vct --config=configs/s4_vct.py:demo"
  --variant="ama --config=configs/s4_ama.py:demo"
  --variant="ama_both --config=configs/s4_ama.py:demo --config.model.fusion.at=both"
)
with_synchrony=(
  --variant="sync --config=configs/s4_sync.py:demo"
  --variant="ama_sync --config=configs/s4_ama_sync.py:demo"
)
common=(
  --measure=look_alikes/right_source
  --measure=stream/mIoU
  --config.data.track.window_seconds=5
  --config.evaluate.audio=late
  --config.evaluate.motion=scrambled
  --config.evaluate.swapped_audio=False
  --config.train.final_splits="('test',)"
)

for kind in still moving; do
  root=demo/study_twins/$kind
  printf '\n== %s: clips, motion tracks, records\n' "$kind"
  $python scripts/make_clips.py --setting=twins --kind="$kind" --output="$root/clips"
  $python -m avs_jax.flow --dataset=s4 --root="$root/clips" --output="$root/tracks" --source=track \
    --model=lucas_kanade
  $python scripts/build_dataset.py --dataset=avsbench_s4 --manual_dir="$root/clips" \
    --track_dir="$root/tracks" --data_dir="$root/tfds"
  compare=($python scripts/ablate.py --output="$root/runs" "${common[@]}"
    --config.data.data_dir="$root/tfds")
  printf '\n== %s: training and tables\n' "$kind"
  "${compare[@]}" "${models[@]}" "${with_synchrony[@]}" "$@"
  "${compare[@]}" "${models[@]}" "${with_synchrony[@]}" "$@" --train=no --condition=late
  "${compare[@]}" "${with_synchrony[@]}" "$@" --train=no --condition=scrambled_track
done
