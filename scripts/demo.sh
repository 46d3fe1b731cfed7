#!/usr/bin/env bash
# The whole job on generated clips: install, generate, build, train, evaluate, predict. About 15 minutes on two cores.
# Everything goes to demo/; what is already there is reused. CONFIG chooses another recipe (default s4_ama).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

config=configs/${CONFIG:-s4_ama}.py:demo
workdir=demo/${CONFIG:-s4_ama}
python=.venv/bin/python

$python scripts/make_clips.py --output=demo/clips
$python scripts/build_dataset.py --dataset=avsbench_s4 --manual_dir=demo/clips --data_dir=demo/tfds
$python -m avs_jax.main --config="$config" --workdir="$workdir"
$python -m avs_jax.main --config="$config" --workdir="$workdir" --mode=eval
