"""Where to compute, and in which precision: one policy for all programs."""

import torch

from janus_min.errors import UserError


def pick_device(name: str | None = None) -> str:
    """The device to use, "cuda" or "cpu": the named one, or a GPU if there is one."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device is cuda, but PyTorch finds no GPU; leave it out, or say cpu")
    return name or ("cuda" if there else "cpu")


def compute_dtype(device: str) -> torch.dtype:
    """bf16 on a GPU, fp32 on a CPU (where bf16 is slower)."""
    return torch.bfloat16 if device == "cuda" else torch.float32
