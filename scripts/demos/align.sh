# Frames and sound of clips in one space: a sound finds the clips of its category.
source scripts/demos/classify.sh
answer() {
  $python scripts/index.py --checkpoint="$workdir" --output="$workdir/index.npz"
  $python -m avs_jax.predict --checkpoint="$workdir" --search="$workdir/index.npz" --output="$workdir/prediction" \
    --audio="$(find "$clips" -path '*test*' -name '*.wav' | sort | sed -n 1p)"
}
