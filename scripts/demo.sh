#!/usr/bin/env bash
# The whole job on generated clips: install, generate, build, train, evaluate, predict.
# About a quarter of an hour on two cores. Everything goes to demo/, and what is there is reused:
# run it again after an interruption and it goes on where it stopped.
# CONFIG chooses another recipe of configs/ (default s4_ama), SEED another seed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

recipe=${CONFIG:-s4_ama}
config=configs/$recipe.py:demo
seed=${SEED:-0}
workdir=demo/$recipe-seed$seed
python=.venv/bin/python

step() { printf '\n== %s\n' "$*"; }

step "1/5 generated clips: demo/clips"
$python scripts/make_clips.py --output=demo/clips
step "2/5 records: demo/tfds"
$python scripts/build_dataset.py --dataset=avsbench_s4 --manual_dir=demo/clips --data_dir=demo/tfds
step "3/5 training: $workdir"
$python -m avs_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir"
step "4/5 evaluation on the test split, with the clips' own sound and with false ones"
$python -m avs_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir" --mode=eval
step "5/5 prediction on a video with sound"
video=$(find demo/clips/s4_data/raw_videos/test -name '*.mp4' | sort | head -n 1)
$python -m avs_jax.predict --config="$config" --checkpoint="$workdir" --video="$video" \
  --output="$workdir/prediction"

step "done"
echo "numbers   $workdir/evaluation (report.md, report.json, counts.npz)"
echo "pictures  $workdir/evaluation (clips in a row: picture, truth, prediction, motion, sound)"
echo "overlay   $workdir/prediction/overlay.mp4, masks in $workdir/prediction/masks"
