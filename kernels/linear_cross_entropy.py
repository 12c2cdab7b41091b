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

Shapes: N tokens of the row, D width, V vocabulary.
"""

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 22  # logits that exist at a time (16 MiB in fp32), whatever N and V are


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, impl: str) -> Tensor:
    """Log-probability of `targets[i]` given `hidden[i]`, in nats.

    hidden is (N, D), weight (V, D), targets (N,) integers in [−1, V). Returns (N,) in fp32 (fp64
    for fp64 inputs), 0 where the target is −1. Raises ValueError for shapes or an `impl` it does
    not know.
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


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The specification: all N×V logits at once, log-softmax in at least fp32."""
    logits = hidden @ weight.T  # (N, V)
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    picked = logps.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return picked.where(targets >= 0, 0.0)


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


IMPLEMENTATIONS = {"reference": reference, "torch": ChunkedLogps.apply}
