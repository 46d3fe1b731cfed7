#!/usr/bin/env bash
# Everything on generated clips: install, generate, build, train, evaluate, predict.
# Takes about 15 minutes on two cores. All output goes to demo/, and existing output is reused: after
# an interruption, run it again to resume.
# CONFIG chooses another recipe of configs/ (default s4_ama), SEED another seed. MS3 and AVSS start
# from the S4 demo of the same model and seed, which runs first if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

recipe=${CONFIG:-s4_ama}
config=configs/$recipe.py:demo
seed=${SEED:-0}
workdir=demo/$recipe-seed$seed
setting=${recipe%%_*} # s4, ms3 or avss
case $setting in
  s4) dataset=avsbench_s4 clips=demo/clips ;;
  ms3) dataset=avsbench_ms3 clips=demo/clips_ms3 ;;
  avss) dataset=avsbench_semantic clips=demo/clips_avss ;;
  *) echo "CONFIG=$recipe: no demo; its name starts with none of s4, ms3, avss" >&2; exit 1 ;;
esac
python=.venv/bin/python

step() { printf '\n== %s\n' "$*"; }

start=()
if [ "$setting" != s4 ]; then
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
$python scripts/build_dataset.py --dataset="$dataset" --manual_dir="$clips" --data_dir=demo/tfds
step "3/4 training, then the best checkpoint on val and test, with own and with false sounds: $workdir"
$python -m avs_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir" "${start[@]}"
step "4/4 prediction on a video with sound"
video=$(find "$clips" -path '*raw_videos*' -name 'test*.mp4' | sort | head -n 1)
if [ -z "$video" ]; then
  echo "skipped: the clips of $setting are frames, not videos"
else
  $python -m avs_jax.predict --config="$config" --checkpoint="$workdir" --video="$video" \
    --output="$workdir/prediction"
fi

step "done"
echo "numbers   $workdir/evaluation (report.md, report.json, counts.npz)"
echo "figures   $workdir/evaluation (per clip: frames, truth, prediction, motion, sound)"
[ -z "$video" ] || echo "overlay   $workdir/prediction/overlay.mp4, masks in $workdir/prediction/masks"
