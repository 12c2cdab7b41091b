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
# likeliest token: logits divided, multiplied, chosen from both (4 each), a mask (1), and a copy of
# 16-bit logits in fp32.
DRAW_BYTES, GREEDY_BYTES, COPY_BYTES = 25, 13, 4
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
    width = dtype.itemsize
    with torch.device("meta"):
        weights = sum(p.numel() for p in Policy(config, "torch").parameters()) * width
    cache = 2 * config.num_hidden_layers * slots * T * G * Dh * width
    # A block's input, what is added to it, queries, keys and values, what they were turned from,
    # the halves of the MLP, and one activated. Turning itself needs less.
    block = (2 * D + (H + 2 * G) * Dh + (H + G) * Dh + 3 * F) * width
    angles = 3 * Dh // 2 * 4  # of a position: cosines twice, sines
    prompts = row_tokens * (block + angles + ROW_BYTES)
    likeliest = GREEDY_BYTES + (COPY_BYTES if width < 4 else 0)
    step = slots * V * (width + (likeliest if greedy else DRAW_BYTES))
    # Rotary angles, tokens that were seen, chances.
    held = config.max_position_embeddings * angles + slots * (V + (0 if greedy else T * 8))
    return {"weights": weights, "cache": cache, "passes": max(prompts, step) + held}


def said(parts: dict[str, int], slots: int, T: int) -> str:
    """The same for people."""
    cache = f"cache {parts['cache'] / GIB:,.1f} ({slots} slots of {T:,} tokens)"
    return (
        f"memory in GiB: weights {parts['weights'] / GIB:,.1f}, {cache}, passes "
        f"{parts['passes'] / GIB:,.1f}; together {sum(parts.values()) / GIB:,.1f}"
    )
