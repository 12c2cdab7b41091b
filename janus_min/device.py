"""Where to compute, and in which precision: one policy for all programs."""

import torch


def pick_device() -> str:
    """The name of the device: "cuda" if there is a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(device: str) -> torch.dtype:
    """bf16 on a GPU, fp32 on a CPU (where bf16 is slower)."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def precision(device: str) -> torch.autocast:
    """The context in which a model with fp32 weights computes in `compute_dtype`."""
    dtype = compute_dtype(device)
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)
