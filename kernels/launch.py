"""How kernels are launched: with Triton, where it is installed.

Where it is not, stand-ins let the modules be imported, for their other implementations.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # there is no wheel for this system
    triton = TensorDescriptor = None
    tl = SimpleNamespace(constexpr=None)  # which kernels name in their signatures

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSED = {"enable_fp_fusion": True}  # a · b + c in one instruction: in some versions a choice
LOG2_E = 1.4426950408889634  # exp(x) = exp2(x · log₂ e)
INTERPRETED = triton is not None and triton.knobs.runtime.interpret  # TRITON_INTERPRET=1


def jit(function: Callable) -> Callable:
    """`triton.jit`, or the function itself, which nobody can call then."""
    return function if triton is None else triton.jit(function)


def require_triton(name: str, *tensors: Tensor) -> None:
    """Raises ValueError unless Triton can be launched on these tensors."""
    if triton is None:
        raise ValueError(f"{name}: impl 'triton' needs the package triton, which is not installed")
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"{name}: tensors are on different devices: {', '.join(sorted(devices))}")
    if not (tensors[0].is_cuda or INTERPRETED):
        raise ValueError(
            f"{name}: impl 'triton' needs tensors on a GPU, these are on {tensors[0].device}: "
            "use impl 'torch', or TRITON_INTERPRET=1 to try kernels slowly"
        )


def require_dtypes(name: str, **tensors: Tensor) -> None:
    """Raises ValueError unless all have one type, which the kernels compute in."""
    found = {tensor.dtype for tensor in tensors.values()}
    if len(found) > 1 or not found <= set(DTYPES):
        given = ", ".join(f"{key} is {tensor.dtype}" for key, tensor in tensors.items())
        raise ValueError(
            f"{name}: {given}; impl 'triton' needs all in torch.float32, float16 or bfloat16"
        )


class Launch(NamedTuple):
    """Sizes of an attention kernel's blocks, and how a GPU runs it."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int

    def options(self, q: Tensor, k: Tensor) -> dict[str, int | bool]:
        """The constants of a kernel and of its compilation, for q (N, H, Dh) and k (N, G, Dh)."""
        constants = {"H": q.shape[1], "G": k.shape[1], "Dh": q.shape[2]}
        blocks = {"BLOCK_Q": self.block_q, "BLOCK_K": self.block_k}
        compiler = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return constants | blocks | compiler | FUSED


class Launches(NamedTuple):
    """Of the three kernels of attention. The first two walk through the same table."""

    forward: Launch
    backward_q: Launch
    backward_kv: Launch


# With these no register spills and shared memory suffices, which `ahead_of_time.py` checks. fp32 is
# for exactness: its products do without tensor cores, and are slow.
LARGE = Launches(Launch(128, 128, 8, 3), Launch(128, 128, 8, 2), Launch(64, 128, 8, 3))
SMALL = Launches(Launch(64, 32, 4, 3), Launch(64, 32, 4, 2), Launch(32, 64, 4, 2))
EXACT = Launches(Launch(16, 16, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 8, 1))
LARGE_MEMORY = 225 << 10  # bytes of shared memory for LARGE: H100 and H200 have 227 KiB, A100 163


def attention(dtype: torch.dtype, device: torch.device) -> Launches:
    """How attention is launched for inputs of a type on a device."""
    if device.type != "cuda":  # where kernels are interpreted, or their memory estimated
        return LARGE
    if dtype == torch.float32:
        return EXACT
    memory = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return LARGE if memory >= LARGE_MEMORY else SMALL


def aligned(x: Tensor) -> Tensor:
    """x, contiguous and at an address that descriptors accept."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def has_tma(device: torch.device) -> bool:
    """Whether blocks are loaded by descriptors made on the host, from Hopper on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def heads(x: Tensor, rows: int) -> "TensorDescriptor | Tensor":
    """x (N, heads, Dh), aligned, as (N, heads · Dh), to be loaded in blocks of (rows, Dh)."""
    N, count, Dh = x.shape
    if not has_tma(x.device):
        return x
    return TensorDescriptor(x, [N, count * Dh], [count * Dh, 1], [rows, Dh])


def flat(x: Tensor, block: int) -> "TensorDescriptor | Tensor":
    """x, aligned, as one long vector, to be loaded in pieces of `block`."""
    return TensorDescriptor(x, [x.numel()], [1], [block]) if has_tma(x.device) else x


@jit
def described(t_x, N, COLUMNS: tl.constexpr, ROWS: tl.constexpr, Dh: tl.constexpr):
    """In a kernel: what `heads` made, as a descriptor on any GPU.

    Only below Hopper is it made here: from there on Triton would need an allocator.
    """
    if isinstance(t_x, tl.tensor_descriptor):
        return t_x
    else:  # becomes plain loads
        return tl.make_tensor_descriptor(t_x, [N, COLUMNS], [COLUMNS, 1], [ROWS, Dh])


@jit
def described_vector(t_x, length, BLOCK: tl.constexpr):
    """In a kernel: what `flat` made, as a descriptor on any GPU."""
    if isinstance(t_x, tl.tensor_descriptor):
        return t_x
    else:
        return tl.make_tensor_descriptor(t_x, [length], [1], [BLOCK])
