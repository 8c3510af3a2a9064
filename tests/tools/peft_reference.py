"""Makes tests/fixtures/spokes: adapters for the models in tests/fixtures/hf and tests/fixtures/families, with logits by PEFT
and torch (f32, CPU).

Run from the repository root with torch, transformers, peft and safetensors installed:
    python tests/tools/peft_reference.py [NAME...]
The values depend on the seeds and on the package versions, which the metadata of expected.safetensors records.

Each folder has the adapter and expected.safetensors: ids [S], base [S, V] (logits of the model alone), logits [S, V].
  lora        PEFT on llama_gqa: every linear layer, alpha / r
  rslora      PEFT on llama_gqa: q, k and the head, alpha / sqrt(r), a rank and an alpha of their own for some modules
  embedding   PEFT on llama_gqa: the embedding and the output projection of attention
  qwen3       PEFT on qwen3_tied: every linear layer, bfloat16
  qwen2       PEFT on qwen2_gqa: every linear layer (q, k and v have biases of their own)
  gemma2      PEFT on gemma2_usual: every linear layer
  felix       Felix on llama_gqa: all layers, 4 bottlenecks of rank 8, an epsilon of its own
  felix_norm  Felix on llama_gqa: every other layer, 2 of rank 6, learned norms, the model's epsilon, a JSON file beside it
"""

import json
import pathlib
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
ROOT = FIXTURES / "spokes"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {
    "lora": ("llama_gqa", dict(r=4, lora_alpha=8, target_modules=LINEAR)),
    "rslora": ("llama_gqa", dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "k_proj", "lm_head"],
        rank_pattern={"layers.1.self_attn.q_proj": 3}, alpha_pattern={r"layers\.[02]\.self_attn\.k_proj": 5})),
    "embedding": ("llama_gqa", dict(r=4, lora_alpha=4, target_modules=["embed_tokens", "o_proj"])),
    "qwen3": ("qwen3_tied", dict(r=4, lora_alpha=8, target_modules=LINEAR)),
    "qwen2": ("qwen2_gqa", dict(r=4, lora_alpha=8, target_modules=LINEAR)),
    "gemma2": ("gemma2_usual", dict(r=2, lora_alpha=4, target_modules=LINEAR)),
}
FELIX = {
    "felix": dict(spokes=4, rank=8, every=1, norm=False, eps=1.19e-7),
    "felix_norm": dict(spokes=2, rank=6, every=2, norm=True, eps=None),
}


def load(name):
    folder = next(folder for folder in [FIXTURES / "hf" / name, FIXTURES / "families" / name] if folder.exists())
    # Eager attention is the only one with Gemma 2's soft caps.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager" if name.startswith("gemma2") else None)
    return model.eval()


def tokens(model, generator):
    return torch.randint(7, model.config.vocab_size, (1, 8), generator=generator)


def store(folder, ids, base, logits):
    difference = (logits - base).abs().max() / base.abs().max()
    assert 0.02 < difference < 2, f"{folder.name}: the adapter moves logits by {difference}"
    save_file(
        {"ids": ids[0].to(torch.uint32), "base": base.contiguous(), "logits": logits.contiguous()},
        folder / "expected.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    )
    print(folder.name, "moves logits by", float(difference))


def lora(name, base_name, options):
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    model = load(base_name)
    ids = tokens(model, generator)
    with torch.no_grad():
        base = model(ids).logits[0]
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                spread = 0.3 if "_B" in key else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
                if name == "qwen3":
                    parameter.copy_(parameter.to(torch.bfloat16).float())
        logits = adapted(ids).logits[0]
        folder = ROOT / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == "qwen3":
            adapted = adapted.to(torch.bfloat16)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # The path of the model on this machine says nothing to anyone else.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    store(folder, ids, base, logits)


def felix(name, spokes, rank, every, norm, eps):
    generator = torch.Generator().manual_seed(9)
    model = load("llama_gqa")
    ids = tokens(model, generator)
    width = model.config.hidden_size
    tensors = {}

    def hook(layer):
        def random(*shape, spread=1.0):
            return torch.randn(shape, generator=generator) * spread

        down = [random(rank, width, spread=width ** -0.5) for _ in range(spokes)]
        up = [random(width, rank, spread=0.5) for _ in range(spokes)]
        gate = torch.tensor(-1.0 + 0.7 * layer)
        weight = 1.0 + random(width, spread=0.3) if norm else torch.ones(width)
        tensors[f"{layer}.gate_bias"] = gate
        if norm:
            tensors[f"{layer}.norm.weight"] = weight
        for s in range(spokes):
            tensors[f"{layer}.w_down.{s}.weight"] = down[s]
            tensors[f"{layer}.w_up.{s}.weight"] = up[s]

        def run(_module, _inputs, output):
            h = output[0] if isinstance(output, tuple) else output
            n = torch.nn.functional.rms_norm(h, (width,), weight, model.config.rms_norm_eps if eps is None else eps)
            update = sum(torch.nn.functional.silu(n @ down[s].T) @ up[s].T for s in range(spokes)) / spokes
            h = h + torch.sigmoid(gate) * update
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return run

    with torch.no_grad():
        base = model(ids).logits[0]
        for layer, block in enumerate(model.model.layers):
            if layer % every == 0:
                block.register_forward_hook(hook(layer))
        logits = model(ids).logits[0]
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {"num_spokes": spokes, "spoke_rank": rank, "spoke_every_n": every, "architecture": "llama"}
    if eps is not None:
        config["rms_eps"] = eps
    if norm:
        (folder / "spoke.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "spoke.safetensors", metadata=None if norm else {k: str(v) for k, v in config.items()})
    store(folder, ids, base, logits)


def main():
    wanted = sys.argv[1:] or [*LORA, *FELIX]
    for name in wanted:
        if name in LORA:
            lora(name, *LORA[name])
        else:
            felix(name, **FELIX[name])


main()
