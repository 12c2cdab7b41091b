"""Where to compute, and in which precision: one policy for all programs."""

import torch

from janus_min.errors import UserError
from kernels.attention import HEAD_WIDTHS
from kernels.launch import INTERPRETED, triton


def pick_device(name: str | None = None) -> str:
    """The device to use, "cuda" or "cpu": the named one, or a GPU if there is one."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device is cuda, but PyTorch finds no GPU; leave it out, or say cpu")
    return name or ("cuda" if there else "cpu")


def pick_impl(device: str, head_dim: int, name: str | None = None) -> str:
    """Which kernels to use, a name in `kernels.attention`: the given one, or the fastest.

    That is triton on a GPU for the head widths that it has, and else torch.
    """
    there = device == "cuda" or INTERPRETED
    if name is None:
        return "triton" if device == "cuda" and triton and head_dim in HEAD_WIDTHS else "torch"
    if name == "triton" and triton is None:
        raise UserError("--impl is triton, but the package triton is not installed")
    if name == "triton" and not there:
        raise UserError("--impl is triton, which needs a GPU; leave it out, or say torch")
    if name == "triton" and head_dim not in HEAD_WIDTHS:
        widths = " or ".join(map(str, HEAD_WIDTHS))
        raise UserError(
            f"--impl is triton, which needs heads of {widths}; the model's are {head_dim} wide"
        )
    return name


def compute_dtype(device: str) -> torch.dtype:
    """bf16 on a GPU, fp32 on a CPU (few of which have fast products of bf16)."""
    return torch.bfloat16 if device == "cuda" else torch.float32
