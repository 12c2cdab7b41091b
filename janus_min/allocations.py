"""What forward and backward passes allocate, watched operation by operation.

Works on real tensors and on fake ones. What a kernel allocates for itself is not seen from outside:
each says how much that is. For the estimate, norms are put in by what they allocate on a GPU.
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
WORKSPACES = attention.WORKSPACES | linear_cross_entropy.WORKSPACES
HEAD = linear_cross_entropy.WORKSPACES.keys()


class NormMemory(torch.autograd.Function):
    """Allocates what the fused norm of a GPU does: it keeps its input, and a number per token."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(len(x), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.empty_like(grad)


def norm_memory(x: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    """In the place of `F.rms_norm`."""
    return NormMemory.apply(x)


@contextmanager
def norms_by_memory() -> Iterator[None]:
    """Within it, norms allocate as they do on a GPU, and compute nothing."""
    norm = F.rms_norm
    F.rms_norm = norm_memory
    try:
        yield
    finally:
        F.rms_norm = norm


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
        part = "loss" if func in HEAD else whose()
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.boxes:
                self.claim([tensor], part)
        if func in WORKSPACES:  # what it allocates within and has freed again
            box = [part, 0]
            self.change(box, size=WORKSPACES[func](*args))
            self.change(box, size=0)
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


def whose() -> str:
    """What an operation allocates for, by who called it: FSDP or the modules."""
    frame = sys._getframe(2)
    while frame is not None:
        if "_fully_shard" in frame.f_code.co_filename:
            return "gathered"
        frame = frame.f_back
    return "activations"
