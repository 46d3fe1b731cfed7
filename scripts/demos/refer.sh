# Expressions for objects: by look, by sound, by time, both, and of nothing there.
dataset=refavs
clips=demo/clips_refer
clip_flags=(--setting=refer --val=20 --test=40) # about 7 expressions each
starts_from=s4_ama # sees and hears already; words are new
[ "$recipe" != refer_sam2 ] || starts_from= # another model
questions() { awk -F, -v vid="$(basename "$1" .mp4)" '$1 == vid { print "--text=" $5 }' "$clips/metadata.csv"; }
