"""The output head's kernels, interpreted or on a GPU, against the specification."""

import re
from itertools import pairwise

import pytest
import torch

from kernels import launch
from kernels import linear_cross_entropy as head
from kernels.linear_cross_entropy import _token_logps, slices, token_logps
from tests.test_triton_attention import DEVICE, DTYPES, errors, require_small_errors


def random_head(N, D=64, V=97, dtype=torch.float32, seed=0):
    """Hidden states and weights, targets of which a third is −1, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).to(DEVICE, dtype)
    weight = (torch.randn(V, D, generator=generator) / 4).to(DEVICE, dtype)
    targets = torch.randint(-1, V, (N,), generator=generator)
    targets[: N // 3], targets[N // 3], targets[-1] = -1, V - 1, 0
    return (hidden, weight), torch.randn(N, generator=generator).to(DEVICE), targets.to(DEVICE)


def results(inputs, upstream, targets, impl, dtype=None):
    """Log-probabilities and both gradients, of the inputs as `dtype`."""
    inputs = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    logps = token_logps(*inputs, targets, impl)
    return logps.detach(), *torch.autograd.grad(logps, inputs, upstream.to(logps.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [17, 32000, 32003])
def test_errors_are_those_of_the_specification(vocabulary, dtype, poison, monkeypatch):
    """Any vocabulary in several slices, and any gradient for each token."""
    monkeypatch.setattr(head, "SLICE_LOGITS", 20 * 9000)
    inputs, upstream, targets = random_head(30, V=vocabulary, dtype=dtype)
    require_small_errors(inputs, upstream, targets, results)
    logps, dhidden, _ = results(inputs, upstream, targets, "triton")
    assert (logps[targets < 0] == 0).all() and (dhidden[targets < 0] == 0).all()


def test_slices_cover_the_vocabulary_and_keep_within_their_size():
    for tokens, vocabulary in [(1, 17), (8192, 32000), (16384, 32000), (300_000, 32003), (0, 5)]:
        cut = slices(tokens, vocabulary)
        assert cut[0].start == 0 and cut[-1].stop == vocabulary
        assert all(a.stop == b.start for a, b in pairwise(cut))
        widest = max(part.stop - part.start for part in cut)
        assert tokens * (widest - 128) <= head.SLICE_LOGITS and widest > 0
    assert [part.stop for part in slices(8192, 32000)] == [8064, 16128, 24192, 32000]


def test_the_gradient_does_not_depend_on_the_slices(monkeypatch):
    """dW is written once, and dh adds up in fp32 over 64 slices."""
    inputs, upstream, targets = random_head(40, V=64 * 128, dtype=torch.float16)
    one = results(inputs, upstream, targets, "triton")
    monkeypatch.setattr(head, "SLICE_LOGITS", 1)
    assert len(slices(27, 64 * 128)) == 64
    many = results(inputs, upstream, targets, "triton")
    assert torch.equal(one[2], many[2]) or (one[2] - many[2]).norm() < 1e-3 * one[2].norm()
    assert (one[1] - many[1]).norm() < 1e-3 * one[1].norm()
    exact = results(inputs, upstream, targets, "reference", torch.float64)
    assert errors(many[1], exact[1])[1] < 1.5 * errors(one[1], exact[1])[1]


def test_scaled_and_expanded_upstream_gradients():
    """Gradients scale with the upstream one, and nothing is spoilt by using it twice."""
    inputs, _, targets = random_head(20)
    leaves = [x.requires_grad_() for x in inputs]
    logps = token_logps(*leaves, targets, "triton")
    once = torch.autograd.grad(logps.sum(), leaves, retain_graph=True)  # an expanded gradient
    thrice = torch.autograd.grad((3 * logps).sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(logps.sum(), leaves)
    for a, b, c in zip(once, thrice, again):
        torch.testing.assert_close(b, 3 * a)
        assert torch.equal(a, c) and a.abs().sum() > 0


def test_strided_inputs():
    inputs, upstream, targets = random_head(20)
    wanted = results(inputs, upstream, targets, "triton")
    strided = [x.T.contiguous().T for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    wide = torch.zeros(40, device=DEVICE)[::2].copy_(upstream)
    leaves = [x.requires_grad_() for x in strided]
    logps = token_logps(*leaves, targets, "triton")
    found = logps.detach(), *torch.autograd.grad(logps, leaves, wide)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_target_at_all(dtype, poison):
    inputs, upstream, targets = random_head(6, dtype=dtype)
    for result in results(inputs, upstream, torch.full_like(targets, -1), "triton"):
        assert (result == 0).all()


def test_the_gradient_of_a_nearly_certain_token_survives_rounding():
    """p − 1 with p = 0.9999 is −1e-4: formed in fp32, then rounded."""
    hidden = torch.ones(1, 1, dtype=torch.float16, device=DEVICE).requires_grad_()
    weight = torch.tensor([[9.1875], [0.0]], dtype=torch.float16, device=DEVICE).requires_grad_()
    logps = token_logps(hidden, weight, torch.tensor([0], device=DEVICE), "triton")
    (grad,) = torch.autograd.grad(logps.sum(), weight)
    wanted = 1 - torch.sigmoid(torch.tensor(9.1875, dtype=torch.float64)).item()
    assert grad[0].item() == pytest.approx(wanted, rel=0.01)


def test_every_call_gives_the_same_bits():
    inputs, upstream, targets = random_head(20, dtype=torch.float16)
    first, again = (results(inputs, upstream, targets, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_it_refuses_what_it_cannot_compute(monkeypatch):
    (hidden, weight), _, targets = random_head(5, V=17)

    def refused(line, *inputs):
        with pytest.raises(ValueError, match=re.escape(line)):
            token_logps(*inputs, "triton")

    for wrong in (17, 32000, -2, -100):
        spoilt = targets.clone()
        spoilt[2] = wrong
        refused(f"a target is {wrong}, must be −1 or below 17", hidden, weight, spoilt)
    refused("hidden is torch.float64, weight is torch.float64; impl 'triton' needs all in",
            hidden.double(), weight.double(), targets)  # fmt: skip
    refused("weight is torch.float16; impl 'triton' needs all", hidden, weight.half(), targets)
    refused("targets are torch.float32, must be int32 or int64", hidden, weight, targets.float())
    refused("weight (17, 63)", hidden, weight[:, 1:], targets)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    refused("token_logps: impl 'triton' needs tensors on a GPU, these are on cpu",
            hidden.cpu(), weight.cpu(), targets.cpu())  # fmt: skip


def test_pytorch_knows_shapes_and_gradient_of_the_operation():
    (hidden, weight), _, targets = random_head(12)
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), targets)
    torch.library.opcheck(_token_logps, leaves)


@pytest.mark.skipif(DEVICE == "cpu", reason="4.5 GB of logits need a GPU")
def test_more_logits_than_32_bits_count(monkeypatch):
    """70,000 tokens with a target, of 32,000 logits, in one slice."""
    monkeypatch.setattr(head, "SLICE_LOGITS", 1 << 32)
    inputs, upstream, targets = random_head(105_000, 64, 32_000, torch.bfloat16)
    assert int((targets >= 0).sum()) * 32_000 > 1 << 31
    ours = results(inputs, upstream, targets, "triton")
    last = [inputs[0][-64:], inputs[1]]
    exact = results(last, upstream[-64:], targets[-64:], "reference", torch.float64)
    torch.testing.assert_close(ours[0][-64:].double(), exact[0], rtol=0, atol=0.1)
    torch.testing.assert_close(ours[1][-64:].double(), exact[1], rtol=0.05, atol=0.02)
