"""The attention kernels, in Triton's interpreter (on a GPU, on it), against the specification.

The interpreter computes bf16 wrongly, so that type is left to a GPU.
"""

import re

import pytest
import torch

from kernels import launch, tiles
from kernels.attention import _attention, attention, tile_tables
from kernels.launch import Launch, Launches
from tests.programs import ROOT
from tests.test_kernels import packed, shared_pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_BF16 = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter has a broken bf16")
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=NO_BF16)]
SMALL_BLOCKS = Launches(*[Launch(16, 32, 4, 2)] * 2, Launch(16, 32, 4, 2))

LAYOUTS = {
    "one token": packed([1]),
    "one document": packed([150]),
    "documents of one token": packed([1, 1, 37, 1, 64, 5, 1]),
    "window": packed([150], window=40),
    "window over documents": packed([70, 1, 50], window=33),
    "shared pair": shared_pair(40, 70, 45),
    "pairs": torch.cat(
        [shared_pair(50, 9, 30), shared_pair(3, 40, 2) + 89, packed([20]) + 134, packed([3]) + 154]
    ),
    # Nothing that is trained looks like this, but the specification allows it.
    "anything": torch.tensor([k + 1 + (k * 7919) % (130 - k) for k in range(130)]),
}


def random_inputs(N, H=4, G=2, Dh=64, dtype=torch.float32, seed=0):
    """q, k, v, which ask for gradients, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(N, heads, Dh, generator=generator) for heads in (H, G, G, H)]
    q, k, v, upstream = (x.to(DEVICE, dtype) for x in made)
    return [x.requires_grad_() for x in (q, k, v)], upstream


def results(inputs, upstream, key_end, impl, dtype=None):
    """Output and the three gradients, of the inputs as `dtype`."""
    inputs = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    out = attention(*inputs, key_end.to(DEVICE), impl)
    return out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))


def errors(found, exact):
    """Largest and root mean square error."""
    error = found.double() - exact
    return error.abs().max(), error.square().mean().sqrt()


def require_small_errors(inputs, upstream, key_end, function=results):
    """Against fp64, at most twice the errors of the specification in the inputs' own type."""
    ours = function(inputs, upstream, key_end, "triton")
    twin = function(inputs, upstream, key_end, "reference")
    exact = function(inputs, upstream, key_end, "reference", torch.float64)
    for name, *three in zip(("output", "first", "second", "third"), ours, twin, exact):
        assert three[0].dtype == three[1].dtype and three[0].isfinite().all(), name
        for mine, allowed in zip(errors(three[0], three[2]), errors(three[1], three[2])):
            floor = 8 * torch.finfo(inputs[0].dtype).eps  # for gradients that are exactly 0
            assert mine <= 2 * allowed + floor, f"{name}: {mine:.2e}, the twin's is {allowed:.2e}"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that rows of a hundred tokens have many, on any device."""
    for name in ("LARGE", "SMALL", "EXACT"):
        monkeypatch.setattr(launch, name, SMALL_BLOCKS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_are_those_of_the_specification(layout, dtype, small_blocks, poison):
    """Every kind of mask, ragged ends, outputs that begin as NaN."""
    key_end = LAYOUTS[layout]
    require_small_errors(*random_inputs(len(key_end), dtype=dtype), key_end)


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (8, 2), (8, 1), (1, 1), (6, 2)])
def test_query_heads_share_key_heads(heads, small_blocks):
    """dK and dV are sums over the query heads of a group."""
    key_end = LAYOUTS["shared pair"]
    require_small_errors(*random_inputs(len(key_end), *heads), key_end)


@pytest.mark.parametrize("Dh", [64, 128])
@pytest.mark.parametrize("name", ["LARGE", "SMALL", "EXACT"])
def test_the_shipped_blocks(name, Dh, monkeypatch, poison):
    blocks = getattr(launch, name)
    for other in ("LARGE", "SMALL", "EXACT"):
        monkeypatch.setattr(launch, other, blocks)
    key_end = torch.cat([packed([1, 90]), shared_pair(60, 50, 40) + 91, packed([64], 50) + 241])
    dtype = torch.float32 if name == "EXACT" else torch.float16
    require_small_errors(*random_inputs(len(key_end), 2, 1, Dh, dtype), key_end)


@pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() >= (9, 0),
    reason="from Hopper on, descriptors made in a kernel need an allocator",
)
def test_gpus_without_tma_load_the_same_blocks(small_blocks, monkeypatch):
    """Up to Ampere kernels make their descriptors themselves, which become plain loads."""
    inputs, upstream = random_inputs(155)
    with_tma = results(inputs, upstream, LAYOUTS["shared pair"], "triton")
    monkeypatch.setattr(launch, "has_tma", lambda device: False)
    without = results(inputs, upstream, LAYOUTS["shared pair"], "triton")
    assert all(torch.equal(a, b) for a, b in zip(with_tma, without))


@pytest.mark.parametrize("name", ["LARGE", "SMALL", "EXACT"])
def test_blocks_fit_each_other(name):
    """Forward and dQ walk through one table; tiles of dK and dV begin at multiples of their size,
    and do not reach beyond the last block of queries, where nobody has written L."""
    forward, backward_q, backward_kv = getattr(launch, name)
    assert forward[:2] == backward_q[:2]
    assert backward_kv.block_k % backward_kv.block_q == 0
    assert forward.block_q % backward_kv.block_q == 0


def test_every_call_gives_the_same_bits(small_blocks):
    """Nothing is added in an order that varies."""
    inputs, upstream = random_inputs(155, dtype=torch.float16)
    first, again = (results(inputs, upstream, LAYOUTS["shared pair"], "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_a_document_does_not_notice_the_others(small_blocks):
    (q, k, v), upstream = random_inputs(128)
    key_end = packed([30, 60, 38])
    clean = results((q, k, v), upstream, key_end, "triton")
    with torch.no_grad():
        for x in (q, k, v, upstream):
            x[30:90] = 1e3
    other = results((q, k, v), upstream, key_end, "triton")
    for a, b in zip(clean, other):
        assert torch.equal(a[:30], b[:30]) and torch.equal(a[90:], b[90:])


def test_the_rejected_branch_skips_the_chosen_one(small_blocks):
    """Its tiles are not visited: a product with NaN would be NaN, masked or not."""
    (q, k, v), upstream = random_inputs(160)
    key_end = shared_pair(32, 64, 64)
    clean = results((q, k, v), upstream, key_end, "triton")
    with torch.no_grad():
        k[32:96] = v[32:96] = float("nan")
    spoilt = results((q, k, v), upstream, key_end, "triton")
    for a, b in zip(clean[:2], spoilt[:2]):  # outputs and dQ of rejected and prompt
        assert torch.equal(a[96:], b[96:]) and torch.equal(a[:32], b[:32])


def test_strided_inputs_and_expanded_gradients(small_blocks):
    """What is not contiguous, or begins at an odd address, gives the same results."""
    key_end = LAYOUTS["shared pair"]
    (q, k, v), upstream = random_inputs(155)
    wanted = results((q, k, v), upstream, key_end, "triton")
    odd = torch.empty(v.numel() + 1, device=DEVICE)[1:].view_as(v).copy_(v)
    wide = torch.zeros(155, 4, 128, device=DEVICE)[..., ::2].copy_(upstream)
    strided = (q.detach().transpose(0, 1).contiguous().transpose(0, 1), k, odd)
    assert not strided[0].is_contiguous() and odd.data_ptr() % 16
    leaves = [x.detach().requires_grad_() for x in strided]  # as they are
    out = attention(*leaves, key_end.to(DEVICE), "triton")
    found = out.detach(), *torch.autograd.grad(out, leaves, wide)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    out = attention(q, k, v, key_end.to(DEVICE), "triton")
    summed = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    ones = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(summed, ones))


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_large_scores_do_not_overflow(size, small_blocks):
    """With scores of ±1e5 softmax is one token; first tiles of a window see nothing."""
    (q, k, v), upstream = random_inputs(150)
    with torch.no_grad():
        q *= size
        k *= size
    found = results((q, k, v), upstream, LAYOUTS["window"], "triton")
    exact = results((q, k, v), upstream, LAYOUTS["window"], "reference", torch.float64)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=2e-6 * max(1, size**2))
    assert all(x.isfinite().all() for x in found)


def test_key_end_in_32_bits(small_blocks):
    """Which is what the tables hold: they must not be the same memory."""
    (q, k, v), upstream = random_inputs(155)
    key_end = LAYOUTS["shared pair"]
    found, wanted = (
        results((q, k, v), upstream, ends, "triton") for ends in (key_end.int(), key_end)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_very_negative_scores(small_blocks):
    """What m begins with is smaller than any score: one token sees itself, whatever its score."""
    (_, k, v), _ = random_inputs(40, 2, 2)
    q = -1e4 * k.detach()
    out = attention(q, k, v, packed([1] * 40).to(DEVICE), "triton")
    torch.testing.assert_close(out, v)


def test_tables_serve_every_implementation(small_blocks):
    """What was made once for a row is that row's `key_end`, whoever gets it."""
    (q, k, v), _ = random_inputs(155)
    key_end = LAYOUTS["shared pair"].to(DEVICE)
    for impl in ("reference", "torch", "triton"):
        found = attention(q, k, v, tile_tables(key_end, q.dtype), impl)
        assert torch.equal(found, attention(q, k, v, key_end, impl))


