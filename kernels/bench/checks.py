"""Rows and heads of random numbers, and whether our kernels compute them right on this machine.

The rule: against `reference` in fp64, on the same numbers, neither the largest nor the RMS error of
an output or a gradient is more than twice that of `reference` in the inputs' own type. Memory that
kernels write to is filled with NaN before, and a second call must give the same bits.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import linear_cross_entropy
from kernels.attention import attention
from kernels.linear_cross_entropy import token_logps

FLOOR = 1e-6  # smaller errors are nobody's
ALL = slice(None)

# Cases


class Layout(NamedTuple):
    """How a row is divided into documents, or into preference pairs."""

    name: str
    lengths: tuple[int, ...]
    window: int | None = None
    pairs: bool = False  # a quarter of each is the prompt, three eighths are either response

    @property
    def tokens(self) -> int:
        """The length of the row."""
        return sum(self.lengths)

    @property
    def is_batch(self) -> bool:
        """Whether it is a batch of equal documents, each plainly causal."""
        return len(set(self.lengths)) == 1 and not self.window and not self.pairs

    def key_end(self, device: torch.device) -> Tensor:
        """The mask as `attention.py` knows it, (N,)."""
        ends, start = [], 0
        for length in self.lengths:
            end = start + length
            if self.pairs:
                prompt, chosen = length // 4, length * 3 // 8
                middle = start + prompt + chosen
                ends += [end] * prompt + [middle] * chosen + [end] * (end - middle)
            else:
                ends += [min(end, k + (self.window or length)) for k in range(start, end)]
            start = end
        return torch.tensor(ends, device=device)


def layouts(tokens: int) -> list[Layout]:
    """The cases for rows of so many tokens.

    Of 16,384 tokens they are documents of 2k, 4k, 8k and 16k, documents of 1k on average, pairs of
    512 + 768 + 768 tokens, and one document with a window of 4,096 as Mistral-7B v0.1 has it.
    """
    lengths, generator = [], np.random.default_rng(4)  # with which 16,384 tokens are 16
    while sum(lengths) < tokens:  # sigma 1, so that the mean is exp(mu + 1/2)
        length = generator.lognormal(np.log(tokens / 16) - 0.5, 1.0)
        lengths.append(min(max(1, int(length)), tokens - sum(lengths)))
    return [
        Layout("8 documents", _parts(tokens, 8)),
        Layout("4 documents", _parts(tokens, 4)),
        Layout("2 documents", _parts(tokens, 2)),
        Layout("1 document", _parts(tokens, 1)),
        Layout("packed, lognormal", tuple(lengths)),
        Layout("preference pairs", _parts(tokens, 8), pairs=True),
        Layout("sliding window", _parts(tokens, 1), window=tokens // 4),
    ]


def _parts(tokens: int, count: int) -> tuple[int, ...]:
    return (tokens // count,) * (count - 1) + (tokens - tokens // count * (count - 1),)


@dataclass
class Row:
    """A row of random queries, keys and values, and the gradient of its output."""

    layout: Layout
    key_end: Tensor  # (N,)
    q: Tensor  # (N, H, Dh)
    k: Tensor  # (N, G, Dh)
    v: Tensor  # (N, G, Dh)
    do: Tensor  # (N, H, Dh)

    def flops(self) -> float:
        """Of the forward pass: two products over every query and key that it sees."""
        _, H, Dh = self.q.shape
        pairs = self.key_end - torch.arange(len(self.key_end), device=self.key_end.device)
        return 4.0 * H * Dh * int(pairs.sum())

    def with_keys(self, expand: bool) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v; with `expand` a key and value head for every query head."""
        times = self.q.shape[1] // self.k.shape[1] if expand else 1
        return self.q, *(x.repeat_interleave(times, 1) if expand else x for x in (self.k, self.v))

    def unbatched(self, x: Tensor) -> Tensor:
        """(B, H, L, Dh) as our (N, H, Dh)."""
        return x.transpose(1, 2).reshape(self.q.shape)


