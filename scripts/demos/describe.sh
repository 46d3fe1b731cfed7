# Words for the object of a mask; the clips are those of refer.
source scripts/demos/refer.sh
starts_from=
questions() { find "$clips/gt_mask/$(basename "$1" .mp4)" -mindepth 1 -type d | sort | sed 's/^/--masks=/' | head -n 1; }
