# Expressions for objects: by look, by sound, by time, both, and of nothing there.
dataset=refavs
clips=demo/clips_refer
clip_flags=(--setting=refer --train=1500 --val=20 --test=40) # about 7 expressions each, 14 in train
starts_from=s4_ama # sees and hears already; words are new
[ "$recipe" != refer_sam2 ] || starts_from= # another model
# What words mean, before the masks: in steps without the decoder, looks first, with one second of the
# sound. What an object sounds like can only be learned of objects that look different, and faster
# where these looks stay as they are: with the alignment, which cannot hear, in the loss, sounds stayed
# at chance. Four frames of a clip share its sound, whose seconds cost more than a frame.
first_stage() {
  [ "$recipe" = refer_cma ] || return 0
  learn_words looks "what looks mean" 800 "'audio_backbone/.*', 'predictor/.*'" \
    ${start[@]+"${start[@]}"} --config.train.batch_size=16 --config.data.text.num_seconds=1
  learn_words sounds "what sounds mean" 1000 \
    "'audio_backbone/.*', 'predictor/.*', 'backbone/.*', 'pixel_decoder/.*'" \
    "${start[@]}" --config.train.batch_size=8 --config.data.num_supervised=4 --config.loss.align_weight=0
  start+=(--config.train.steps=400 --config.optim.frozen="('audio_backbone/.*',)"
    --config.loss.align_weight=20 --config.data.text.num_asked=4)
}
# NAME TITLE STEPS FROZEN [FLAGS]: a run without masks, from which the next one starts
learn_words() {
  local words=${workdir%-seed*}_$1-seed$seed
  step "first $2, without masks: $words"
  $python -m avs_jax.main --config="$config" --config.seed="$seed" \
    --config.data.data_dir="$records" --workdir="$words" --config.loss.masks=False \
    --config.train.steps="$3" --config.train.eval_every="$3" \
    --config.train.final_splits="()" --config.optim.frozen="($4,)" "${@:5}"
  [ -d "$words/checkpoints/$3" ] || is_stopped "$words"
  start=(--config.train.init_from="$words" --config.train.{init_fresh,init_dropped}="()")
}
questions() { awk -F, -v vid="$(basename "$1" .mp4)" '$1 == vid { print "--text=" $5 }' "$clips/metadata.csv"; }
