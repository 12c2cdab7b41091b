"""Causal attention over a packed row: several documents end to end, each blind to the others.

Which keys a query sees is one integer per key. `key_end[k]` is the first query that may not see
key k, so that

    query q sees key k   ⇔   k ≤ q < key_end[k]

and packing, preference pairs with a shared prompt and the sliding window of Mistral (arXiv
2310.06825, section 2) are three ways to fill in that vector; the operation itself is always

    S = Q Kᵀ / √Dh   where q sees k, −∞ elsewhere
    P = softmax(S)   of each row
    O = P V          (Eq. 1 of arXiv 1706.03762)

`reference` is the specification. The Triton kernels compute the same without S or P in memory, and
visit only tiles of S that somebody sees (`tiles.py`).

Forward (arXiv 2205.14135, Algorithm 1), for one query. Over the tiles so far, m is the largest
score, total = Σ exp(s − m) and acc = Σ exp(s − m) v. A tile with scores s raises m to
m′ = max(m, max s), so what was summed under m is first multiplied by exp(m − m′). At the end
O = acc / total, and of the softmax nothing is kept but L = m + log total, since P = exp(S − L).
Scores are multiplied by log₂ e as well, so that exp becomes exp2, which is what the hardware has,
and L is in base 2.

Backward (arXiv 2307.08691, Algorithm 2). Given dO, the chain rule says

    dV = Pᵀ dO
    dP = dO Vᵀ
    dS = P ∘ (dP − δ)
    dQ = dS K / √Dh
    dK = dSᵀ Q / √Dh

where softmax's own derivative, dS_k = P_k (dP_k − Σ_j P_j dP_j), gives for each query
δ = Σ_j P_j dP_j = Σ_j P_j (dO · v_j) = dO · O. One kernel goes along the keys of a block of queries
and sums dQ, another along the queries and query heads of a block of keys and sums dK and dV. P is
computed twice, but no two programs add to one number: every run gives the same bits. δ is that of
O as it was rounded: in 16 bits this costs dQ some digits if all keys lie far from 0 together.

Shapes: N tokens in the row, H query heads, G key/value heads (query head h reads key/value head
h // (H/G)), Dh head width. Layout is (N, heads, Dh) throughout. In kernels, t_ is a tensor in
memory and b_ a block of it in registers.
"""

import torch
from torch import Tensor

from kernels import launch, tiles
from kernels.by_document import by_document
from kernels.launch import aligned, described, described_vector, flat, heads, jit, tl
from kernels.tiles import Tiles

HEAD_WIDTHS = (64, 128)


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


# Kernels


@jit
def _block(t_tiles, H: tl.constexpr, G: tl.constexpr, Dh: tl.constexpr):
    """What a program works on: its head, where that is in a row of queries and of keys, where its
    block of queries begins, and the two runs of tiles that the block sees."""
    program = tl.program_id(0).to(tl.int64)
    h = (program % H).to(tl.int32)
    t_line = t_tiles + program // H * 7
    one = tl.load(t_line + 1), tl.load(t_line + 2), tl.load(t_line + 3)
    two = tl.load(t_line + 4), tl.load(t_line + 5), tl.load(t_line + 6)
    return h, h * Dh, h // (H // G) * Dh, tl.load(t_line), one, two


@jit
def _tile(i, one, two, BLOCK_K: tl.constexpr):
    """Where the i-th tile of a block of queries begins, and whether it needs a mask.

    A run of tiles is (where it begins, how many are seen whole, how many there are).
    """
    j = i - one[2]
    k0 = tl.where(j < 0, one[0] + i * BLOCK_K, two[0] + j * BLOCK_K)
    return k0, tl.where(j < 0, i >= one[1], j >= two[1])


@jit
def _seen(queries, keys, t_key_end, N):
    """(BLOCK_Q, BLOCK_K): which queries see which keys. Nobody sees keys from N on."""
    ends = tl.load(t_key_end + keys, mask=keys < N, other=0)
    return (keys[None, :] <= queries[:, None]) & (queries[:, None] < ends[None, :])


