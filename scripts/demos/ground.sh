# Queries on videos of 20 to 60 seconds, with features that our own backbones make.
dataset=own_moments
clips=demo/clips_moments
clip_flags=(--setting=moments)
prepare() { $python scripts/extract_features.py --config="$config" --folder="$clips"; }
questions() {
  sed -n "s/.*\"query\": \"\([^\"]*\)\".*\"vid\": \"$(basename "$1" .mp4)\".*/--text=\1/p" \
    "$clips/moments_test.jsonl"
}
