"""Keys and values of what was computed, at fixed places: B slots of T positions each.

A slot belongs to one request at a time. Its first positions hold the request's prompt, and still do
when the request has ended: the next one with the same prompt finds it there (`engine.py`).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from janus_min.config import ModelConfig
from kernels.attention import attention
from kernels.tiles import Tiles

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v -> mixed values

# Of PyTorch's kernels on a GPU, those that have long been trusted with masks of any kind.
MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Cache:
    """Keys and values of all layers, (layers, B, G, T, Dh) each."""

    def __init__(self, config: ModelConfig, B: int, T: int, dtype: torch.dtype, device: str):
        G = config.num_key_value_heads
        shape = (config.num_hidden_layers, B, G, T, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
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
    ) -> Attend:
        """What attends while prompts are computed: as in training, in one packed row of documents
        of these lengths; their keys and values go to the beginning of these slots.
        """

        own = [torch.arange(n, device=self.keys.device) for n in lengths]
        places = torch.cat([self.first_places[slot] + each for slot, each in zip(slots, own)])
        places = self._of_heads(places)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._store(layer, places, k, v)
            return attention(q, k, v, key_end, impl)

        return attend

    def _store(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Puts k and v (N, G, Dh) to N·G places."""
        for store, new in ((self.keys, k), (self.values, v)):
            store[layer].view(-1, k.shape[-1]).index_copy_(0, places, new.reshape(-1, k.shape[-1]))

    def _of_heads(self, places: Tensor) -> Tensor:
        """(N,) places in slots' first heads -> (N·G,) places in all heads."""
        return (places[:, None] + self.heads).flatten()

    def step(self, lengths: Tensor, T: int, level: bool = False) -> Attend:
        """What attends while the first B slots get one more token each, at position lengths[b].

        lengths (B,) are below T, up to where the cache is read, but for slots that nobody uses;
        `level` says that all are T − 1.
        """
        B = len(lengths)
        places = self._of_heads(self.first_places[:B] + lengths)
        mask = None  # added to the scores of all layers: 0 where a key is seen, else −∞
        if not level or self.window is not None:
            key = torch.arange(T, device=lengths.device)
            unseen = key > lengths[:, None]
            if self.window is not None:
                # An unused slot sees something, too: without any key, attention is no number.
                unseen |= lengths.clamp(max=T - 1)[:, None] - key >= self.window
            mask = torch.zeros(B, 1, 1, T, dtype=self.keys.dtype, device=lengths.device)
            mask.masked_fill_(unseen[:, None, None], -math.inf)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            H, (G, Dh) = q.shape[1], k.shape[1:]  # q (B, H, Dh), k and v (B, G, Dh)
            self._store(layer, places, k, v)
            # The query heads of a group stand as rows of one matrix: keys and values are not
            # copied.
            q = q.view(B, G, H // G, Dh)
            keys, values = (store[layer, :B, :, :T] for store in (self.keys, self.values))
            return look_up(q, keys, values, mask).reshape(B, H, Dh)

        return attend


def look_up(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q (B, G, R, Dh) over keys and values (B, G, T, Dh) under an additive mask."""
    if q.is_cuda:
        with sdpa_kernel(MASKED):
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    if q.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    # For so few rows the definition is faster on a CPU than its fused form.
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-1, -2))
    return torch.matmul((scores if mask is None else scores + mask).softmax(-1), values)