@jit
def _forward(
    t_q, t_k, t_v, t_key_end, t_tiles, t_o, t_lse, N, N_lse, scale,
    H: tl.constexpr, G: tl.constexpr, Dh: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """O and L of one block of queries of one head. Neighbouring programs share keys and values."""
    t_q = described(t_q, N, H * Dh, BLOCK_Q, Dh)
    t_k = described(t_k, N, G * Dh, BLOCK_K, Dh)
    t_v = described(t_v, N, G * Dh, BLOCK_K, Dh)
    h, q_column, k_column, q0, one, two = _block(t_tiles, H, G, Dh)
    queries = q0 + tl.arange(0, BLOCK_Q)
    b_q = t_q.load([q0, q_column])  # (BLOCK_Q, Dh)

    m = tl.full([BLOCK_Q], -1e30, tl.float32)  # finite: −∞ − m is no number while m is −∞
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, Dh], tl.float32)
    for i in range(one[2] + two[2]):
        k0, masked = _tile(i, one, two, BLOCK_K)
        b_k = t_k.load([k0, k_column])  # (BLOCK_K, Dh)
        s = tl.dot(b_q, b_k.T, input_precision="ieee")  # S = Q Kᵀ, to be scaled
        if masked:
            seen = _seen(queries, k0 + tl.arange(0, BLOCK_K), t_key_end, N)
            s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        total = total * shrink + tl.sum(p, 1)
        b_v = t_v.load([k0, k_column])  # (BLOCK_K, Dh)
        acc = tl.dot(p.to(b_v.dtype), b_v, acc * shrink[:, None], input_precision="ieee")
        m = m_new

    inside = queries < N
    total = tl.where(inside, total, 1.0)
    place = (queries.to(tl.int64) * H + h)[:, None] * Dh + tl.arange(0, Dh)[None, :]
    tl.store(t_o + place, (acc / total[:, None]).to(t_o.dtype.element_ty), mask=inside[:, None])
    lse = tl.where(inside, m + tl.log2(total), float("inf"))  # so that P = 0 from N on
    tl.store(t_lse + h.to(tl.int64) * N_lse + queries, lse)