def test_an_empty_row():
    q, k = torch.zeros(0, 4, 64, device=DEVICE), torch.zeros(0, 2, 64, device=DEVICE)
    nothing = torch.zeros(0, dtype=torch.long, device=DEVICE)
    assert attention(q, k, k, nothing, "triton").shape == (0, 4, 64)


# Tables of tiles


def random_layout(kind, generator):
    """Documents, pairs, windows over documents, or anything, of random lengths."""
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    N, pieces, begin = draw(1, 120), [], 0
    while begin < N:
        length = min(N - begin, draw(1, 60))
        if kind == "pairs" and length > 6:
            prompt = draw(1, length - 2)
            chosen = draw(1, length - prompt - 1)
            piece = shared_pair(prompt, chosen, length - prompt - chosen)
        else:
            piece = packed([length])
        pieces.append(piece + begin)
        begin += length
    key_end = torch.cat(pieces)
    if kind == "window":
        key_end = torch.minimum(key_end, torch.arange(N) + draw(1, 40))
    if kind == "anything":
        key_end = torch.tensor([draw(k + 1, N) for k in range(N)])
    return key_end.int()


def visits(key_end, block_q, block_k):
    """Of both tables: (queries, keys, whether all of it is said to be seen) of each tile."""
    N = len(key_end)
    by_query, by_key = [], []
    for start, *runs in tiles.by_query(key_end, block_q, block_k).tolist():
        for begin, whole, count in (runs[:3], runs[3:]):
            for i in range(count):
                keys = range(begin + i * block_k, min(begin + (i + 1) * block_k, N))
                by_query.append((range(start, min(start + block_q, N)), keys, i < whole))
    for start, smallest, largest in tiles.by_key(key_end, block_k).tolist():
        keys = range(start, min(start + block_k, N))
        assert smallest == min(key_end[list(keys)]) and largest == max(key_end[list(keys)])
        for begin in range(start, largest, block_q):
            queries = range(begin, min(begin + block_q, N))
            by_key.append((queries, keys, start + block_k <= begin <= smallest - block_q))
    return by_query, by_key


