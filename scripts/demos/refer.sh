# Expressions for objects: by look, by sound, by time, both, and of nothing there.
dataset=refavs
clips=demo/clips_refer
clip_flags=(--setting=refer --train=1500 --val=20 --test=40) # about 7 expressions each, 25 in train
starts_from=s4_ama # sees and hears already; words are new
[ "$recipe" != refer_sam2 ] || starts_from= # another model
# What words mean, before the masks: steps without the decoder take half the time.
first_stage() {
  [ "$recipe" = refer_cma ] || return 0
  local words=demo/${recipe}_words-seed$seed
  step "first stage: what words mean, without masks: $words"
  $python -m avs_jax.main --config="$config" --config.seed="$seed" \
    --config.data.data_dir="$records" --workdir="$words" ${start[@]+"${start[@]}"} \
    --config.loss.masks=False --config.optim.frozen="('(audio_backbone|predictor)/.*',)" \
    --config.train.batch_size=16 --config.train.steps=1100 --config.train.eval_every=1100 \
    --config.train.final_splits="()"
  start=(--config.train.init_from="$words" --config.train.{init_fresh,init_dropped}="()"
    --config.train.steps=450 --config.optim.frozen="('audio_backbone/.*',)")
}
questions() { awk -F, -v vid="$(basename "$1" .mp4)" '$1 == vid { print "--text=" $5 }' "$clips/metadata.csv"; }