def random_row(
    layout: Layout, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Row:
    """A row of normally distributed numbers, for `shape` = (H, G, Dh); always the same one."""
    generator = torch.Generator(device).manual_seed(0)
    H, G, Dh = shape
    numbers = [
        torch.randn(layout.tokens, n, Dh, dtype=dtype, device=device, generator=generator)
        for n in (H, G, G, H)
    ]
    return Row(layout, layout.key_end(device), *numbers)


@dataclass
class Head:
    """Random hidden states, an output head, targets, and the gradient of the log-probabilities."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (N,), −1 where nothing is scored
    g: Tensor  # (N,) fp32

    def flops(self, everywhere: bool = False) -> float:
        """Of the logits of tokens that are scored, or of all."""
        M = len(self.targets) if everywhere else int((self.targets >= 0).sum())
        return 2.0 * M * self.weight.numel()


def random_head(
    shape: tuple[int, int, int], scored: float, dtype: torch.dtype, device: torch.device
) -> Head:
    """Logits with a variance of 1, for `shape` = (N, D, V); a share `scored` has a target."""
    tokens, width, vocabulary = shape
    random = partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(0))
    weight = random(vocabulary, width, dtype=dtype).mul_(width**-0.5)
    targets = np.random.default_rng(0).integers(0, vocabulary, tokens)
    targets[np.random.default_rng(1).random(tokens) >= scored] = -1
    targets = torch.from_numpy(targets).to(device)
    return Head(random(tokens, width, dtype=dtype), weight, targets, random(tokens))


# Errors


@dataclass(frozen=True)
class Sizes:
    """What is checked and timed."""

    tokens: int = 16384  # of a row that is timed
    checked: tuple[int, ...] = (1777, 2048)  # the first is a multiple of no block
    heads: tuple[int, int] = (32, 8)  # H and G
    widths: tuple[int, ...] = (128, 64)  # Dh; the second is timed once
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)  # first: timed
    layouts: tuple[str, ...] | None = None  # those that are timed; None is all
    head: tuple[int, int] = (4096, 32000)  # D and V
    head_tokens: tuple[int, ...] = (8192, 2048, 16384)  # some of the first are not scored, too
    head_checked: int = 300
    head_rows: int = 70000  # so many that all logits together are more than 2³¹
    rounds: int = 30


QUICK = Sizes(
    widths=(128,), dtypes=(torch.bfloat16,), layouts=("2 documents", "packed, lognormal"),
    head_tokens=(8192,), rounds=20,
)  # fmt: skip
TINY = Sizes(  # bf16 is wrong in Triton's interpreter
    tokens=128, checked=(70,), heads=(4, 2), widths=(64,), dtypes=(torch.float16, torch.float32),
    head=(64, 300), head_tokens=(48,), head_checked=40, head_rows=700, rounds=3,
)  # fmt: skip


@contextmanager
def replaced(module: ModuleType, **values: object) -> Iterator[None]:
    """A module's constants, for a while."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


@contextmanager
def filled_with_nan() -> Iterator[None]:
    """New memory holds NaN, as a part of PyTorch's deterministic mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns of what else it would have changed
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same memory, as inputs whose gradients are taken."""
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)


