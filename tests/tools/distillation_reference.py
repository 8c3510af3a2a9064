#!/usr/bin/env python3
"""Reference numbers of distillation, by PyTorch's own softmax, kl_div and autograd (float64, stored as float32).

    python3 tests/tools/distillation_reference.py tests/fixtures/train/distillation.safetensors

Loss = 0.25 * sum over rows of (0.3 CE + 0.9 tau^2 KL(teacher || student)), tau = 1.7; "capped" bends the student's logits
under a soft cap of 5; "top" lets the teacher name its 6 likeliest tokens and counts all others as one.
"""
import sys
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(1)
ROWS, WIDTH, VOCAB, TOP, TAU, SCALE, CE, KL = 9, 12, 41, 6, 1.7, 0.25, 0.3, 0.9
hidden = torch.randn(ROWS, WIDTH, dtype=torch.float32)
head = torch.randn(VOCAB, WIDTH, dtype=torch.float32) * 0.7
teacher = torch.randn(ROWS, VOCAB, dtype=torch.float32) * 2.5
targets = torch.randint(0, VOCAB, (ROWS,))
p = (teacher.double() / TAU).softmax(-1)
top_p, top_ids = p.topk(TOP)
tail = 1 - top_p.sum(-1)
out = {
    "hidden": hidden, "head": head, "teacher_logits": teacher, "targets": targets.to(torch.uint32),
    "top_ids": top_ids.to(torch.uint32), "top_probabilities": top_p.float(), "top_tail": tail.float(),
}
for name in ["dense", "capped", "top"]:
    h, w = hidden.double().requires_grad_(), head.double().requires_grad_()
    logits = h @ w.T
    if name == "capped":
        logits = 5 * torch.tanh(logits / 5)
    ce = F.cross_entropy(logits, targets, reduction="sum") * SCALE
    log_q = F.log_softmax(logits / TAU, -1)
    if name == "top":
        log_top = log_q.gather(-1, top_ids)
        rest = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, top_ids, False)
        log_tail = log_q.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)
        log_q, target = torch.cat([log_top, log_tail], -1), torch.cat([top_p, tail[:, None]], -1)
    else:
        target = p
    kl = F.kl_div(log_q, target, reduction="sum") * TAU**2 * SCALE
    (CE * ce + KL * kl).backward()
    out |= {
        f"{name}.cross_entropy": ce.detach().float().reshape(1), f"{name}.divergence": kl.detach().float().reshape(1),
        f"{name}.d_hidden": h.grad.float(), f"{name}.d_head": w.grad.float(),
    }
save_file({key: value.contiguous() for key, value in out.items()}, sys.argv[1], {"torch": torch.__version__})
