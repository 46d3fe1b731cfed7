# Words for the object of a mask; the clips are those of refer. Its demo runs first: eyes and ears that
# tell shapes and sounds apart, and a reader of the words.
source scripts/demos/refer.sh
starts_from=refer_cma
start_keys=(init.backbone init.audio_backbone)
questions() { find "$clips/gt_mask/$(basename "$1" .mp4)" -mindepth 1 -type d | sort | sed 's/^/--masks=/' | sed -n 1p; }
check() {
  $python scripts/check_descriptions.py --checkpoint="$workdir" --refer="demo/$starts_from-seed$seed" --output="$workdir/check.json"
}
