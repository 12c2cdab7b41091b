"""What our kernels are timed beside: a function per peer makes its `Side` of a case.

A side is what to call forward, and which gradients to take backward. Inputs are brought into the
shape that the peer wants before anything is timed; so are block masks, tables of tiles and, where
it says "MHA", a key and value head for every query head, whose gradients the peer then need not add
up. Whatever a peer raises is the reason why it is not timed.

Peers: PyTorch's scaled_dot_product_attention on FlashAttention 2 and on cuDNN, its varlen_attn and
its FlexAttention (arXiv 2412.05496); for the cross-entropy PyTorch itself, Liger (arXiv 2410.10989)
and Cut Cross-Entropy (arXiv 2411.09009), the last two where they are installed. (Liger imports
transformers, which cannot be imported from here where PyPI's package `kernels` is installed.)
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.attention import attention, tile_tables
from kernels.bench.checks import Head, Row, Sizes, layouts, leaves, random_head, random_row
from kernels.linear_cross_entropy import reference, token_logps


@dataclass
class Side:
    """One way to compute a case, forward and backward."""

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]  # leaves, with a gradient each
    upstream: Tensor | None  # gradient of what forward returns; None is 1, of a scalar
    output: Callable[[Tensor], Tensor] = lambda x: x  # what forward returns, as ours returns it
    gradient: Callable[[Tensor], Tensor] = lambda x: x  # the first input's gradient, as ours is
    mean: bool = False  # forward returns the mean negative log-probability
    executed: float | None = None  # FLOPs of its matrix products, recomputed ones included


Makers = dict[str, Callable[[], Side]]


@cache  # one wrapper for all cases: another one would compile again
def compiled(function: Callable) -> Callable:
    """By torch.compile, for one shape at a time: nobody's kernel is slowed down by generality."""
    return torch.compile(function, dynamic=False)


# Attention


def ours_attention(row: Row) -> Side:
    """Our kernels, with tables of tiles made before, as a model makes them once for all layers."""
    inputs = leaves(row.q, row.k, row.v)
    tiles = tile_tables(row.key_end, row.q.dtype)
    # Backward, S and dP are computed twice: seven products where five would do.
    executed = row.flops() * (1 + 3.5)
    return Side(lambda: attention(*inputs, tiles, "triton"), inputs, row.do, executed=executed)


def sdpa(row: Row, backend: SDPBackend, expand: bool) -> Side:
    """scaled_dot_product_attention on a batch of equal documents, (B, heads, L, Dh).

    In memory it is (B, L, heads, Dh), as a model's projections write it.
    """
    count, length = len(row.layout.lengths), row.layout.lengths[0]
    batch = [
        x.view(count, length, -1, x.shape[-1]).transpose(1, 2)
        for x in (*row.with_keys(expand), row.do)
    ]
    inputs = leaves(*batch[:3])

    def _forward() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=not expand)

    return Side(_forward, inputs, batch[3], row.unbatched, row.unbatched)


def varlen(row: Row, expand: bool) -> Side:
    """PyTorch's varlen_attn: documents end to end, as in our row. What it takes grew with time."""
    from torch.nn.attention.varlen import varlen_attn

    known, window = inspect.signature(varlen_attn).parameters, row.layout.window
    if "window_size" in known:  # keys before a query, keys behind it; −1 is all
        options = {"window_size": (window - 1 if window else -1, 0)}
    elif window:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no window")
    else:
        options = {"is_causal": True}
    if not expand and "enable_gqa" in known:
        options["enable_gqa"] = True
    starts = [0, *accumulate(row.layout.lengths)]
    starts = torch.tensor(starts, dtype=torch.int32, device=row.q.device)
    longest, inputs = max(row.layout.lengths), leaves(*row.with_keys(expand))
    return Side(
        lambda: varlen_attn(*inputs, starts, starts, longest, longest, **options), inputs, row.do
    )


