"""Makes tests/fixtures/train/{adapters,optimisers}.safetensors: gradients of adapters by PEFT and PyTorch, steps of PyTorch's
optimisers, a schedule of transformers (f32, CPU).

Run from the repository root with torch, transformers, peft and safetensors installed:
    python tests/tools/training_reference.py
adapters: on hf/llama_gqa, mean cross-entropy of all tokens of ids [S] but the first.
  lora.GRAD.NAME    of every matrix of spokes/lora (rank 4, alpha 8)
  felix.NAME        2 bottlenecks of rank 3 behind every block; felix.GRAD.NAME their gradients
optimisers: three steps of a matrix and a vector with given gradients.
"""

import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
generator = torch.Generator().manual_seed(21)


def random(*shape, spread=1.0):
    return torch.randn(shape, generator=generator) * spread


def base():
    return transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "hf/llama_gqa", dtype=torch.float32)


def lora(ids, found):
    model = peft.PeftModel.from_pretrained(base(), FIXTURES / "spokes/lora", is_trainable=True)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found["lora.loss"] = loss.detach().reshape(1)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = key.removeprefix("base_model.model.").replace(".default.", ".")
            found[f"lora.GRAD.{name}"] = parameter.grad


def felix(ids, found, spokes=2, rank=3):
    model = base().requires_grad_(False)
    width, eps = model.config.hidden_size, model.config.rms_norm_eps
    trained = {}
    for layer, block in enumerate(model.model.layers):
        gate = torch.tensor([-0.5 + 0.4 * layer])
        down, up = random(spokes * rank, width, spread=width ** -0.5), random(width, spokes * rank, spread=0.3)
        parts = [part.requires_grad_() for part in (gate, down, up)]
        trained |= {f"model.layers.{layer}.felix.{n}": p for n, p in zip(("gate_bias", "w_down", "w_up"), parts)}

        def run(_module, _inputs, output, parts=parts):
            gate, down, up = parts
            h = output[0] if isinstance(output, tuple) else output
            n = torch.nn.functional.rms_norm(h, (width,), eps=eps)
            bottlenecks = zip(down.split(rank), up.split(rank, dim=1))
            update = sum(torch.nn.functional.silu(n @ down.T) @ up.T for down, up in bottlenecks) / spokes
            h = h + torch.sigmoid(gate) * update
            return (h, *output[1:]) if isinstance(output, tuple) else h

        block.register_forward_hook(run)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found["felix.loss"] = loss.detach().reshape(1)
    for name, parameter in trained.items():
        found[f"felix.{name}"] = parameter.detach().clone()
        found[f"felix.GRAD.{name}"] = parameter.grad


def optimisers(found):
    shapes = {"wide": (6, 10), "tall": (12, 5), "vector": (7,)}
    start = {name: random(*shape, spread=0.5) for name, shape in shapes.items()}
    grads = [{name: random(*shape) for name, shape in shapes.items()} for _ in range(3)]
    found |= {f"start.{name}": value.clone() for name, value in start.items()}
    found |= {f"grad.{at}.{name}": value for at, step in enumerate(grads) for name, value in step.items()}

    def run(kind, names, make):
        parameters = {name: torch.nn.Parameter(start[name].clone()) for name in names}
        optimiser = make(parameters)
        for step in grads:
            for name, parameter in parameters.items():
                parameter.grad = step[name].clone()
            optimiser.step()
        found.update({f"{kind}.{name}": p.detach().clone() for name, p in parameters.items()})

    def adamw(parameters):
        # Vectors do not decay, as ours don't.
        groups = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in parameters.values()]
        return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)

    run("adamw", shapes, adamw)
    # PyTorch iterates in bfloat16; the same in f32 shows more than two digits.
    torch.bfloat16 = torch.float32
    run("muon", ["wide", "tall"], lambda parameters: torch.optim.Muon(
        parameters.values(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"))

    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(nothing, 5, 40, min_lr_rate=0.1)
    found["schedule"] = torch.tensor([schedule.lr_lambdas[0](step) for step in range(1, 41)], dtype=torch.float64)


def main():
    ids = torch.randint(7, base().config.vocab_size, (1, 24), generator=generator)
    adapters = {"ids": ids[0].to(torch.uint32)}
    lora(ids, adapters)
    felix(ids, adapters)
    steps = {}
    optimisers(steps)
    folder = FIXTURES / "train"
    for name, found in (("adapters", adapters), ("optimisers", steps)):
        found = {key: value.contiguous() for key, value in found.items()}
        save_file(found, folder / f"{name}.safetensors", metadata=VERSIONS)
        print(name, len(found), "tensors")


main()
