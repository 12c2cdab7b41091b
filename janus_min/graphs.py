"""Steps of generation as CUDA graphs: recorded once, then launched as one.

A step of a 7B model is some 500 small kernels, each of which would otherwise be launched by Python.
A graph computes with the same places in memory each time; it is recorded for a number of slots and
of cached positions, and serves all smaller ones down to the next.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LENGTHS = 256  # positions of the cache: graphs read a multiple of it
WARM_UP = 2  # runs before recording, in which libraries allocate and choose


def bucket(count: int, most: int) -> int:
    """How many slots a step computes for `count` of them: 1, 2, 4, 8, then multiples of 8."""
    rounded = 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
    return min(rounded, most)


class Graphs:
    """Graphs of one step, by its numbers of slots and positions."""

    def __init__(self, state: list[Tensor]):
        """`state` is what a step changes, in place."""
        self.state = state
        self.recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self.pool = None  # of memory, which graphs share: they never run at the same time
        self.stream = torch.cuda.Stream()  # one for all: libraries keep memory for each

    def __call__(
        self, compute: Callable[[int, int], tuple[Tensor, ...]], B: int, T: int
    ) -> tuple[Tensor, ...]:
        """What the step `compute(B, T)` returns, valid until the next one."""
        if (B, T) not in self.recorded:
            self._record(compute, B, T)
        graph, found = self.recorded[B, T]
        graph.replay()
        return found

    def _record(self, compute: Callable[[int, int], tuple[Tensor, ...]], B: int, T: int) -> None:
        before = [tensor.clone() for tensor in self.state]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                compute(B, T)
        torch.cuda.current_stream().wait_stream(self.stream)
        for tensor, old in zip(self.state, before):  # the warm-up was no step
            tensor.copy_(old)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            found = compute(B, T)
        self.pool = graph.pool()
        self.recorded[B, T] = graph, found