def flex(row: Row) -> Side:
    """FlexAttention, compiled, with our rule as its mask; it too visits only blocks that are seen.

    On a CPU it is not compiled, and refuses gradients.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    (N, _, _), ends = row.q.shape, row.key_end
    mask = create_block_mask(
        lambda b, h, q, k: (k <= q) & (q < ends[k]), None, None, N, N, device=row.q.device
    )
    attend = compiled(flex_attention) if row.q.is_cuda else flex_attention
    batch = [x.transpose(0, 1)[None] for x in (row.q, row.k, row.v, row.do)]  # (1, heads, N, Dh)
    inputs = leaves(*batch[:3])
    return Side(
        lambda: attend(*inputs, block_mask=mask, enable_gqa=True),
        inputs, batch[3], row.unbatched, row.unbatched,
    )  # fmt: skip


def attention_sides(row: Row) -> Makers:
    """Ours, and the peers that can compute this row. Variants of a peer differ behind the comma."""
    sides: Makers = {"ours": partial(ours_attention, row)}
    ways = {"GQA": False, "MHA": True}
    if row.layout.is_batch:
        for name, backend in (
            ("SDPA flash", SDPBackend.FLASH_ATTENTION),
            ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION),
        ):
            for way, expand in ways.items():
                sides[f"{name}, {way}"] = partial(sdpa, row, backend, expand)
    if not row.layout.pairs:
        for way, expand in ways.items():
            sides[f"varlen_attn, {way}"] = partial(varlen, row, expand)
    return sides | {"flex_attention": partial(flex, row)}


# Cross-entropy


def ours_head(head: Head) -> Side:
    """Our kernels, which compute the logits a second time to go backward."""
    inputs = leaves(head.hidden, head.weight)
    return Side(
        lambda: token_logps(*inputs, head.targets, "triton"),
        inputs, head.g, executed=4 * head.flops(),
    )  # fmt: skip


def naive(head: Head, compile_it: bool) -> Side:
    """All logits at once, and their log-softmax in fp32: our `reference`, perhaps compiled."""
    logps = compiled(reference) if compile_it else reference
    inputs = leaves(head.hidden, head.weight)
    executed = 3 * head.flops(everywhere=True)
    return Side(lambda: logps(*inputs, head.targets), inputs, head.g, executed=executed)


def torch_mean(head: Head, chunked: bool) -> Side:
    """torch.nn.functional.linear_cross_entropy; in chunks it goes backward while going forward."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    inputs = leaves(head.hidden, head.weight)
    options = torch.nn.LinearCrossEntropyOptions() if chunked else None
    return Side(
        lambda: F.linear_cross_entropy(*inputs, head.targets, ignore_index=-1, options=options),
        inputs, None, mean=True, executed=3 * head.flops(everywhere=True),
    )  # fmt: skip


def liger(head: Head, reduction: str) -> Side:
    """Liger's fused loss. The mean's gradients are made in its forward pass, for an upstream of 1.

    For any gradient per token, as ours, newer versions compute logits again to go backward.
    """
    module = import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss(ignore_index=-1, reduction=reduction)
    inputs = leaves(head.hidden, head.weight)
    once = head.flops(everywhere=True)
    how = {"mean": True, "executed": 3 * once}
    if reduction == "none":
        how = {"output": torch.neg, "executed": 4 * once}
    upstream = None if reduction == "mean" else -head.g
    return Side(lambda: loss(inputs[1], inputs[0], head.targets), inputs, upstream, **how)


def cut_cross_entropy(head: Head) -> Side:
    """Cut Cross-Entropy with its defaults, among them the filter that drops small gradients."""
    loss = import_module("cut_cross_entropy").linear_cross_entropy
    inputs = leaves(head.hidden, head.weight)
    # No count of FLOPs: with random logits the filter drops most of the backward pass.
    return Side(
        lambda: loss(*inputs, head.targets, ignore_index=-1, reduction="none"),
        inputs, -head.g, output=torch.neg,
    )  # fmt: skip


def head_sides(head: Head) -> Makers:
    """Ours, and all peers."""
    return {
        "ours": partial(ours_head, head),
        "naive": partial(naive, head, False),
        "naive, compiled": partial(naive, head, True),
        "Liger, mean": partial(liger, head, "mean"),
        "Liger, per token": partial(liger, head, "none"),
        "Cut Cross-Entropy": partial(cut_cross_entropy, head),
        "torch": partial(torch_mean, head, False),
        "torch, in chunks": partial(torch_mean, head, True),
    }


# Cases


@dataclass
class Case:
    """One table: what is computed, and by whom."""

    operation: str  # "attention" or "cross-entropy"
    title: str
    sides: Makers
    flops: tuple[float, float]  # forward, backward
    scored: int | None = None  # tokens with a target, for sides that return a mean
    tables: Callable[[], object] | None = None  # what ours needs once for all layers of a row
    found: dict[str, dict] = field(default_factory=dict)  # what was measured of each side


def attention_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every layout, and one of them with heads of another width."""
    H, G = sizes.heads
    shapes = [(layout, sizes.widths[0]) for layout in layouts(sizes.tokens)]
    if sizes.layouts:
        shapes = [shape for shape in shapes if shape[0].name in sizes.layouts]
    else:
        shapes += [(layouts(sizes.tokens)[1], width) for width in sizes.widths[1:]]
    for layout, width in shapes:
        row = random_row(layout, (H, G, width), sizes.dtypes[0], device)
        title = f"{layout.name}, {layout.tokens} tokens, {H}/{G} heads of {width}"
        flops, tables = row.flops(), partial(tile_tables, row.key_end, row.q.dtype)
        sides = attention_sides(row)
        yield Case("attention", title, sides, (flops, 2.5 * flops), tables=tables)


def head_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Numbers of tokens, the first also with some that are not scored."""
    (D, V), lengths = sizes.head, sizes.head_tokens
    for tokens, share in [(lengths[0], 1.0), (lengths[0], 0.6), *((N, 1.0) for N in lengths[1:])]:
        head = random_head((tokens, D, V), share, sizes.dtypes[0], device)
        scored, flops = int((head.targets >= 0).sum()), head.flops()
        title = f"{tokens} tokens, {scored} scored, width {D}, vocabulary {V}"
        yield Case("cross-entropy", title, head_sides(head), (flops, 2 * flops), scored)


CASES = {"attention": attention_cases, "cross-entropy": head_cases}
