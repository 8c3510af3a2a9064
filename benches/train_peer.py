"""PyTorch's side of benches/train_peer.rs: one training step for each line on stdin, its seconds on stdout.

    python benches/train_peer.py CASE THREADS        (started by the bench; needs torch, transformers, peft)
"""

import json
import sys
import time

import torch
import transformers

case, threads = sys.argv[1], int(sys.argv[2])
shape = json.loads(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(1)


class Felix(torch.nn.Module):
    """h + sigmoid(b) / S * W_up silu(W_down norm(h)) after a block, with the bottlenecks fused as in ours."""

    def __init__(self, block, width, spokes, rank):
        super().__init__()
        self.block, self.spokes, self.width = block, spokes, width
        self.gate = torch.nn.Parameter(torch.zeros(1))
        self.down = torch.nn.Linear(width, spokes * rank, bias=False)
        self.up = torch.nn.Linear(spokes * rank, width, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, *args, **kwargs):
        output = self.block(*args, **kwargs)
        h = output[0] if isinstance(output, tuple) else output
        n = torch.nn.functional.rms_norm(h, (self.width,), eps=1e-6)
        update = self.up(torch.nn.functional.silu(self.down(n)))
        h = h + torch.sigmoid(self.gate) / self.spokes * update
        return (h, *output[1:]) if isinstance(output, tuple) else h


model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=shape["vocab"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
    num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
    intermediate_size=shape["ffn"], rms_norm_eps=1e-6, tie_word_embeddings=True, use_cache=False,
    max_position_embeddings=2048, attn_implementation="sdpa"))
if case == "lora":
    import peft
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets))
elif case == "felix":
    model.requires_grad_(False)
    layers = model.model.layers
    for at in range(len(layers)):
        attention_type = getattr(layers[at], "attention_type", None)
        layers[at] = Felix(layers[at], shape["hidden"], 4, 64)
        if attention_type is not None:
            layers[at].attention_type = attention_type
model.train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
rows, seq = shape["rows"], shape["seq"]
ids = torch.tensor([[(i * 7919 + row * 104729) % 4096 for i in range(seq)] for row in range(rows)])


def step():
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


step()
count = sum(parameter.numel() for parameter in trained)
print(f"ready {torch.__version__} transformers {transformers.__version__} trained {count}", flush=True)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
