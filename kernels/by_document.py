"""Attention on a CPU: the row is cut into documents that do not see each other.

PyTorch's fused attention takes each of them alone, so that no mask as large as the row ever exists.
What is computed is `reference` in `attention.py`.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tiles import require_key_end

QUERY_CHUNK = 1024  # queries that share one explicit mask, where a mask is needed at all
FEW_ENDS = 4  # in a pair with a shared prompt keys end at two places; in a window, at every query


def documents(key_end: Tensor) -> list[tuple[int, bool]]:
    """Cuts a row into the shortest blocks that do not see each other.

    Returns the length of each block and whether it is plainly causal (every key is seen until the
    block's end), in order; the lengths sum to N.
    """
    ends_of_keys = key_end.cpu().numpy()  # one copy to the host, none per block
    # A block may end before token e exactly if no key before e is still visible at e.
    last_reader = np.maximum.accumulate(ends_of_keys)
    ends = np.flatnonzero(last_reader <= np.arange(1, len(ends_of_keys) + 1)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    # The largest key_end of a block is its end: the block is causal if the smallest is, too.
    causal = np.minimum.reduceat(ends_of_keys, starts) == ends
    return list(zip((ends - starts).tolist(), causal.tolist()))


def by_document(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor) -> Tensor:
    """`reference` without the N×N mask: PyTorch's fused attention, one block at a time."""
    require_key_end(key_end)
    blocks = documents(key_end)
    lengths = [length for length, _ in blocks]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, N, Dh)
    # split, not slicing: its backward writes each gradient once instead of one whole row per block.
    pieces, start = [], 0
    for q_b, k_b, v_b, (length, causal) in zip(
        q.split(lengths, dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2), blocks
    ):
        if causal:
            pieces.append(
                F.scaled_dot_product_attention(q_b, k_b, v_b, is_causal=True, enable_gqa=True)
            )
        else:
            pieces.append(_masked(q_b, k_b, v_b, key_end[start : start + length] - start))
        start += length
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)


def _masked(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor) -> Tensor:
    """One block, (1, heads, L, Dh), whose keys end at different queries.

    The queries are cut into pieces, each of which attends to the keys that any of its queries sees:
    of a pair with a shared prompt, the rejected branch skips the chosen one.
    """
    pieces = []
    for q_p, (start, stop) in zip(*_query_pieces(q, key_end)):
        seen_by_some = key_end[:stop] > start
        ends = key_end[:stop][seen_by_some]
        if start == 0 and int(ends.min()) >= stop:  # the first branch, with all before it
            mixed = F.scaled_dot_product_attention(
                q_p, k[:, :, :stop], v[:, :, :stop], is_causal=True, enable_gqa=True
            )
        else:
            keys = seen_by_some.nonzero()[:, 0]
            query = torch.arange(start, stop, device=q.device)[:, None]
            mixed = F.scaled_dot_product_attention(
                q_p,
                k.index_select(2, keys),
                v.index_select(2, keys),
                attn_mask=(keys <= query) & (query < ends),
                enable_gqa=True,
            )
        pieces.append(mixed)
    return torch.cat(pieces, dim=2)


def _query_pieces(q: Tensor, key_end: Tensor) -> tuple[tuple[Tensor, ...], list[tuple[int, int]]]:
    """The queries of a block, cut where keys end, if these are few places, and at QUERY_CHUNK."""
    L, ends = len(key_end), key_end.unique().tolist()
    cuts = {0, L, *range(0, L, QUERY_CHUNK)} | (set(ends) if len(ends) <= FEW_ENDS else set())
    spans = list(pairwise(sorted(cuts)))
    return q.split([stop - start for start, stop in spans], dim=2), spans
