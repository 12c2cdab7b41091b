"""What forward and backward passes allocate, watched operation by operation.

Works on real tensors and on fake ones. For the estimate, attention, norms and the output head are
put in by what their kernels allocate: operations within a kernel are not seen from outside.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from kernels import attention, linear_cross_entropy

PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "loss")

# Kernels by what they allocate


class AttentionMemory(torch.autograd.Function):
    """Allocates what fused attention does: output and log-sum-exp, which are kept with its inputs;
    backward, the gradients, those of keys and values for every query head before they are added."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, lse)
        return output.clone()  # from (heads, N, Dh) to (N, heads, Dh)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        whole = [torch.empty_like(q) for _ in range(2)]
        del whole
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class HeadMemory(torch.autograd.Function):
    """Allocates what `ChunkedLogps` does if every position has a target."""

    @staticmethod
    def chunk(h: Tensor, weight: Tensor) -> Tensor:
        """The logits of one chunk, as they are computed and in fp32."""
        size = min(linear_cross_entropy.CHUNK_LOGITS, len(h) * len(weight))
        return h.new_empty(size).float()

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        h = hidden.clone()
        lse = h.new_empty(len(h), dtype=torch.float32)
        HeadMemory.chunk(h, weight)
        ctx.save_for_backward(h, weight, lse)
        return torch.empty_like(lse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, weight, _ = ctx.saved_tensors
        dh = torch.empty_like(h)
        dweight = torch.empty_like(weight, dtype=torch.float32)
        logits = HeadMemory.chunk(h, weight)
        part = torch.empty_like(weight)  # one chunk's share of dweight
        del logits, part
        return dh.clone(), dweight.to(weight.dtype)


class NormMemory(torch.autograd.Function):
    """Allocates what the fused norm of a GPU does: it keeps its input, and a number per token."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(len(x), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.empty_like(grad)


def attention_memory(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor) -> Tensor:
    """In the place of attention."""
    return AttentionMemory.apply(q, k, v)


def head_memory(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In the place of the head."""
    return HeadMemory.apply(hidden, weight)


def norm_memory(x: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    """In the place of `F.rms_norm`."""
    return NormMemory.apply(x)


@contextmanager
def kernels_by_memory() -> Iterator[None]:
    """Within it, `impl="memory"` allocates as kernels on a GPU do, and computes nothing."""
    norm = F.rms_norm
    attention.IMPLEMENTATIONS["memory"] = attention_memory
    linear_cross_entropy.IMPLEMENTATIONS["memory"] = head_memory
    F.rms_norm = norm_memory
    try:
        yield
    finally:
        F.rms_norm = norm
        del attention.IMPLEMENTATIONS["memory"], linear_cross_entropy.IMPLEMENTATIONS["memory"]


# Adding up what is alive


class Tracker(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations make under it, while they live.

    FSDP empties the storages of gathered weights and fills them again, which is no operation:
    their `resize_` is watched, too.
    """

    def __init__(self):
        super().__init__()
        self.boxes = WeakIdKeyDictionary()  # [part, bytes] of each storage
        self.now, self.peak = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)

    def __enter__(self) -> "Tracker":
        self.resize = resize = torch.UntypedStorage.resize_

        def _resize(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage in self.boxes:
                self.change(self.boxes[storage], size=storage.nbytes())

        torch.UntypedStorage.resize_ = _resize
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.UntypedStorage.resize_ = self.resize
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it does the same on its own rows, which comes back here
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.boxes:
                self.claim([tensor], whose())
        return result

    def claim(self, tensors: list[Tensor], part: str) -> None:
        """Counts these tensors as that part from now on."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage not in self.boxes:
                self.boxes[storage] = box = [part, 0]
                weakref.finalize(storage, self.change, box, size=0).atexit = False
            self.change(self.boxes[storage], size=0)
            self.boxes[storage][0] = part
            self.change(self.boxes[storage], size=storage.nbytes())

    def change(self, box: list, *, size: int) -> None:
        """A storage has that size now."""
        part, before = box
        box[1] = size
        self.now[part] += size - before
        if sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)


HEAD = {
    function.__code__
    for kind in (HeadMemory, linear_cross_entropy.ChunkedLogps)
    for function in (kind.forward, kind.backward)
}


def whose() -> str:
    """What an operation allocates for, by who called it: FSDP, the head, or the other modules."""
    frame = sys._getframe(2)
    while frame is not None:
        if "_fully_shard" in frame.f_code.co_filename:
            return "gathered"
        if frame.f_code in HEAD:
            return "loss"
        frame = frame.f_back
    return "activations"