@pytest.mark.parametrize("kind", ["documents", "pairs", "window", "anything"])
def test_tables_visit_all_that_is_seen_once(kind):
    generator = torch.Generator().manual_seed(0)
    for trial in range(150):
        key_end = random_layout(kind, generator)
        index = torch.arange(len(key_end))
        seen = (index <= index[:, None]) & (index[:, None] < key_end)
        block_q, block_k = [(4, 4), (8, 8), (4, 16), (16, 4), (8, 16)][trial % 5]
        for visited in visits(key_end, block_q, block_k):
            count = torch.zeros_like(seen, dtype=torch.int)
            for queries, keys, whole in visited:
                part = (slice(queries.start, queries.stop), slice(keys.start, keys.stop))
                assert not whole or (seen[part].all() and len(keys) == block_k)
                assert kind == "anything" or seen[part].any(), (key_end, queries, keys)
                count[part] += 1
            assert (count[seen] == 1).all() and count.max() <= 1, key_end


def test_most_tiles_of_a_long_document_need_no_mask():
    key_end = packed([1024]).int()
    visited = tiles.by_query(key_end, 128, 128)
    assert int(visited[:, [3, 6]].sum()) == 36 and int(visited[:, [2, 5]].sum()) == 28
    assert visited[:, 0].tolist() == list(range(896, -1, -128))  # the longest first
    assert tiles.by_key(packed([256, 768]).int(), 128)[:3, 0].tolist() == [256, 384, 512]
    key_end = packed([1024], window=512).int()
    index = torch.arange(1024)
    seen = (index <= index[:, None]) & (index[:, None] < key_end)
    visited = visits(key_end, 128, 128)[0]
    assert len(visited) == 1 + 2 + 3 + 4 + 4 * 5  # beyond the window: four, and half of two
    for queries, keys, whole in visited:
        part = (slice(queries.start, queries.stop), slice(keys.start, keys.stop))
        assert whole == bool(seen[part].all())


