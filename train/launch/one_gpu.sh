#!/usr/bin/env bash
# One rented GPU with a dozen processor cores beside it -> its tests, the trunk's training, and what came of it.
#
#   bash train/launch/one_gpu.sh OUT [MINUTES] [TEXT_TOWER]
#
# From the project's root, with the package installed. Trains recipe "trunk" for MINUTES (20) and leaves OUT/log.jsonl,
# OUT/gpu_tests.txt and the exported folder, its weights as model.safetensors.part-* of 15 MB: `cat` joins them. The run itself is
# OUT/run; the same command goes on with it. TEXT_TOWER is a folder or Hub id instead of the recipe's.
set -euo pipefail
OUT=${1:?where everything goes}
MINUTES=${2:-20}
TEXT_TOWER=${3:-sentence-transformers/all-MiniLM-L6-v2}
mkdir -p "$OUT"
# Every loader process keeps some 40 scans in shared memory, each three tensors.
ulimit -n "$(ulimit -Hn)"
export OMP_NUM_THREADS=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export ACCELERATE_MIXED_PRECISION=${ACCELERATE_MIXED_PRECISION:-bf16}

python -m pytest -q -m gpu tests | tee "$OUT/gpu_tests.txt"
python -m ctfm.train.pretrain trunk --out "$OUT/run" --recipe.text-start "$TEXT_TOWER" \
  --num-workers $(($(getconf _NPROCESSORS_ONLN) - 1)) --log-every 25 --stop-after $((MINUTES * 60))
cp "$OUT/run/log.jsonl" "$OUT"
if [ -e "$OUT/run/finished" ]; then
  cp -r "$OUT/run/exported" "$OUT"
else
  python -m ctfm export "$(ls -td "$OUT"/run/checkpoints/*-0* | head -n 1)" "$OUT/exported"
fi
split -b 15000000 "$OUT/exported/model.safetensors" "$OUT/exported/model.safetensors.part-"
rm "$OUT/exported/model.safetensors"
