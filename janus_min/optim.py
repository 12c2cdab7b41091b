"""AdamW (arXiv 1711.05101) and the learning-rate schedule, a pure function of the step."""

import math

import torch
from torch import nn


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Rises linearly, peak/warmup at step 0 and `peak` at step warmup − 1, then falls along half a
    cosine; 0 is what the step after the last one would get, so that no step is wasted on it.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def adamw(model: nn.Module, *, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW over fp32 parameters; weight decay only on matrices, not on norms.

    Raises AssertionError for other dtypes: at a rate of 5e-6 bf16 weights round every update away.
    """
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}, needed is float32"
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), eps=1e-8, fused=True)
