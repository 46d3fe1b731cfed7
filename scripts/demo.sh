#!/usr/bin/env bash
# Everything on generated clips: install, generate, build, train, evaluate, predict.
# Takes 15 to 20 minutes on two cores. All output goes to demo/, and existing output is reused: after
# an interruption, run it again to resume.
# CONFIG chooses another recipe of configs/ (default s4_ama), SEED another seed. What the recipes of a
# kind need is in scripts/demos/KIND.sh, where KIND is the recipe's name up to its first "_".
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
  echo "$*: this script takes no arguments; CONFIG=ms3_ama $0 chooses another recipe" >&2
  exit 1
fi

recipe=${CONFIG:-s4_ama}
seed=${SEED:-0}
config=configs/$recipe.py:demo
workdir=demo/$recipe-seed$seed
records=demo/tfds
kind=scripts/demos/${recipe%%_*}.sh
if [ ! -f "$kind" ] || [ ! -f "configs/$recipe.py" ]; then
  kinds=$(basename -s .sh scripts/demos/*.sh | xargs)
  echo "CONFIG=$recipe: no demo; a recipe of configs/ whose name starts with one of: $kinds" >&2
  exit 1
fi
source scripts/environment.sh
python=$venv/bin/python

step() { printf '\n== %s\n' "$*"; }
is_stopped() { # a training that is asked to stop ends well, but is not over
  echo "$1: stopped before its end; run this again to resume" >&2
  exit 1
}

# ---- what a file of scripts/demos/ sets or redefines ----
# dataset     of build_dataset.py
# clips       folder of the generated clips
# records     folder of the records, if another than above
# clip_flags  of make_clips.py
# build_flags further flags of build_dataset.py
# starts_from another recipe, whose demo of the same seed runs first
# start_keys  keys of the configuration that name its run
build_flags=()
starts_from=
start_keys=(train.init_from)
prepare() { :; } # between clips and records
first_stage() { :; } # between records and training; may change the array `start`, flags of main.py
questions() { :; } # flags of predict for the video $1, one per line
check() { :; } # after the prediction
# the last step: a prediction on the first video of the test split
answer() {
  local video flags=() flag
  video=$(find "$clips" -path '*videos*' -name 'test*.mp4' | sort | sed -n 1p)
  if [ -z "$video" ]; then
    echo "skipped: these clips are frames, not videos"
    return
  fi
  while IFS= read -r flag; do flags+=("$flag"); done < <(questions "$video")
  $python -m avs_jax.predict --checkpoint="$workdir" --video="$video" \
    ${flags[@]+"${flags[@]}"} --output="$workdir/prediction"
}
source "$kind"

start=()
if [ -n "$starts_from" ]; then
  source_run=demo/$starts_from-seed$seed
  if [ ! -d "$source_run/evaluation" ]; then
    step "first the demo that this one starts from: $source_run"
    CONFIG=$starts_from SEED=$seed scripts/demo.sh
  fi
  for key in "${start_keys[@]}"; do start+=("--config.$key=$source_run"); done
fi

step "1/4 generated clips: $clips"
$python scripts/make_clips.py --output="$clips" "${clip_flags[@]}"
step "2/4 records: $records"
prepare
$python scripts/build_dataset.py --dataset="$dataset" --manual_dir="$clips" --data_dir="$records" \
  ${build_flags[@]+"${build_flags[@]}"}
first_stage
step "3/4 training, then the best checkpoint on val and test, with own and with false inputs: $workdir"
$python -m avs_jax.main --config="$config" --config.seed="$seed" --config.data.data_dir="$records" \
  --workdir="$workdir" ${start[@]+"${start[@]}"}
[ -d "$workdir/evaluation" ] || is_stopped "$workdir"
step "4/4 prediction on data the model has not seen"
answer
check

step "done"
echo "numbers     $workdir/evaluation (report.md, report.json, counts.npz)"
echo "figures     $workdir/evaluation (pictures/, report.html)"
[ ! -d "$workdir/prediction" ] || echo "prediction  $workdir/prediction: $(ls "$workdir/prediction" | xargs)"