def reason(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def results(function: Callable, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of its inputs."""
    inputs = leaves(*inputs)
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def compare(found: Tensor, twin: Tensor, exact: Tensor) -> dict:
    """The largest and the RMS error of ours and of the twin, and the worse of the two ratios."""
    errors = {}
    for name, measure in (
        ("max", lambda error: error.abs().max()),
        ("rms", lambda error: error.square().mean().sqrt()),
    ):
        errors[name] = [float(measure(x.double() - exact)) for x in (found, twin)]
    ratios = [mine / max(twins, FLOOR) for mine, twins in errors.values()]
    ok = all(mine <= 2 * twins + FLOOR for mine, twins in errors.values())  # not so for NaN
    return errors | {"ratio": float(np.max(ratios)), "ok": ok}  # np.max, as max() can lose a NaN


def check(
    names: str, ours: Callable, twin: Callable, inputs: list[Tensor], upstream: Tensor,
    rows: slice = ALL,
) -> dict:  # fmt: skip
    """Whether `ours` computes what `twin` does. `names` are those of the output and the gradients.

    With `rows`, the twin gets only these rows of the first input, and only what belongs to them,
    the output and this input's gradient, is compared.
    """
    with filled_with_nan():
        first = results(ours, inputs, upstream)
    same_bits = all(map(torch.equal, first, results(ours, inputs, upstream)))
    if rows != ALL:
        first = [x[rows] for x in first[:2]]
        inputs, upstream = [inputs[0][rows], *inputs[1:]], upstream[rows]
    rounded = results(twin, inputs, upstream)
    exact = results(twin, [x.double() for x in inputs], upstream.double())
    errors = dict(zip(names.split(), map(compare, first, rounded, exact)))
    ok = same_bits and all(error["ok"] for error in errors.values())
    return {"ok": ok, "same_bits": same_bits, "errors": errors}


def check_attention(
    layout: Layout, dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device
) -> dict:
    """One layout, type and shape (H, G, Dh)."""
    row = random_row(layout, shape, dtype, device)
    ours, twin = (
        partial(attention, key_end=row.key_end, impl=impl) for impl in ("triton", "reference")
    )
    return check("o dq dk dv", ours, twin, [row.q, row.k, row.v], row.do)


def check_head(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, rows: slice = ALL
) -> dict:
    """One type and shape (N, D, V), with six tokens of ten scored, or with `rows` all of them."""
    head = random_head(shape, 0.6 if rows == ALL else 1.0, dtype, device)
    ours = partial(token_logps, targets=head.targets, impl="triton")
    twin = partial(token_logps, targets=head.targets[rows], impl="reference")
    return check("logp dh dw", ours, twin, [head.hidden, head.weight], head.g, rows)


# What is checked


def attention_checks(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable]]:
    """What is timed, at sizes that `reference` can do; the masks that are not plainly causal in
    every type and width; and other groups of heads. Pairs of a name and a check.
    """
    (H, G), (width, *_), (dtype, *_) = sizes.heads, sizes.widths, sizes.dtypes
    masks = layouts(sizes.checked[0])[4:]
    cases = [(each, dtype, (H, G, width)) for N in sizes.checked for each in layouts(N)]
    cases += [(layouts(sizes.checked[-1])[1], dtype, (H, G, Dh)) for Dh in sizes.widths]
    cases += [(m, t, (H, G, Dh)) for t in sizes.dtypes for Dh in sizes.widths for m in masks]
    cases += [(masks[0], dtype, (*groups, sizes.widths[-1])) for groups in ((4, 4), (4, 1))]
    for layout, dtype, shape in dict.fromkeys(cases):
        H, G, Dh = shape
        name = f"{str(dtype)[6:]} {H}/{G}x{Dh} {layout.tokens} {layout.name}"
        yield name, partial(check_attention, layout, dtype, shape, device)


def head_checks(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable]]:
    """Vocabularies that are and are not a multiple of 128, whole and in slices; and the last of so
    many tokens that all logits together could not be counted in 32 bits.
    """
    (D, V), N = sizes.head, sizes.head_checked

    def _in_slices(logits: int, *arguments: object) -> dict:
        with replaced(linear_cross_entropy, SLICE_LOGITS=logits):
            return check_head(*arguments)

    for dtype in sizes.dtypes:
        kind = f"{str(dtype)[6:]} {N} x {D} x "
        yield f"{kind}{V}", partial(check_head, (N, D, V), dtype, device)
        few = N * V // 7
        yield f"{kind}{V + 3}, sliced", partial(_in_slices, few, (N, D, V + 3), dtype, device)
    # ours holds hidden states, their gradient in fp32 and its parts, and slices of logits
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 40 * sizes.head_rows * D:
        print("too little memory to check the last of many tokens: skipped")
        return
    shape = (sizes.head_rows, D, V)
    name = f"{str(sizes.dtypes[0])[6:]} last 64 of {sizes.head_rows} x {V}"
    yield name, partial(check_head, shape, sizes.dtypes[0], device, slice(-64, None))


CHECKS = {"attention": attention_checks, "cross-entropy": head_checks}


def run_checks(operation: str, sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """Runs them, and prints a line of each: the worst tensor's errors, ours and the twin's."""
    print(f"\n{operation:<40}worst max ours   twin's rms ours   twin's    ratio bits")
    for name, check in CHECKS[operation](sizes, device):
        found = {"operation": operation, "name": name, "ok": False}
        try:
            found |= check()
        except Exception as error:  # the next check may still tell something
            found["failed"] = reason(error)
            print(f"{name:<40}FAIL: {found['failed']}", flush=True)
            yield found
            continue
        errors = found["errors"]
        worst = max(errors, key=lambda label: np.nan_to_num(errors[label]["ratio"], nan=np.inf))
        numbers = "".join(f"{x:9.1e}" for x in errors[worst]["max"] + errors[worst]["rms"])
        bits = "same" if found["same_bits"] else "DIFFER"
        verdict = "PASS" if found["ok"] else "FAIL"
        ratio = errors[worst]["ratio"]
        print(f"{name:<40}{worst:<5}{numbers}{ratio:9.3g} {bits} {verdict}", flush=True)
        yield found
