"""Causal attention over a packed row: several documents end to end, each blind to the others.

Which keys a query sees is one integer per key. `key_end[k]` is the first query that may not see
key k, so that

    query q sees key k   ⇔   k ≤ q < key_end[k]

and packing, preference pairs with a shared prompt and the sliding window of Mistral (arXiv
2310.06825, section 2) are three ways to fill in that vector; the operation itself is always

    O = softmax(Q Kᵀ / √Dh + M) V,   M[q, k] = 0 where q sees k, −∞ elsewhere

(Eq. 1 of arXiv 1706.03762). Two implementations compute it: `reference` is the specification,
`torch` cuts the row into its documents, so that no mask as large as the row ever exists.

Shapes: N tokens in the row, H query heads, G key/value heads (query head h reads key/value head
h // (H/G)), Dh head width. Layout is (N, heads, Dh) throughout.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_CHUNK = 1024  # queries that share one explicit mask, where a mask is needed at all
FEW_ENDS = 4  # in a pair with a shared prompt keys end at two places; in a window, at every query


def attention(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor, impl: str) -> Tensor:
    """Attention of every token of a row over the tokens that it sees.

    q is (N, H, Dh), k and v are (N, G, Dh), key_end is (N,) integers with k < key_end[k] ≤ N.
    Returns (N, H, Dh) in q's dtype. Raises ValueError for shapes or an `impl` it does not know.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention: impl is {impl!r}, must be one of {sorted(IMPLEMENTATIONS)}")
    (N, H, Dh), G = q.shape, k.shape[1]
    if k.shape != (N, G, Dh) or v.shape != k.shape or key_end.shape != (N,) or H % G:
        raise ValueError(
            f"attention: q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, key_end "
            f"{tuple(key_end.shape)}; needed are (N, H, Dh), (N, G, Dh) twice and (N,), "
            "H a multiple of G"
        )
    return IMPLEMENTATIONS[impl](q, k, v, key_end)


def reference(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor) -> Tensor:
    """The specification: every score, one mask, softmax in at least fp32. Memory grows with N²."""
    (N, H, Dh), G = q.shape, k.shape[1]
    query = torch.arange(N, device=q.device)[:, None]
    key = torch.arange(N, device=q.device)[None, :]
    seen = (key <= query) & (query < key_end[None, :])  # (N, N)

    grouped = q.reshape(N, G, H // G, Dh)
    scores = torch.einsum("qgrd,kgd->grqk", grouped, k) / Dh**0.5  # (G, H/G, N, N)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("grqk,kgd->qgrd", weights, v).reshape(N, H, Dh)


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
                *(_same_heads(q, x.index_select(2, keys)) for x in (k, v)),
                attn_mask=(keys <= query) & (query < ends),
                enable_gqa=True,
            )
        pieces.append(mixed)
    return torch.cat(pieces, dim=2)


def _same_heads(q: Tensor, x: Tensor) -> Tensor:
    """Keys or values with as many heads as q, on a GPU: with fewer no fused one takes a mask."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1) if q.is_cuda else x


def _query_pieces(q: Tensor, key_end: Tensor) -> tuple[tuple[Tensor, ...], list[tuple[int, int]]]:
    """The queries of a block, cut where keys end, if these are few places, and at QUERY_CHUNK."""
    L, ends = len(key_end), key_end.unique().tolist()
    cuts = {0, L, *range(0, L, QUERY_CHUNK)} | (set(ends) if len(ends) <= FEW_ENDS else set())
    spans = list(pairwise(sorted(cuts)))
    return q.split([stop - start for start, stop in spans], dim=2), spans


IMPLEMENTATIONS = {"reference": reference, "torch": by_document}
