"""AdamW (arXiv 1711.05101), also with 8-bit moments (arXiv 2110.02861), and the learning rate, a
pure function of the step."""

import math

import torch
from torch import Tensor, nn

from janus_min.parallel import local

BLOCK = 256  # neighbours in a row that share one scale
CHUNK = 1 << 24  # numbers of a matrix whose moments are 32-bit at a time


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Rises linearly, peak/warmup at step 0 and `peak` at step warmup − 1, then falls along half a
    cosine; 0 is what the step after the last one would get, so that no step is wasted on it.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(
    name: str, model: nn.Module, *, weight_decay: float, beta2: float
) -> torch.optim.Optimizer:
    """`adamw` or `adamw8bit` over fp32 parameters; weight decay only on matrices, not on norms.

    Raises AssertionError for other dtypes: at a rate of 5e-6 bf16 weights round every update away.
    """
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, f"{key} is {parameter.dtype}, needed is float32"
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    settings = dict(lr=0.0, betas=(0.9, beta2), eps=1e-8)
    if name == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=True)
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return AdamW8bit(groups, **settings, in_32_bit=embeddings)


def empty_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, step: int
) -> dict[str, Tensor]:
    """What the optimizer keeps for a parameter after `step` steps, but for its values."""
    if isinstance(optimizer, AdamW8bit):
        return optimizer.empty_state(parameter, step)
    moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(float(step), device=parameter.device)} | moments


# 8-bit moments


def dynamic_code(signed: bool) -> Tensor:
    """The 256 numbers that 8 bits stand for, sorted: dense near 0, where most moments are.

    Dynamic tree quantization (arXiv 2110.02861, section 1.3): a sign, e zeros that mean 10^−e, a
    one, and in the bits left over a place among equal parts of [0.1, 1]; besides them 0 and 1.
    Second moments have no sign and use its bit for the place.

    Note: bitsandbytes rounds the smallest second moments to 0. If such a weight's gradient shrinks,
    its next update is divided by almost nothing (the zero-point problem of arXiv 2309.01507). Here
    they round up to the smallest number above 0.
    """
    bits = 6 if signed else 7  # for the zeros and the place
    parts = []
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (bits - e) + 1, dtype=torch.float64)
        parts.append(10.0**-e * (edges[1:] + edges[:-1]) / 2)
    positive = torch.cat(parts)
    values = [positive, -positive] if signed else [positive]
    return torch.cat([*values, torch.tensor([0.0, 1.0])]).sort().values.float()


def quantise(x: Tensor, code: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """x (rows, width) fp32 as bytes of the same shape, and its blocks' scales, (rows, blocks).

    A block is BLOCK neighbours in one row, divided by the largest of them: whoever holds a row has
    its scales, so that neither the number of ranks nor a resume at another one changes anything.
    """
    rows, width = x.shape
    blocks = nn.functional.pad(x, (0, -width % BLOCK)).view(rows, -1, BLOCK)
    scale = blocks.abs().amax(-1)  # (rows, blocks)
    share = blocks / scale.clamp(min=torch.finfo(x.dtype).tiny)[..., None]
    nearest = torch.bucketize(share, (code[1:] + code[:-1]) / 2, out_int32=True)
    if not signed:
        nearest = nearest.clamp(min=1)  # no second moment becomes 0 by rounding
    return nearest.view(rows, -1)[:, :width].to(torch.uint8), scale


def dequantise(codes: Tensor, scale: Tensor, code: Tensor) -> Tensor:
    """The numbers that `quantise` stored, up to its rounding."""
    per_number = scale.repeat_interleave(BLOCK, dim=1)[:, : codes.shape[1]]
    return code[codes.int()] * per_number


def update_8bit(
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    codes: tuple[Tensor, Tensor],
    group: dict,
    step: int,
) -> None:
    """One step of AdamW on rows of a matrix, whose moments are 8-bit before and after it."""
    with_sign, without = codes
    m = dequantise(state["exp_avg"], state["exp_avg_scale"], with_sign)
    v = dequantise(state["exp_avg_sq"], state["exp_avg_sq_scale"], without)
    adamw_update(p, g, m, v, group, step)
    for key, moment, code in (("exp_avg", m, with_sign), ("exp_avg_sq", v, without)):
        stored, scale = quantise(moment, code, signed=code is with_sign)
        state[key].copy_(stored)
        state[f"{key}_scale"].copy_(scale)


def adamw_update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, group: dict, step: int) -> None:
    """Algorithm 2 of arXiv 1711.05101, step counted from 1, in place.

    m ← β1·m + (1 − β1)·g,   v ← β2·v + (1 − β2)·g²
    p ← p − lr·( m/(1 − β1^t) / (√(v/(1 − β2^t)) + ε) + λ·p )
    """
    (beta1, beta2), lr = group["betas"], group["lr"]
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
    p.mul_(1 - lr * group["weight_decay"]).addcdiv_(m, root, value=-lr / (1 - beta1**step))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW that keeps the moments of matrices in 8 bits, as the paper's `adamw_bnb_8bit`.

    A moment is a quarter as large. Norms stay in 32 bits, and so does the embedding, most of whose
    rows have no gradient in a step (transformers keeps it so for bitsandbytes, too). Weights are
    fp32 masters. Works on each rank's own rows.
    """

    def __init__(self, groups: list[dict], *, in_32_bit: set[Tensor], **settings: object):
        super().__init__(groups, settings)
        self.in_32_bit = in_32_bit
        self.codes: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def empty_state(self, parameter: Tensor, step: int) -> dict[str, Tensor]:
        """Moments of 0, after `step` steps. Divided among the ranks as the parameter is."""
        zeros = torch.zeros_like
        if parameter.ndim < 2 or parameter in self.in_32_bit:
            moments = {"exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter)}
        else:
            blocks = -(-parameter.shape[1] // BLOCK)
            moments = {}
            for key, zero in (("exp_avg", 127), ("exp_avg_sq", 0)):  # where 0 is among the numbers
                moments[key] = torch.full_like(parameter, zero, dtype=torch.uint8)
                moments[f"{key}_scale"] = zeros(parameter[:, :blocks])
        return {"step": torch.tensor(float(step))} | moments

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: Tensor, group: dict) -> None:
        """Updates this rank's rows of one parameter, some at a time: fp32 moments are large."""
        if not self.state[parameter]:
            self.state[parameter] = self.empty_state(parameter, 0)
        state = {key: local(value) for key, value in self.state[parameter].items()}
        step = int(state.pop("step").add_(1))
        p, g = local(parameter), local(parameter.grad)
        if "exp_avg_scale" not in state:
            adamw_update(p, g, state["exp_avg"], state["exp_avg_sq"], group, step)
            return
        if p.device not in self.codes:
            self.codes[p.device] = tuple(dynamic_code(s).to(p.device) for s in (True, False))
        count = max(1, CHUNK // p.shape[1])
        for start in range(0, len(p), count):
            rows = slice(start, start + count)
            part = {key: value[rows] for key, value in state.items()}
            update_8bit(p[rows], g[rows], part, self.codes[p.device], group, step)
