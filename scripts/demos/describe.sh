# Words for the object of a mask; the clips are those of refer, whose demo can read them.
source scripts/demos/refer.sh
starts_from=
questions() { find "$clips/gt_mask/$(basename "$1" .mp4)" -mindepth 1 -type d | sort | sed 's/^/--masks=/' | head -n 1; }
check() {
  local reader=demo/refer_cma-seed$seed
  if [ ! -d "$reader/evaluation" ]; then
    echo "skipped: whether a model finds the object by its words; CONFIG=refer_cma ./scripts/demo.sh trains it"
    return
  fi
  $python scripts/check_descriptions.py --checkpoint="$workdir" --refer="$reader" --output="$workdir/check.json"
}
