"""Log-probability of each target token, from hidden states and the output head.

    z_i = W h_i                      (V,)   logits of position i, never kept for a whole row
    logp_i = z_i[t_i] − log Σ_v exp z_i[v]

Derivation of the backward pass, for an upstream gradient g_i per token (SFT, DPO and ORPO differ in
nothing else):

    ∂logp_i/∂z_i = e(t_i) − p_i,   p_i = softmax(z_i),   e(t) the one-hot vector of t
    dz_i = g_i · (e(t_i) − p_i)
    dh_i = Wᵀ dz_i
    dW   = Σ_i dz_i h_iᵀ

The logits are computed again in the backward pass instead of being stored: g_i is not known before,
and dW is a sum over tokens that cannot be rescaled afterwards. The one number kept per token is its
log-sum-exp. Positions without a target (−1) cost nothing: no logits are computed there.

`reference` is the specification. On a CPU, `ChunkedLogps` takes some tokens at a time. On a GPU,
`by_slice` takes some of the vocabulary at a time, with all tokens: its matrix products are as large
as they can be, dW is written once, each slice of it summed over all tokens within one product, and
what accumulates over slices is dh, (M, D), which is kept in fp32 and in training smaller than dW.
Products are PyTorch's, as nobody's are faster; two Triton kernels do what lies between them.

Shapes: N tokens of the row, M of them with a target, D width, V vocabulary.
"""

import torch
from torch import Tensor

from kernels import launch
from kernels.launch import jit, tl

CHUNK_LOGITS = 1 << 22  # logits at a time on a CPU (16 MiB in fp32), whatever N and V are
SLICE_LOGITS = 1 << 26  # the same on a GPU (128 MiB in bf16)
BLOCK = 4096  # logits of one token that a kernel has in registers


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The specification: all N×V logits at once, log-softmax in at least fp32."""
    logits = hidden @ weight.T  # (N, V)
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    picked = logps.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return picked.where(targets >= 0, 0.0)


# On a CPU


class ChunkedLogps(torch.autograd.Function):
    """`reference` with CHUNK_LOGITS logits at a time, and only where there is a target."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        scored = (targets >= 0).nonzero()[:, 0]  # (M,) positions with a target
        h, t = hidden[scored], targets[scored]
        lse = h.new_empty(len(scored), dtype=torch.promote_types(h.dtype, torch.float32))
        picked = torch.empty_like(lse)
        for rows in _chunks(len(scored), weight.shape[0]):
            logits = (h[rows] @ weight.T).to(lse.dtype)
            picked[rows] = logits.gather(1, t[rows, None])[:, 0]
            lse[rows] = logits.logsumexp(-1)
        ctx.save_for_backward(h, weight, t, scored, lse)
        ctx.N = len(targets)
        return lse.new_zeros(ctx.N).index_copy_(0, scored, picked - lse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        h, weight, t, scored, lse = ctx.saved_tensors
        g = grad[scored]
        dh = torch.empty_like(h)
        dweight = torch.zeros_like(weight, dtype=lse.dtype)  # fp32: chunks add up without rounding
        minus_one = lse.new_full((len(scored), 1), -1.0)
        for rows in _chunks(len(scored), weight.shape[0]):
            dz = (h[rows] @ weight.T).to(lse.dtype)
            dz = dz.sub_(lse[rows, None]).exp_()  # p_i
            dz.scatter_add_(1, t[rows, None], minus_one[rows])  # p_i − e(t_i), before any rounding
            dz = dz.mul_(-g[rows, None]).to(h.dtype)
            dh[rows] = dz @ weight
            if weight.dtype == dweight.dtype:
                dweight.addmm_(dz.T, h[rows])
            else:
                dweight += dz.T @ h[rows]
        dhidden = h.new_zeros(ctx.N, h.shape[1]).index_copy_(0, scored, dh)
        return dhidden, dweight.to(weight.dtype), None


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + step) for start in range(0, tokens, step)]


# On a GPU


@jit
def _absorb(t_z, t_targets, t_top, t_total, t_picked, first, width, BLOCK: tl.constexpr):
    """Adds one token's logits from `first` on, (M, width), to its running softmax.

    top is its largest logit so far and total = Σ exp(z − top), as in `attention.py`; picked is the
    logit of its target.
    """
    token = tl.program_id(0).to(tl.int64)
    top, total = tl.load(t_top + token), tl.load(t_total + token)
    t_row = t_z + token * width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(t_row + column, mask=column < width, other=float("-inf"))
        z = z.to(tl.float32)
        new = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(z - new), 0)
        top = new
    tl.store(t_top + token, top)
    tl.store(t_total + token, total)
    place = tl.load(t_targets + token) - first
    here = (place >= 0) & (place < width)
    picked = tl.load(t_row + place, mask=here, other=0.0)
    tl.store(t_picked + token, picked.to(tl.float32), mask=here)


