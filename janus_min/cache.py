"""Keys and values of what was computed, at fixed places: B slots of T positions each.

A slot belongs to one request at a time. Its first positions hold the request's prompt, and still do
when the request has ended: the next one with the same prompt finds it there (`engine.py`).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from janus_min.config import ModelConfig
from kernels.attention import attention
from kernels.tiles import Tiles

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v -> mixed values
Store = Callable[[int, Tensor, Tensor], None]  # layer, k, v

# Of PyTorch's kernels on a GPU, those that have long been trusted with masks of any kind.
MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Cache:
    """Keys and values of all layers, (layers, B, G, T, Dh) each."""

    def __init__(self, config: ModelConfig, B: int, T: int, dtype: torch.dtype, device: str):
        G = config.num_key_value_heads
        shape = (config.num_hidden_layers, B, G, T, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        if by_definition(self.keys):  # positions side by side in memory: q·Kᵀ in 2/3 of the time
            self.keys = self.keys.view(*shape[:-2], shape[-1], T).transpose(-1, -2)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        # Of each layer, the heads of all slots, (B·G, T, Dh).
        self.layers = [(k.flatten(0, 1), v.flatten(0, 1)) for k, v in zip(self.keys, self.values)]
        self.window = config.sliding_window
        self.heads = torch.arange(B * G, device=device).view(B, G)  # of each slot

    def copy(self, source: int, slots: list[int], count: int) -> None:
        """Copies the first `count` positions of one slot into others."""
        for store in (self.keys, self.values):
            for slot in slots:
                store[:, slot, :, :count] = store[:, source, :, :count]

    def prefill(
        self, slots: list[int], lengths: list[int], key_end: Tensor | Tiles, impl: str
    ) -> tuple[Attend, Store]:
        """What attends while prompts are computed: as in training, in one packed row of documents
        of these lengths; their keys and values go to the beginning of these slots. With it comes
        what only puts them there, for the last layer, whose output nobody reads.
        """
        own = [torch.arange(n, device=self.keys.device) for n in lengths]
        slot = torch.cat([torch.full_like(places, each) for places, each in zip(own, slots)])
        store = partial(self._store, places_of(self.heads[slot], torch.cat(own)))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(layer, k, v)
            return attention(q, k, v, key_end, impl)

        return attend, store

    def _store(self, places: tuple[Tensor, Tensor], layer: int, k: Tensor, v: Tensor) -> None:
        """Puts k and v (N, G, Dh) to the places of `places_of`."""
        for store, new in zip(self.layers[layer], (k, v)):
            store.index_put_(places, new)

    def step(self, lengths: Tensor, spans: list[tuple[int, int, int]]) -> Attend:
        """What attends while the first B slots get one more token each, at position lengths[b].

        spans: from which slot to which one T positions are read, (first, end, T), all of them
        together 0 to B. lengths (B,) are below their T, but for slots that nobody uses.
        """
        B, G = len(lengths), self.heads.shape[1]
        places = places_of(self.heads[:B], lengths)
        masks = [self._mask(lengths[first:end], T) for first, end, T in spans]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._store(places, layer, k, v)
            keys, values = self.layers[layer]
            # The query heads of a group stand as rows of one matrix, (B·G, H/G, Dh): keys and
            # values are not copied.
            rows = q.reshape(B * G, -1, q.shape[-1])
            mixed = []
            for (first, end, T), mask in zip(spans, masks):
                own = slice(first * G, end * G)
                mixed.append(look_up(rows[own], keys[own, :T], values[own, :T], mask))
            return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).reshape(q.shape)

        return attend

    def _mask(self, lengths: Tensor, T: int) -> Tensor:
        """What is added to all layers' scores: 0 where a key is seen, else −∞, (B·G, 1, T)."""
        B, G = len(lengths), self.heads.shape[1]
        key = torch.arange(T, device=lengths.device)
        unseen = key > lengths[:, None]
        if self.window is not None:
            # An unused slot sees something, too: without any key, attention is no number.
            unseen |= lengths.clamp(max=T - 1)[:, None] - key >= self.window
        mask = torch.zeros(B, T, dtype=self.keys.dtype, device=lengths.device)
        mask.masked_fill_(unseen, -math.inf)
        return mask[:, None].expand(B, G, T).reshape(B * G, 1, T)


def places_of(heads: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The places of N tokens, each in its heads (N, G) at its position (N,): two times (N, G)."""
    return heads, positions[:, None].expand_as(heads)


def by_definition(x: Tensor) -> bool:
    """Whether the definition of attention is faster than its fused form, for a few queries."""
    return x.dtype in (torch.float32, torch.float64) and not x.is_cuda


def look_up(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·Kᵀ/√Dh + mask)·V for each of B·G heads of keys: q (B·G, H/G, Dh), keys and values
    (B·G, T, Dh), mask (B·G, 1, T). Returns (B·G, H/G, Dh).
    """
    if by_definition(q):
        scores = torch.bmm(q, keys.transpose(1, 2))
        # `baddbmm` would copy the mask to all query heads first.
        torch.add(mask, scores, alpha=q.shape[-1] ** -0.5, out=scores)
        return torch.bmm(scores.softmax(-1), values)
    with sdpa_kernel(MASKED) if q.is_cuda else nullcontext():
        # As heads of one sequence.
        return F.scaled_dot_product_attention(q[None], keys[None], values[None], mask[None])[0]