# What it refuses


def test_it_refuses_what_it_cannot_compute(monkeypatch):
    def refused(line, *inputs, impl="triton"):
        with pytest.raises(ValueError, match=re.escape(line)):
            attention(*inputs, impl)

    (q, k, v), _ = random_inputs(8)
    key_end = packed([8]).to(DEVICE)
    wide = [torch.zeros(8, heads, 96, device=DEVICE) for heads in (4, 2, 2)]
    refused("heads are 96 wide, impl 'triton' has 64 and 128: use impl 'torch'", *wide, key_end)
    double = [x.double() for x in (q, k, v)]
    line = "q is torch.float64, k is torch.float64, v is torch.float64; impl 'triton' needs all in"
    refused(line, *double, key_end)
    refused("v is torch.float16; impl 'triton' needs all in", q, k, v.half(), key_end)
    refused("k (7, 2, 64)", q, k[:7], v, key_end)
    refused("v (8, 1, 64)", q, k, v[:, :1], key_end)
    for impl in ("triton", "torch", "reference"):
        wrong = key_end.clone()
        wrong[3] = 9
        refused("key_end[3] is 9, must be from 4 to 8", q, k, v, wrong, impl=impl)
        wrong[3] = 3
        refused("key_end[3] is 3, must be from 4 to 8", q, k, v, wrong, impl=impl)
        refused("key_end is torch.float32, must be int32", q, k, v, key_end.float(), impl=impl)
    tables = tile_tables(key_end, q.dtype)
    refused("tables were not made for inputs", q, k, v, tables._replace(queries=tables.queries[:0]))
    with pytest.raises(ValueError, match="attention: tensors are on different devices: "):
        launch.require_triton("attention", q, k, v.to("meta"))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    cpu = [x.detach().cpu() for x in (q, k, v, key_end)]
    refused("impl 'triton' needs tensors on a GPU, these are on cpu: use impl 'torch'", *cpu)
    monkeypatch.setattr(launch, "triton", None)
    refused("needs the package triton, which is not installed", q, k, v, key_end)


# As PyTorch sees it


def test_pytorch_knows_shapes_and_gradient_of_the_operation(small_blocks):
    (q, k, v), _ = random_inputs(40, 2, 1)
    tables = tile_tables(packed([17, 23]).to(DEVICE), q.dtype)
    torch.library.opcheck(_attention, (q, k, v, *tables))


def test_products_are_exact_in_fp32():
    """Which the interpreter always is; on a GPU TF32 is what `tl.dot` does by itself."""
    code = (ROOT / "kernels" / "attention.py").read_text(encoding="utf-8")
    products = re.findall(r"tl\.dot\(.*", code)
    assert len(products) == 9 and all('input_precision="ieee"' in line for line in products)


def test_offsets_are_64_bits():
    """The index of a program is widened before it is multiplied."""
    for path in (ROOT / "kernels").glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "program_id(" in line:
                assert re.search(r"program_id\(\d\)\.to\(tl\.int64\)", line), f"{path}: {line}"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one():
    (q, k, v), _ = random_inputs(150)
    key_end = LAYOUTS["window"]
    wanted = attention(q, k, v, key_end.to(DEVICE), "triton")
    second = attention(*(x.to("cuda:1") for x in (q, k, v)), key_end.to("cuda:1"), "triton")
    assert torch.cuda.current_device() == 0 and torch.equal(second.cpu(), wanted.cpu())
