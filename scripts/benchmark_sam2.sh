#!/usr/bin/env bash
# SAM2 beside transformers' on this machine: image encoder of tiny and large at 512 and 1024 px, and
# of tiny the mask decoder and a tracked frame behind a full memory. Writes DIR/sam2.csv, and stores
# it for docs/results.md with --store.
#   scripts/benchmark_sam2.sh DIR [--store]
# PYTHON names an interpreter with the extra `benchmark`; REPEATS the counted runs (default 3).
set -euo pipefail
cd "$(dirname "$0")/.."
output=$1
mkdir -p "$output"
output=$(cd "$output" && pwd)
python=${PYTHON:-python}
repeats=${REPEATS:-3}

measure() { # recipe, px, blocks
  local name=$1_$2
  $python scripts/benchmark.py --config="configs/$1.py" --config.data.image_size="$2" \
    --blocks="$3" --repeats="$repeats" --output="$output/$name.md"
  if [ -s "$output/sam2.csv" ]; then tail -n +2 "$output/$name.csv"; else cat "$output/$name.csv"; fi \
    >>"$output/sam2.csv"
}

rm -f "$output/sam2.csv"
measure sam2_tiny 512 sam2_encoder,sam2_decoder,sam2_memory
measure sam2_tiny 1024 sam2_encoder,sam2_decoder,sam2_memory
measure sam2_large 512 sam2_encoder
measure sam2_large 1024 sam2_encoder
cat "$output/sam2.csv"

if [ "${2:-}" = --store ]; then
  versions=$($python -c 'import jax, torch, transformers
print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")')
  processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | sed -n 1p)
  $python scripts/write_results.py table --csv="$output/sam2.csv" --name=12_benchmark_sam2 \
    --title="SAM2 compared with PyTorch" --command="scripts/benchmark_sam2.sh DIR --store" \
    --machine="$(nproc) cores of $processor, $versions in eager mode; one image, medians of $repeats alternating repetitions"
fi
