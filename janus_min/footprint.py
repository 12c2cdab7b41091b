"""Memory that generation takes, known before the run: weights, cache, and what passes need.

Added up from shapes, as the largest moments of `decoder.py` and `sampling.py` have them; a test
holds it against what a run allocates. What CUDA and the libraries take for themselves, about a GiB,
is not in it.
"""

import torch

from janus_min.config import ModelConfig
from janus_min.model import Policy

GIB = 1 << 30
# Bytes for each entry of the vocabulary, beside the logits as the model gives them. A draw: logits
# in fp32, sorted probabilities (4 each), their ids (8), sums, differences (4 each), a mask (1). The
# likeliest token: logits in fp32, divided, multiplied, chosen from both (4 each), a mask (1).
DRAW_BYTES, GREEDY_BYTES = 25, 17
ROW_BYTES = 44  # of a token: its numbers in `row.Row`


def footprint(
    config: ModelConfig,
    dtype: torch.dtype,
    slots: int,
    T: int,
    row_tokens: int,
    greedy: bool = False,
) -> dict[str, int]:
    """Bytes of each part, for `slots` requests of up to T tokens, whose prompts are computed in
    rows of `row_tokens`.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, G, Dh = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width, wide = dtype.itemsize, max(dtype.itemsize, 4)  # wide: what is turned is at least fp32
    with torch.device("meta"):
        weights = sum(p.numel() for p in Policy(config, "torch").parameters()) * width
    cache = 2 * config.num_hidden_layers * slots * T * G * Dh * width
    # A block's input, its queries, keys and values, and then: the same with their halves swapped
    # and what both are turned into, or, when they are turned, the sum, and the halves of the MLP,
    # one activated, and their product.
    qkv, qk = (H + 2 * G) * Dh, (H + G) * Dh
    turning = (D + 2 * qkv) * width + 2 * qk * wide
    mlp = (2 * D + qkv + qk + 4 * F) * width
    prompts = row_tokens * (max(turning, mlp) + 2 * Dh * 4 + ROW_BYTES)
    step = slots * V * (width + (GREEDY_BYTES if greedy else DRAW_BYTES))
    # Rotary angles, tokens that were seen, chances.
    held = 2 * config.max_position_embeddings * Dh * 4 + slots * (V + (0 if greedy else T * 8))
    return {"weights": weights, "cache": cache, "passes": max(prompts, step) + held}


def said(parts: dict[str, int], slots: int, T: int) -> str:
    """The same for people."""
    cache = f"cache {parts['cache'] / GIB:,.1f} ({slots} slots of {T:,} tokens)"
    return (
        f"memory in GiB: weights {parts['weights'] / GIB:,.1f}, {cache}, passes "
        f"{parts['passes'] / GIB:,.1f}; together {sum(parts.values()) / GIB:,.1f}"
    )
