"""Which tiles of Q Kᵀ a kernel visits, and in which of them it needs a mask.

A tile is a block of queries beside a block of keys. Most tiles of a packed row are seen by nobody;
of the others, most are seen whole, and only those at the edges need `key_end` (see `attention.py`)
key by key. One table says so for every block of queries, for the forward pass and dQ, another for
every block of keys, for dK and dV. Both are built once per row, with operations of fixed shapes on
the row's own device, and serve all layers.

A line of `queries` is seven integers: where the block begins, and two runs of consecutive tiles,
each as where it begins, how many of its tiles all queries of the block see, and how many tiles it
has; whole ones come first. Two runs are enough for all that is trained here: a rejected response
sees its prompt and itself, not the chosen one between them; a sliding window begins with keys that
some queries of the block no longer see, and goes on with keys that all do. For any other `key_end`
more tiles are masked, or visited in vain, than need be.

A line of `keys` is three: where the block begins, the smallest and the largest `key_end` in it.
The queries that see some key of the block reach from its beginning to the largest one, without a
gap; those from its end to the smallest one see all of it.

Lines are sorted by their work, the longest first, so that a GPU ends with short ones.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiles(NamedTuple):
    """What the kernels know of a row's mask."""

    key_end: Tensor  # (N,) int32
    queries: Tensor  # (⌈N / block of queries⌉, 7) int32
    keys: Tensor  # (⌈N / block of keys⌉, 3) int32


def require_key_end(key_end: Tensor) -> None:
    """Raises ValueError unless k < key_end[k] ≤ N for every key k. On a GPU, waits for it."""
    if key_end.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"attention: key_end is {key_end.dtype}, must be int32 or int64")
    N = len(key_end)
    wrong = (key_end <= torch.arange(N, device=key_end.device)) | (key_end > N)
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"attention: key_end[{k}] is {int(key_end[k])}, must be from {k + 1} to {N}"
        )


def by_query(key_end: Tensor, block_q: int, block_k: int) -> Tensor:
    """The table of query blocks, in tiles of block_k keys. key_end is (N,) int32."""
    N, device = len(key_end), key_end.device
    start = torch.arange(0, N, block_q, device=device, dtype=torch.int32)
    stop = (start + block_q).clamp(max=N)
    key = torch.arange(N, device=device, dtype=torch.int32)
    seen = (key < stop[:, None]) & (key_end > start[:, None])  # by some query of the block
    whole = (key <= start[:, None]) & (key_end >= stop[:, None])  # by all

    def first(condition: Tensor) -> Tensor:
        """The first key for which it holds, `stop` if it holds for none before that."""
        return torch.where(condition, key, stop[:, None]).amin(1)

    def run(begin: Tensor, end: Tensor) -> list[Tensor]:
        """The tiles from one key to another, as three integers."""
        tiles = _ceil((end - begin).clamp(min=0), block_k)
        # Where the keys that all see end; those that none sees are not among them.
        until = first(~whole & (key >= begin[:, None]))
        return [begin, torch.minimum((until - begin).clamp(min=0) // block_k, tiles), tiles]

    begin = first(seen)
    gap = first(~seen & (key >= begin[:, None]))
    behind_gap = first(seen & (key > gap[:, None]))
    second = torch.where(gap < stop, behind_gap, first(whole))
    one = run(begin, torch.minimum(gap, second))
    two = run(torch.maximum(second, begin + one[-1] * block_k), stop)  # no key twice
    return _longest_first(torch.stack([start, *one, *two], 1), one[-1] + two[-1])


def by_key(key_end: Tensor, block_k: int) -> Tensor:
    """The table of key blocks. key_end is (N,) int32."""
    N = len(key_end)
    start = torch.arange(0, N, block_k, device=key_end.device, dtype=torch.int32)
    rest = len(start) * block_k - N
    smallest = F.pad(key_end, (0, rest), value=N).view(-1, block_k).amin(1)
    largest = F.pad(key_end, (0, rest), value=0).view(-1, block_k).amax(1)
    return _longest_first(torch.stack([start, smallest, largest], 1), largest - start)


def _ceil(length: Tensor, block: int) -> Tensor:
    return (length + block - 1) // block


def _longest_first(table: Tensor, work: Tensor) -> Tensor:
    return table[work.argsort(descending=True, stable=True)].to(torch.int32)
