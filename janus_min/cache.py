"""Keys and values of what was computed, at fixed places: B slots of T positions each.

A slot belongs to one request at a time. Its first positions hold the request's prompt, and still do
when the request has ended: the next one with the same prompt finds it there (`engine.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_min.config import ModelConfig
from kernels.attention import attention
from kernels.tiles import Tiles

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v -> mixed values


class Cache:
    """Keys and values of all layers, (layers, B, T, G, Dh) each."""

    def __init__(self, config: ModelConfig, B: int, T: int, dtype: torch.dtype, device: str):
        shape = (config.num_hidden_layers, B, T, config.num_key_value_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.window = config.sliding_window
        self.first_places = torch.arange(B, device=device) * T  # of the slots, all in one row

    def copy(self, source: int, slots: list[int], count: int) -> None:
        """Copies the first `count` positions of one slot into others."""
        for store in (self.keys, self.values):
            for slot in slots:
                store[:, slot, :count] = store[:, source, :count]

    def prefill(
        self, slots: list[int], lengths: list[int], key_end: Tensor | Tiles, impl: str
    ) -> Attend:
        """What attends while prompts are computed: as in training, in one packed row of documents
        of these lengths; their keys and values go to the beginning of these slots.
        """

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pieces = zip(slots, k.split(lengths), v.split(lengths))
            for slot, k_b, v_b in pieces:
                self.keys[layer, slot, : len(k_b)] = k_b
                self.values[layer, slot, : len(v_b)] = v_b
            return attention(q, k, v, key_end, impl)

        return attend

    def step(self, lengths: Tensor, T: int, level: bool = False) -> Attend:
        """What attends while the first B slots get one more token each, at position lengths[b].

        lengths (B,); all of them are below T, up to where the cache is read; `level` says that all
        are T − 1.
        """
        B = len(lengths)
        places = self.first_places[:B] + lengths
        seen = None
        if not level or self.window is not None:
            key = torch.arange(T, device=lengths.device)
            seen = key <= lengths[:, None]
            if self.window is not None:
                seen &= lengths[:, None] - key < self.window
            seen = seen[:, None, None]  # (B, 1, 1, T)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            H, (G, Dh) = q.shape[1], k.shape[1:]  # q (B, H, Dh), k and v (B, G, Dh)
            for store, new in ((self.keys, k), (self.values, v)):
                store[layer].view(-1, G, Dh).index_copy_(0, places, new)
            # The query heads of a group stand as rows of one matrix: keys and values are not
            # copied.
            mixed = F.scaled_dot_product_attention(
                q.view(B, G, H // G, Dh),
                self.keys[layer, :B, :T].transpose(1, 2),
                self.values[layer, :B, :T].transpose(1, 2),
                attn_mask=seen,
            )
            return mixed.reshape(B, H, Dh)

        return attend
