#!/usr/bin/env bash
# What does cross-modal attention (CMA) add to referring segmentation, and does the alignment of words
# and objects (InfoNCE) help it? On generated clips, each five times, with statistics:
#   no_cma     the recipe refer_cma without its CMA: words enter the decoder and the localizer
#   one_token  CMA into the mask features, with one key, the mean of the words: every cell receives
#              the same vector
#   tokens     the same with a key per word
#   levels     the same into all four maps
# and NAME_plain, the same without the alignment. All of them keep the localizer. CMA has neither its
# null key nor the localizer's gate: either lets a single key differ from cell to cell.
# So each differs from the one before in one thing, and no_cma is what the others are compared with.
# Every run has the demo's last stage, masks, after its stages of words, which all runs share: trained
# once, seed 0, from the S4 demo (./scripts/demo.sh; trained first if it is missing). The first of
# these learns with the alignment, so NAME_plain lacks it only while masks are learned.
# All output goes to demo/study_refer/, and existing output is reused: after an interruption, run it
# again to resume. Flags are passed on to scripts/ablate.py: --seeds=0,1, or --train=no
# --baseline=tokens to compare with tokens instead. Tables: demo/study_refer/runs/table.md
# On two cores, the stages of words take 18 minutes and 40 runs of 9 minutes six hours, without the
# evaluations.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh "" # without the empty word it would read the flags of this script

python=$venv/bin/python
root=demo/study_refer
recipe=refer_cma
seed=0 # of the stages of words
config=configs/$recipe.py:demo
workdir=$root/words-seed$seed
step() { printf '\n== %s\n' "$*"; }
is_stopped() {
  echo "$1: stopped before its end; run this again to resume" >&2
  exit 1
}
source scripts/demos/refer.sh # the demo's data and stages of words
clips=$root/clips records=$root/tfds

start_run=demo/$starts_from-seed$seed
if [ ! -d "$start_run/evaluation" ]; then
  step "first the demo from which all start: $start_run"
  CONFIG=$starts_from SEED=$seed scripts/demo.sh
fi
step "clips and records"
$python scripts/make_clips.py --output="$clips" "${clip_flags[@]}"
$python scripts/build_dataset.py --dataset="$dataset" --manual_dir="$clips" --data_dir="$records"
start=(--config.train.init_from="$start_run")
first_stage

common=(
  --config.data.data_dir="$records"
  --config.train.final_splits="('test_s',)"
)
for flag in "${start[@]}"; do
  case $flag in
    --config.loss.align_weight=*) with_alignment=$flag ;; # flags of all variants would win over it
    *) common+=("$flag") ;;
  esac
done
common+=(--config.train.init_{fresh,dropped}="('cma/.*',)") # the stages of words do not train it
variants=()
add() { # NAME [FLAGS]
  local flags
  flags=$(printf ' %q' --config="$config" "${@:2}")
  variants+=(--variant="$1$flags $with_alignment")
  variants+=(--variant="$1_plain$flags --config.loss.align_weight=0")
}
fusion=--config.model.fusion
bare=($fusion.mask_gate=none $fusion.null_key=False)
add no_cma $fusion.name=none
add one_token "${bare[@]}" $fusion.levels="('res2',)" $fusion.text_pool=mean
add tokens "${bare[@]}" $fusion.levels="('res2',)"
add levels "${bare[@]}"
step "training and tables"
$python scripts/ablate.py --output="$root/runs" --split=test_s --measure=refavs/J \
  --measure="refavs(kind look)/J" --measure="refavs(kind sound)/J" \
  "${common[@]}" "${variants[@]}" "$@"
