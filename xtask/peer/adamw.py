"""AdamW as PyTorch computes it, for crates/divot-train/tests/optimizer.rs.

    python xtask/peer/adamw.py > crates/divot-train/tests/data/adamw.json

Two groups of parameters, clipping by the global norm, and a rate that warms up and falls by a cosine.
Values and gradients are sines, which the test computes as well.
"""

import json
import math

import torch

SHAPES = {"linear.weight": (4, 3), "linear.bias": (3,), "norm.gamma": (3,), "queries": (2, 3)}
DECAYED = {"linear.weight"}
STEPS, PEAK, WARMUP, FLOOR = 8, 0.05, 3, 0.1


def sines(shape, phase):
    count = math.prod(shape)
    return torch.tensor([math.sin(phase + 0.7 * i) for i in range(count)], dtype=torch.float32).reshape(shape)


def rate(step):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


parameters = {
    name: torch.nn.Parameter(sines(shape, index)) for index, (name, shape) in enumerate(SHAPES.items())
}
groups = [
    {"params": [p for name, p in parameters.items() if name in DECAYED], "weight_decay": 0.3},
    {"params": [p for name, p in parameters.items() if name not in DECAYED], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), eps=1e-6)
norms = []
for step in range(STEPS):
    # Large gradients are clipped, small ones are not.
    scale = 10.0 if step % 2 == 0 else 0.1
    for index, p in enumerate(parameters.values()):
        p.grad = scale * sines(p.shape, 2 * step + index)
    norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    optimizer.step()

print(json.dumps({
    "norms": norms,
    "parameters": {name: p.detach().flatten().tolist() for name, p in parameters.items()},
}, indent=1))