@jit
def _backward_q(
    t_q, t_k, t_v, t_o, t_do, t_key_end, t_tiles, t_lse, t_delta, t_dq, N, N_lse, scale, root,
    H: tl.constexpr, G: tl.constexpr, Dh: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ, and δ, of one block of queries of one head."""
    t_q = described(t_q, N, H * Dh, BLOCK_Q, Dh)
    t_o = described(t_o, N, H * Dh, BLOCK_Q, Dh)
    t_do = described(t_do, N, H * Dh, BLOCK_Q, Dh)
    t_k = described(t_k, N, G * Dh, BLOCK_K, Dh)
    t_v = described(t_v, N, G * Dh, BLOCK_K, Dh)
    h, q_column, k_column, q0, one, two = _block(t_tiles, H, G, Dh)
    queries = q0 + tl.arange(0, BLOCK_Q)

    b_do = t_do.load([q0, q_column])
    b_o = t_o.load([q0, q_column])
    delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)  # δ = dO·O
    tl.store(t_delta + h.to(tl.int64) * N_lse + queries, delta)
    lse = tl.load(t_lse + h.to(tl.int64) * N_lse + queries)
    b_q = t_q.load([q0, q_column])
    dq = tl.zeros([BLOCK_Q, Dh], tl.float32)
    for i in range(one[2] + two[2]):
        k0, masked = _tile(i, one, two, BLOCK_K)
        b_k = t_k.load([k0, k_column])
        s = tl.dot(b_q, b_k.T, input_precision="ieee")
        p = tl.exp2(s * scale - lse[:, None])  # P = exp(S − L)
        if masked:
            seen = _seen(queries, k0 + tl.arange(0, BLOCK_K), t_key_end, N)
            p = tl.where(seen, p, 0.0)
        b_v = t_v.load([k0, k_column])
        dp = tl.dot(b_do, b_v.T, input_precision="ieee")  # dP = dO Vᵀ
        ds = p * (dp - delta[:, None])  # dS = P ∘ (dP − δ)
        dq = tl.dot(ds.to(b_k.dtype), b_k, dq, input_precision="ieee")  # dQ = dS K / √Dh

    place = (queries.to(tl.int64) * H + h)[:, None] * Dh + tl.arange(0, Dh)[None, :]
    tl.store(t_dq + place, (dq * root).to(t_dq.dtype.element_ty), mask=(queries < N)[:, None])


@jit
def _backward_kv(
    t_q, t_k, t_v, t_do, t_key_end, t_tiles, t_lse, t_delta, t_dk, t_dv, N, N_lse, scale, root,
    H: tl.constexpr, G: tl.constexpr, Dh: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys of one head, summed over the query heads that read it.

    Sᵀ, Pᵀ and dSᵀ are computed, with keys along their rows.
    """
    t_q = described(t_q, N, H * Dh, BLOCK_Q, Dh)
    t_do = described(t_do, N, H * Dh, BLOCK_Q, Dh)
    t_k = described(t_k, N, G * Dh, BLOCK_K, Dh)
    t_v = described(t_v, N, G * Dh, BLOCK_K, Dh)
    t_lse = described_vector(t_lse, H * N_lse, BLOCK_Q)
    t_delta = described_vector(t_delta, H * N_lse, BLOCK_Q)
    program = tl.program_id(0).to(tl.int64)
    g = (program % G).to(tl.int32)
    t_line = t_tiles + program // G * 3
    k0, smallest, largest = tl.load(t_line), tl.load(t_line + 1), tl.load(t_line + 2)
    keys = k0 + tl.arange(0, BLOCK_K)
    inside = keys < N
    ends = tl.load(t_key_end + keys, mask=inside, other=0)

    b_k = t_k.load([k0, g * Dh])  # (BLOCK_K, Dh)
    b_v = t_v.load([k0, g * Dh])
    dk = tl.zeros([BLOCK_K, Dh], tl.float32)
    dv = tl.zeros([BLOCK_K, Dh], tl.float32)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        for q0 in range(k0, largest, BLOCK_Q):
            b_q = t_q.load([q0, h * Dh])  # (BLOCK_Q, Dh)
            s = tl.dot(b_k, b_q.T, input_precision="ieee")  # Sᵀ = K Qᵀ
            p = tl.exp2(s * scale - t_lse.load([h * N_lse + q0])[None, :])
            if (q0 < k0 + BLOCK_K) | (q0 + BLOCK_Q > smallest):
                queries = q0 + tl.arange(0, BLOCK_Q)
                seen = (keys[:, None] <= queries[None, :]) & (queries[None, :] < ends[:, None])
                p = tl.where(seen, p, 0.0)
            b_do = t_do.load([q0, h * Dh])
            dv = tl.dot(p.to(b_do.dtype), b_do, dv, input_precision="ieee")  # dV = Pᵀ dO
            dp = tl.dot(b_v, b_do.T, input_precision="ieee")  # dPᵀ = V dOᵀ
            ds = p * (dp - t_delta.load([h * N_lse + q0])[None, :])
            dk = tl.dot(ds.to(b_q.dtype), b_q, dk, input_precision="ieee")  # dK = dSᵀ Q / √Dh

    place = (keys.to(tl.int64) * G + g)[:, None] * Dh + tl.arange(0, Dh)[None, :]
    tl.store(t_dk + place, (dk * root).to(t_dk.dtype.element_ty), mask=inside[:, None])
    tl.store(t_dv + place, dv.to(t_dv.dtype.element_ty), mask=inside[:, None])


# The operation and its gradient, as PyTorch knows them


def tile_tables(key_end: Tensor, dtype: torch.dtype) -> Tiles:
    """The tables that kernels for q, k and v of this type need, once for all layers of a row.

    key_end is (N,) integers. Raises ValueError unless k < key_end[k] ≤ N for every k.
    """
    return Tiles(*_tile_tables(key_end, dtype))


@torch.library.custom_op("janus_min::tile_tables", mutates_args=())
def _tile_tables(key_end: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    tiles.require_key_end(key_end)
    forward, _, backward_kv = launch.attention(dtype, key_end.device)
    ends = key_end.to(torch.int32, copy=True)
    queries = tiles.by_query(ends, forward.block_q, forward.block_k)
    return ends, queries, tiles.by_key(ends, backward_kv.block_k)


@_tile_tables.register_fake
def _(key_end: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    forward, _, backward_kv = launch.attention(dtype, key_end.device)
    lines = [-(-len(key_end) // block) for block in (forward.block_q, backward_kv.block_k)]
    ends = torch.empty_like(key_end, dtype=torch.int32)
    return ends, ends.new_empty(lines[0], 7), ends.new_empty(lines[1], 3)


@torch.library.custom_op("janus_min::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_end: Tensor, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """O (N, H, Dh), and L (H, N rounded up to whole blocks) in base 2."""
    require_kernels(q, k, v, Tiles(key_end, queries, keys))
    q, k, v = map(aligned, (q, k, v))
    N, H, Dh = q.shape
    how = launch.attention(q.dtype, q.device).forward
    N_lse = len(queries) * how.block_q
    o, lse = torch.empty_like(q), q.new_empty(H, N_lse, dtype=torch.float32)
    with torch.cuda.device_of(q):
        _forward[(len(queries) * H,)](
            heads(q, how.block_q), heads(k, how.block_k), heads(v, how.block_k),
            key_end, queries, o, lse, N, N_lse, launch.LOG2_E / Dh**0.5, **how.options(q, k),
        )  # fmt: skip
    return o, lse


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, key_end: Tensor, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    # Of any length: `len` would make it a constant of a compiled graph.
    N_lse = queries.shape[0] * launch.attention(q.dtype, q.device).forward.block_q
    return q.new_empty(q.shape), q.new_empty(q.shape[1], N_lse, dtype=torch.float32)


@torch.library.custom_op("janus_min::attention_backward", mutates_args=())
def _attention_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    key_end: Tensor, queries: Tensor, keys: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dQ, dK, dV."""
    do, q, k, v = map(aligned, (do, q, k, v))
    (N, H, Dh), G, N_lse = q.shape, k.shape[1], lse.shape[1]
    dq, dk, dv, delta = map(torch.empty_like, (q, k, v, lse))
    _, along_k, along_q = launch.attention(q.dtype, q.device)
    scale, root = launch.LOG2_E / Dh**0.5, 1 / Dh**0.5
    with torch.cuda.device_of(q):
        rows, columns = along_k.block_q, along_k.block_k
        _backward_q[(len(queries) * H,)](
            heads(q, rows), heads(k, columns), heads(v, columns), heads(o, rows),
            heads(do, rows), key_end, queries, lse, delta, dq, N, N_lse, scale, root,
            **along_k.options(q, k),
        )  # fmt: skip
        rows, columns = along_q.block_q, along_q.block_k
        _backward_kv[(len(keys) * G,)](
            heads(q, rows), heads(k, columns), heads(v, columns), heads(do, rows), key_end,
            keys, flat(lse, rows), flat(delta, rows), dk, dv, N, N_lse, scale, root,
            **along_q.options(q, k),
        )  # fmt: skip
    return dq, dk, dv


@_attention_backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *tables = inputs
    ctx.save_for_backward(q, k, v, *output, *tables)


def _gradients(ctx, do: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(do, *ctx.saved_tensors), None, None, None


_attention.register_autograd(_gradients, setup_context=_save)


def _delta_bytes(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *_: Tensor
) -> int:
    return lse.nbytes


# Bytes that an operation allocates besides its results, by its inputs.
WORKSPACES = {torch.ops.janus_min.attention_backward.default: _delta_bytes}


def attention(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor | Tiles, impl: str) -> Tensor:
    """Attention of every token of a row over the tokens that it sees.

    q is (N, H, Dh), k and v are (N, G, Dh), key_end is (N,) integers with k < key_end[k] ≤ N.
    `impl` is "triton" on a GPU, "torch" on a CPU, or "reference"; with "triton", `tile_tables` may
    have been made of key_end before, for many layers. Returns (N, H, Dh) in q's dtype. Raises
    ValueError for what the implementation does not take.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention: impl is {impl!r}, must be one of {sorted(IMPLEMENTATIONS)}")
    (N, H, Dh), G = q.shape, k.shape[1]
    ends = key_end.key_end if isinstance(key_end, Tiles) else key_end
    if k.shape != (N, G, Dh) or v.shape != k.shape or ends.shape != (N,) or H % G:
        raise ValueError(
            f"attention: q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, key_end "
            f"{tuple(ends.shape)}; needed are (N, H, Dh), (N, G, Dh) twice and (N,), "
            "H a multiple of G"
        )
    if impl == "reference":
        tiles.require_key_end(ends)
    return IMPLEMENTATIONS[impl](q, k, v, key_end if impl == "triton" else ends)


def by_tile(q: Tensor, k: Tensor, v: Tensor, key_end: Tensor | Tiles) -> Tensor:
    """`reference` without S and P in memory: the kernels above."""
    if len(q) == 0:
        return torch.empty_like(q)
    tables = key_end if isinstance(key_end, Tiles) else tile_tables(key_end, q.dtype)
    return _attention(q, k, v, *tables)[0]


def require_kernels(q: Tensor, k: Tensor, v: Tensor, tables: Tiles) -> None:
    """Raises ValueError for what the kernels cannot compute."""
    launch.require_triton("attention", q, k, v, *tables)
    if q.shape[2] not in HEAD_WIDTHS:
        raise ValueError(
            f"attention: heads are {q.shape[2]} wide, impl 'triton' has {HEAD_WIDTHS[0]} and "
            f"{HEAD_WIDTHS[1]}: use impl 'torch'"
        )
    launch.require_dtypes("attention", q=q, k=k, v=v)
    if len(tables.queries) != -(-len(q) // launch.attention(q.dtype, q.device).forward.block_q):
        raise ValueError(f"attention: the tile tables were not made for inputs in {q.dtype}")


IMPLEMENTATIONS = {"reference": reference, "torch": by_document, "triton": by_tile}