@jit
def _differentiate(t_z, t_targets, t_lse, t_g, first, width, BLOCK: tl.constexpr):
    """Puts dz = g · (e(t) − p) in the place of a block of one token's logits from `first` on."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    t_block = t_z + token * width + column
    z = tl.load(t_block, mask=inside, other=float("-inf")).to(tl.float32)
    p = tl.exp(z - tl.load(t_lse + token))
    one_hot = (first + column == tl.load(t_targets + token)).to(tl.float32)
    dz = tl.load(t_g + token) * (one_hot - p)  # the difference in fp32, before any rounding
    tl.store(t_block, dz.to(t_z.dtype.element_ty), mask=inside)


@torch.library.custom_op("janus_min::token_logps", mutates_args=())
def _token_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p and the log-sum-exp of each token, both (N,) in fp32 and 0 without a target."""
    launch.require_triton("token_logps", hidden, weight, targets)
    launch.require_dtypes("token_logps", hidden=hidden, weight=weight)
    require_targets(targets, len(weight))
    scored, h, t = _scored(hidden, targets)
    picked = h.new_empty(len(t), dtype=torch.float32)
    top = torch.full_like(picked, -1e30)  # finite, so that top − new is a number
    total = torch.zeros_like(picked)
    with torch.cuda.device_of(h):
        for columns in slices(len(t), len(weight)):
            z = h @ weight[columns].T  # (M, width)
            _absorb[(len(t),)](
                z, t, top, total, picked, columns.start, z.shape[1], BLOCK,
                num_warps=8, **launch.FUSED,
            )  # fmt: skip
            del z  # before the next one is made
    lse = top + total.log()
    zeros = top.new_zeros(len(targets))
    return zeros.index_copy(0, scored, picked - lse), zeros.index_copy(0, scored, lse)


@_token_logps.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logps = hidden.new_empty(len(targets), dtype=torch.float32)
    return logps, torch.empty_like(logps)


@torch.library.custom_op("janus_min::token_logps_backward", mutates_args=())
def _token_logps_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """dhidden (N, D) and dweight (V, D)."""
    scored, h, t = _scored(hidden, targets)
    g, lse = grad[scored], lse[scored]
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    dh = None
    with torch.cuda.device_of(h):
        for columns in slices(len(t), len(weight)):
            z = h @ weight[columns].T
            _differentiate[(len(t), -(-z.shape[1] // BLOCK))](
                z, t, lse, g, columns.start, z.shape[1], BLOCK, num_warps=8, **launch.FUSED
            )
            torch.mm(z.T, h, out=dweight[columns])
            part = z @ weight[columns]
            dh = part.float() if dh is None else dh.add_(part)
            del z, part
    dhidden = hidden.new_zeros(hidden.shape)
    return dhidden.index_copy_(0, scored, dh.to(h.dtype)), dweight


@_token_logps_backward.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _scored(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions have a target, (M,), their hidden states and targets. Waits for the GPU."""
    scored = (targets >= 0).nonzero()[:, 0]
    return scored, hidden[scored], targets[scored]


def require_targets(targets: Tensor, vocabulary: int) -> None:
    """Raises ValueError for a target that is not −1 or in the vocabulary. Waits for the GPU."""
    if targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token_logps: targets are {targets.dtype}, must be int32 or int64")
    wrong = (targets < -1) | (targets >= vocabulary)
    if wrong.any():
        found = int(targets[wrong][0])
        raise ValueError(f"token_logps: a target is {found}, must be −1 or below {vocabulary}")


def slices(tokens: int, vocabulary: int) -> list[slice]:
    """The vocabulary in equal slices of about SLICE_LOGITS logits, a multiple of 128 wide."""
    count = max(1, -(-tokens * vocabulary // SLICE_LOGITS))
    width = -(-vocabulary // count // 128) * 128
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _save(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_token_logps_backward(grad, *ctx.saved_tensors), None


_token_logps.register_autograd(_gradients, setup_context=_save)


def _forward_bytes(hidden: Tensor, weight: Tensor, targets: Tensor) -> int:
    width = slices(len(hidden), len(weight))[0].stop
    return hidden.nbytes + len(hidden) * (width * hidden.itemsize + 5 * 4 + 2 * 8)


def _backward_bytes(grad: Tensor, hidden: Tensor, weight: Tensor, *_: Tensor) -> int:
    width = slices(len(hidden), len(weight))[0].stop
    sums = hidden.numel() * (4 + hidden.itemsize)  # dh in fp32, and a slice's share
    return hidden.nbytes + sums + len(hidden) * (width * hidden.itemsize + 2 * 4 + 2 * 8)


# Bytes that an operation allocates besides its results, by its inputs, if every token has a target.
WORKSPACES = {
    torch.ops.janus_min.token_logps.default: _forward_bytes,
    torch.ops.janus_min.token_logps_backward.default: _backward_bytes,
}


def by_slice(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`reference` with a slice of the vocabulary at a time, and only where there is a target."""
    return _token_logps(hidden, weight, targets)[0]


# The operation


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, impl: str) -> Tensor:
    """Log-probability of `targets[i]` given `hidden[i]`, in nats.

    hidden is (N, D), weight (V, D), targets (N,) integers in [−1, V). `impl` is "triton" on a GPU,
    "torch" on a CPU, or "reference". Returns (N,) in fp32 (fp64 for fp64 inputs), 0 where the
    target is −1. Raises ValueError for what the implementation does not take.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"token_logps: impl is {impl!r}, must be one of {sorted(IMPLEMENTATIONS)}")
    N, D = hidden.shape
    if weight.ndim != 2 or weight.shape[1] != D or targets.shape != (N,):
        raise ValueError(
            f"token_logps: hidden is {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets "
            f"{tuple(targets.shape)}; needed are (N, D), (V, D) and (N,)"
        )
    return IMPLEMENTATIONS[impl](hidden, weight, targets)


IMPLEMENTATIONS = {"reference": reference, "torch": ChunkedLogps.apply, "triton": by_slice}
