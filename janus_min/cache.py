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
        self.values = torch.zeros_like(self.keys)
        # Of each layer, the heads of all slots, (B·G, T, Dh).
        self.layers = [(k.flatten(0, 1), v.flatten(0, 1)) for k, v in zip(self.keys, self.values)]
        self.window = config.sliding_window
        # Where slots begin, all heads of all slots in one row, and where their heads do.
        self.first_places = torch.arange(B, device=device) * G * T
        self.heads = torch.arange(G, device=device) * T

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
        places = torch.cat([self.first_places[slot] + each for slot, each in zip(slots, own)])
        store = partial(self._store, self._of_heads(places))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(layer, k, v)
            return attention(q, k, v, key_end, impl)

        return attend, store

    def _store(self, places: Tensor, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts k and v (N, G, Dh) to N·G places."""
        for store, new in zip(self.layers[layer], (k, v)):
            store.flatten(0, 1).index_copy_(0, places, new.flatten(0, 1))

    def _of_heads(self, places: Tensor) -> Tensor:
        """(N,) places in slots' first heads -> (N·G,) places in all heads."""
        return (places[:, None] + self.heads).flatten()

    def step(self, lengths: Tensor, T: int) -> Attend:
        """What attends while the first B slots get one more token each, at position lengths[b].

        lengths (B,) are below T, up to where the cache is read, but for slots that nobody uses.
        """
        B, G = len(lengths), len(self.heads)
        places = self._of_heads(self.first_places[:B] + lengths)
        key = torch.arange(T, device=lengths.device)
        unseen = key > lengths[:, None]
        if self.window is not None:
            # An unused slot sees something, too: without any key, attention is no number.
            unseen |= lengths.clamp(max=T - 1)[:, None] - key >= self.window
        # Added to the scores of all layers: 0 where a key is seen, else −∞.
        mask = torch.zeros(B, T, dtype=self.keys.dtype, device=lengths.device)
        mask.masked_fill_(unseen, -math.inf)
        mask = mask[:, None].expand(B, G, T).reshape(B * G, 1, T)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._store(places, layer, k, v)
            keys, values = (store[: B * G, :T] for store in self.layers[layer])
            # The query heads of a group stand as rows of one matrix, (B·G, H/G, Dh): keys and
            # values are not copied.
            rows = q.reshape(B * G, -1, q.shape[-1])
            return look_up(rows, keys, values, mask).reshape(q.shape)

        return attend


def look_up(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·Kᵀ/√Dh + mask)·V for each of B·G heads of keys: q (B·G, H/G, Dh), keys and values
    (B·G, T, Dh), mask (B·G, 1, T). Returns (B·G, H/G, Dh).
    """
    if q.dtype in (torch.float32, torch.float64) and not q.is_cuda:
        # For so few rows the definition is faster on a CPU than its fused form.
        scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values)
    with sdpa_kernel(MASKED) if q.is_cuda else nullcontext():
        # As heads of one sequence.
        return F.scaled_dot_product_attention(q[None], keys[None], values[None], mask[None])[0]
