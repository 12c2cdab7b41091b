"""Both operations against their specification, and the specification against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels import by_document
from kernels import linear_cross_entropy as head_module
from kernels.attention import attention
from kernels.by_document import documents
from kernels.linear_cross_entropy import token_logps


def random_qkv(N, H=4, G=2, Dh=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, H, Dh), (N, G, Dh), (N, G, Dh)]
    return [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]


def packed(lengths, window=None):
    ends = torch.repeat_interleave(torch.tensor(lengths).cumsum(0), torch.tensor(lengths))
    return ends if window is None else torch.minimum(ends, torch.arange(len(ends)) + window)


def shared_pair(prompt, chosen, rejected):
    """[prompt | chosen branch | rejected branch]: the two branches do not see each other."""
    middle, end = prompt + chosen, prompt + chosen + rejected
    return torch.tensor([end] * prompt + [middle] * chosen + [end] * rejected)


LAYOUTS = {
    "one document": packed([13]),
    "packed": packed([1, 5, 1, 1, 7, 2]),
    "window": packed([13], window=4),
    "window over packed": packed([3, 9, 1, 6], window=4),
    "shared pair": shared_pair(5, 4, 3),
    "pairs and documents": torch.cat(
        [packed([3]), shared_pair(5, 4, 3) + 3, packed([2, 1]) + 15, shared_pair(1, 1, 1) + 18]
    ),
}


def attend_by_loop(q, k, v, key_end):
    """Scores and softmax one query and one head at a time, straight from the definition."""
    (N, H, Dh), G = q.shape, k.shape[1]
    out = torch.zeros(N, H, Dh, dtype=q.dtype)
    for i in range(N):
        for h in range(H):
            g = h // (H // G)
            keys = [j for j in range(i + 1) if i < key_end[j]]
            scores = [float(q[i, h] @ k[j, g]) / math.sqrt(Dh) for j in keys]
            weights = [math.exp(s - max(scores)) for s in scores]
            for weight, j in zip(weights, keys):
                out[i, h] += weight / sum(weights) * v[j, g]
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_attention_equals_the_definition(layout):
    key_end = LAYOUTS[layout]
    q, k, v = (x.detach() for x in random_qkv(len(key_end)))
    out = attention(q, k, v, key_end, "reference")
    torch.testing.assert_close(out, attend_by_loop(q, k, v, key_end), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_attention_equals_reference(layout, heads, chunk, monkeypatch):
    monkeypatch.setattr(by_document, "QUERY_CHUNK", chunk)
    key_end = LAYOUTS[layout]
    inputs = random_qkv(len(key_end), *heads)
    upstream = torch.randn(len(key_end), heads[0], 8, dtype=torch.float64)
    results = []
    for impl in ("reference", "torch"):
        out = attention(*inputs, key_end, impl)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for ours, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_documents_cut_the_row_where_nothing_is_shared():
    assert documents(LAYOUTS["packed"]) == [(n, True) for n in (1, 5, 1, 1, 7, 2)]
    assert documents(LAYOUTS["shared pair"]) == [(12, False)]
    assert documents(LAYOUTS["window"]) == [(13, False)]
    # A window as long as the document never binds.
    assert documents(packed([5, 3], window=5)) == [(5, True), (3, True)]
    mixed = [(3, True), (12, False), (2, True), (1, True), (3, False)]
    assert documents(LAYOUTS["pairs and documents"]) == mixed


def test_the_rejected_branch_skips_the_chosen_one():
    """Its keys are not even computed with: NaN in them would spoil a masked product, too."""
    prompt, chosen, rejected = 5, 7, 6
    N = prompt + chosen + rejected
    key_end = torch.tensor([N] * prompt + [prompt + chosen] * chosen + [N] * rejected)
    q, k, v = (torch.randn(N, heads, 8) for heads in (4, 2, 2))
    clean = attention(q, k, v, key_end, "torch")
    k[prompt : prompt + chosen] = v[prompt : prompt + chosen] = float("nan")
    spoilt = attention(q, k, v, key_end, "torch")
    torch.testing.assert_close(spoilt[-rejected:], clean[-rejected:])


def test_attention_refuses_what_it_does_not_know():
    q, k, v = random_qkv(5)
    with pytest.raises(ValueError, match="impl is 'flash', must be one of"):
        attention(q, k, v, packed([5]), "flash")
    with pytest.raises(ValueError, match=r"key_end \(4,\)"):
        attention(q, k, v, packed([4]), "torch")
    with pytest.raises(ValueError, match="H a multiple of G"):
        attention(q[:, :3], k, v, packed([5]), "reference")


def random_head(N, D=16, V=31, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(V, D, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(-1, V, (N,), generator=generator)
    targets[: N // 3] = -1
    return hidden, weight, targets


def test_reference_token_logps_equal_cross_entropy():
    hidden, weight, targets = random_head(23)
    logps = token_logps(hidden, weight, targets, "reference")
    wanted = -F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-12)
    assert (logps[targets == -1] == 0).all()


@pytest.mark.parametrize("vocabulary", [17, 31, 1000])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_torch_token_logps_equal_reference(vocabulary, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", chunk)
    hidden, weight, targets = random_head(23, V=vocabulary)
    upstream = torch.randn(23, dtype=torch.float64)  # every token weighted by its own amount
    results = []
    for impl in ("reference", "torch"):
        logps = token_logps(hidden, weight, targets, impl)
        results.append((logps, *torch.autograd.grad(logps, (hidden, weight), upstream)))
    for ours, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_token_logps_pass_gradcheck():
    hidden, weight, targets = random_head(7, D=5, V=11)
    assert torch.autograd.gradcheck(
        lambda h, w: token_logps(h, w, targets, "torch"), (hidden, weight)
    )


def test_expanded_and_scaled_upstream_gradients():
    hidden, weight, targets = random_head(9)
    logps = token_logps(hidden, weight, targets, "torch")
    (once,) = torch.autograd.grad(logps.sum(), hidden, retain_graph=True)  # an expanded gradient
    (thrice,) = torch.autograd.grad((3 * logps).sum(), hidden)
    torch.testing.assert_close(thrice, 3 * once)
    assert once.abs().sum() > 0


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_no_target_at_all_gives_zero_and_zero_gradients(impl):
    hidden, weight, targets = random_head(6)
    logps = token_logps(hidden, weight, torch.full_like(targets, -1), impl)
    gradients = torch.autograd.grad(logps.sum(), (hidden, weight))
    assert (logps == 0).all() and all((g == 0).all() for g in gradients)


def test_bf16_sums_of_logps_stay_close_to_fp64():
    """2,048 tokens: a log-softmax rounded to bf16 would be off by whole nats."""
    hidden, weight, targets = random_head(2048, D=64, V=512, dtype=torch.bfloat16)
    logps = token_logps(hidden, weight, targets, "torch")
    logits = (hidden @ weight.T).double()  # the same rounded logits
    exact = logits.log_softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    assert logps.dtype == torch.float32
    assert abs(logps.double().sum() - exact[targets >= 0].sum()) < 0.5


def test_chunks_add_up_in_fp32(monkeypatch):
    """The head's gradient in bf16 from 256 chunks: each addition in bf16 would round it again."""
    hidden, weight, targets = random_head(256, D=32, V=64, dtype=torch.bfloat16)
    gradients = []
    for chunk in (64, 1 << 22):  # a token at a time, and all at once
        monkeypatch.setattr(head_module, "CHUNK_LOGITS", chunk)
        logps = token_logps(hidden, weight, targets, "torch")
        gradients.append(torch.autograd.grad(logps.sum(), weight)[0].float())
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 2e-3


def test_gradient_of_a_nearly_certain_token_survives_bf16():
    """p − 1 with p = 0.9999 is −1e-4: formed in fp32, then rounded."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16).requires_grad_()
    weight = torch.tensor([[9.1875], [0.0]], dtype=torch.bfloat16).requires_grad_()
    (grad,) = torch.autograd.grad(
        token_logps(hidden, weight, torch.tensor([0]), "torch").sum(), weight
    )
    wanted = 1 - torch.sigmoid(torch.tensor(9.1875, dtype=torch.float64)).item()
    assert grad[0].item() == pytest.approx(wanted, rel=0.01)


def test_token_logps_refuses_what_it_does_not_know():
    hidden, weight, targets = random_head(5)
    with pytest.raises(ValueError, match="impl is 'liger', must be one of"):
        token_logps(hidden, weight, targets, "liger")
    with pytest.raises(ValueError, match=r"targets \(4,\)"):
        token_logps(hidden, weight, targets[:4], "torch")


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_target_beyond_the_vocabulary_is_an_error(impl):
    hidden, weight, targets = random_head(5)
    targets[4] = weight.shape[0]
    with pytest.raises((RuntimeError, IndexError), match="index"):
        token_logps(hidden, weight, targets, impl)
