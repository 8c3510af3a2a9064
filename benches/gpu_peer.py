"""PyTorch's side of benches/gpu.sh: steps of the Llama that `bespoke bench train` trains, one JSON object on stdout.

    python benches/gpu_peer.py [--lora RANK] [--rows 8] [--seq 2048] [--micro-rows 4] [--steps 10] [--warmup 3] [--peak 989]

f32 weights and moments, bf16 under autocast, flash attention (SDPA), gradient checkpointing, fused AdamW: what one writes with
torch, transformers and peft without more ado.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("--lora", type=int)
for name, default in [("rows", 8), ("seq", 2048), ("micro-rows", 4), ("steps", 10), ("warmup", 3)]:
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--peak", type=float, default=989.0)
parser.add_argument("--device", default="cuda")
parser.add_argument("--tiny", action="store_true")
args = parser.parse_args()

torch.manual_seed(1)
vocab, hidden, layers, heads, kv_heads, head_dim, ffn = (
    (4352, 64, 2, 4, 2, 32, 128) if args.tiny else (151936, 1536, 28, 12, 2, 128, 8960))
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
    head_dim=head_dim, intermediate_size=ffn, rms_norm_eps=1e-6, tie_word_embeddings=True, use_cache=False,
    max_position_embeddings=32768, attn_implementation="sdpa")).to(args.device)
parameters = sum(parameter.numel() for parameter in model.parameters())
if args.lora:
    import peft
    model = model.to(torch.bfloat16)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=args.lora, lora_alpha=2 * args.lora, target_modules=targets))
    model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
cuda = args.device == "cuda"
optimiser = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda)
ids = torch.tensor([[(at * 7919 + row * 104729) % 4096 for at in range(args.seq)] for row in range(args.rows)],
                   device=args.device)


def step():
    total = 0.0
    for part in ids.split(args.micro_rows):
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = model(input_ids=part, labels=part).loss * (len(part) / args.rows)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
    return total


losses, seconds = [], []
for number in range(args.warmup + args.steps):
    began = time.perf_counter()
    losses.append(step())
    took = time.perf_counter() - began
    print(f"step {number + 1}: loss {losses[-1]:.4f}, {took:.3f} s", file=sys.stderr)
    if number >= args.warmup:
        seconds.append(took)

# As `bespoke bench train` counts: 6 per weight of a matrix (4 where it is frozen), attention over half a row, nothing twice.
matrices = parameters - hidden * (2 * layers + 1)
attention = 2 * layers * heads * head_dim * args.seq
flops = (4 if args.lora else 6) * matrices + 3 * attention
tokens, median = args.rows * args.seq, statistics.median_high(seconds)
free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
tflops = flops * tokens / median / 1e12
print(json.dumps({
    "place": f"PyTorch {torch.__version__}, transformers {transformers.__version__}, "
             f"{torch.cuda.get_device_name() if cuda else 'the CPU'}",
    "parameters": parameters, "trained": sum(parameter.numel() for parameter in trained), "tokens_per_step": tokens,
    "first_loss": losses[0], "last_loss": losses[-1],
    "seconds_per_step": [median, min(seconds), max(seconds)], "tokens_per_second": tokens / median,
    # In use on the whole GPU: what PyTorch has taken it keeps, so this is its peak. Then what its tensors took at most.
    "peak_bytes": total - free, "peak_bytes_of_tensors": torch.cuda.max_memory_allocated() if cuda else None,
    "tflops": tflops, "share_of_peak": tflops / args.peak,
}))
