#!/usr/bin/env bash
# Everything on generated clips: install, generate, build, train, evaluate, predict.
# Takes about 15 minutes on two cores. All output goes to demo/, and existing output is reused: after
# an interruption, run it again to resume.
# CONFIG chooses another recipe of configs/ (default s4_ama), SEED another seed. MS3 and AVSS start
# from the S4 demo of the same model and seed, which runs first if it is missing. CONFIG=ground_generated
# grounds queries in time.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

recipe=${CONFIG:-s4_ama}
config=configs/$recipe.py:demo
seed=${SEED:-0}
workdir=demo/$recipe-seed$seed
setting=${recipe%%_*} # s4, ms3, avss or ground
case $setting in
  s4) dataset=avsbench_s4 clips=demo/clips ;;
  ms3) dataset=avsbench_ms3 clips=demo/clips_ms3 ;;
  avss) dataset=avsbench_semantic clips=demo/clips_avss ;;
  ground) setting=moments dataset=own_moments clips=demo/clips_moments ;;
  *) echo "CONFIG=$recipe: no demo; its name starts with none of s4, ms3, avss, ground" >&2; exit 1 ;;
esac
python=.venv/bin/python

step() { printf '\n== %s\n' "$*"; }

start=()
if [ "$setting" = ms3 ] || [ "$setting" = avss ]; then
  source=s4_${recipe#*_}
  if [ ! -d "demo/$source-seed$seed/evaluation" ]; then
    step "first the S4 demo that this one starts from: demo/$source-seed$seed"
    CONFIG=$source SEED=$seed scripts/demo.sh
  fi
  start+=(--config.train.init_from="demo/$source-seed$seed")
fi

step "1/4 generated clips: $clips"
$python scripts/make_clips.py --setting="$setting" --output="$clips"
step "2/4 records: demo/tfds"
if [ "$setting" = moments ]; then
  $python scripts/extract_features.py --config="$config" --folder="$clips"
fi
$python scripts/build_dataset.py --dataset="$dataset" --manual_dir="$clips" --data_dir=demo/tfds
step "3/4 training, then the best checkpoint on val and test, with own and with false inputs: $workdir"
$python -m avs_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir" "${start[@]}"
step "4/4 prediction on a video with sound"
video=$(find "$clips" -path '*videos*' -name 'test*.mp4' | sort | head -n 1)
queries=()
if [ "$setting" = moments ]; then
  vid=$(basename "$video" .mp4)
  while IFS= read -r query; do queries+=(--text="$query"); done < <(
    sed -n "s/.*\"query\": \"\([^\"]*\)\".*\"vid\": \"$vid\".*/\1/p" "$clips/moments_test.jsonl"
  )
fi
if [ -z "$video" ]; then
  echo "skipped: the clips of $setting are frames, not videos"
else
  $python -m avs_jax.predict --config="$config" --checkpoint="$workdir" --video="$video" \
    "${queries[@]}" --output="$workdir/prediction"
fi

step "done"
echo "numbers   $workdir/evaluation (report.md, report.json, counts.npz)"
echo "figures   $workdir/evaluation (pictures/, report.html)"
[ -z "$video" ] || echo "video     $workdir/prediction: $(ls "$workdir/prediction" | xargs)"
