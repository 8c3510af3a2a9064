#!/usr/bin/env bash
# Training steps on a GPU against PyTorch on the same card: a whole 1.5B Llama and a LoRA on it, bf16, checkpointing.
#
#   make cuda && benches/gpu.sh PYTHON [BESPOKE]      > gpu.jsonl
#
# PYTHON has torch, transformers and peft. Each case runs twice on each side, alternating; every line of the output is a JSON
# object with its case, and the first says which card it is. PEAK is the card's dense bf16 in TFLOP/s (H100 SXM and H200: 989).
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 PYTHON [BESPOKE]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=$1
bespoke=${2:-$here/../target/cuda/release/bespoke}
peak=${PEAK:-989}
toolkit=$here/../target/cuda-toolkit/env.sh
run_bespoke() (
  # In a subshell: PyTorch has its own CUDA libraries, which these must not shadow.
  # shellcheck source=/dev/null
  [ ! -e "$toolkit" ] || . "$toolkit"
  "$bespoke" bench train --device cuda --precision bf16 --peak "$peak" --json "$@"
)

nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv,noheader |
  "$python" -c 'import json, sys; print(json.dumps({"card": sys.stdin.readline().strip()}))'
for round in 1 2; do
  for lora in "" 16; do
    name=${lora:+lora} name=${name:-whole}
    option=(${lora:+--lora "$lora"})
    run_bespoke "${option[@]}" | sed "s/^{/{\"case\":\"$name\",\"round\":$round,\"side\":\"bespoke\",/"
    "$python" "$here/gpu_peer.py" --peak "$peak" "${option[@]}" |
      sed "s/^{/{\"case\":\"$name\",\"round\":$round,\"side\":\"pytorch\",/"
  done
done
