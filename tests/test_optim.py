"""AdamW, in 32 and in 8 bits, and the learning-rate schedule."""

import pytest
import torch

from janus_min import optim
from janus_min.objectives import Counts, sft
from janus_min.optim import (
    AdamW8bit,
    dequantise,
    dynamic_code,
    learning_rate,
    make_optimizer,
    quantise,
)
from janus_min.row import build_row
from tests.conftest import random_examples, tiny_policy, tiny_recipe


def test_learning_rate_table():
    """Warm-up of 4 to a peak of 1, 12 steps in all: rises by quarters, halfway down at step 8."""
    rates = [learning_rate(s, peak=1.0, warmup_steps=4, total_steps=12) for s in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert 0 < rates[11] < 0.05 and rates[12] == 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, peak=1.0, warmup_steps=0, total_steps=1) == 1.0


def test_masters_and_moments_are_fp32_and_a_small_rate_moves_the_weights():
    """At 5e-7 a bf16 weight would not move at all."""
    policy = tiny_policy()
    optimizer = make_optimizer("adamw", policy, weight_decay=0.0, beta2=0.999)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 5e-7
    examples = random_examples(9)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    loss, _ = sft(policy, build_row(examples, None), Counts.of(examples), tiny_recipe("sft"))
    loss.backward()
    optimizer.step()
    moved = total = 0
    for old, parameter in zip(before, policy.parameters(), strict=True):
        state = optimizer.state[parameter]
        assert parameter.dtype == state["exp_avg"].dtype == torch.float32
        touched = parameter.grad != 0
        moved += (parameter != old)[touched].sum().item()
        total += touched.sum().item()
    assert moved > 0.99 * total


def test_optimizer_refuses_bf16_weights_and_decays_matrices_only():
    with pytest.raises(AssertionError, match=r"is torch.bfloat16, needed is float32"):
        make_optimizer("adamw", tiny_policy(dtype=torch.bfloat16), weight_decay=0.0, beta2=0.999)
    policy = tiny_policy()
    matrices, norms = make_optimizer("adamw", policy, weight_decay=0.1, beta2=0.999).param_groups
    assert matrices["weight_decay"] == 0.1 and norms["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in policy.named_parameters()}
    assert all("norm" in names[parameter] for parameter in norms["params"])
    assert not any("norm" in names[parameter] for parameter in matrices["params"])


# 8 bits


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("signed", [True, False])
def test_the_256_numbers_are_those_of_bitsandbytes(signed, bitsandbytes):
    code = dynamic_code(signed)
    assert code[127 if signed else 0] == 0
    assert len(code.unique()) == 256 and torch.equal(code, code.sort().values)
    theirs = bitsandbytes.functional.create_dynamic_map(signed=signed)
    torch.testing.assert_close(code, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("signed", [True, False])
def test_a_number_is_stored_as_the_nearest_of_them(signed, width):
    """Of 256, times the largest of its 256 neighbours in the row, whoever holds the others."""
    torch.manual_seed(0)
    code, x = dynamic_code(signed), torch.randn(6, width) * torch.rand(6, width) ** 3
    x = x if signed else x.square()
    x[3] = 0
    codes, scale = quantise(x, code, signed)
    assert codes.dtype == torch.uint8 and codes.shape == x.shape
    assert scale.shape == (6, -(-width // 256)) and (scale[3] == 0).all()
    stored = dequantise(codes, scale, code)
    assert torch.equal(stored[3], x[3])
    for row in (0, 1, 5):
        for column in range(width):
            block = x[row, column // 256 * 256 :][:256]
            numbers = code * block.abs().max()
            numbers = numbers if signed else numbers[1:]  # no second moment is rounded to 0
            nearest = (numbers - x[row, column]).abs().min()
            error = (stored[row, column] - x[row, column]).abs()
            assert error <= nearest * 1.001 + 1e-9
    for part, whole in zip(quantise(x[2:5], code, signed), (codes, scale)):
        assert torch.equal(part, whole[2:5])


def trained(optimizer, parameter, steps, spread, rate=1e-3):
    """Parameters after steps on gradients that range over `spread` powers of a random number."""
    torch.manual_seed(1)
    for _ in range(steps):
        shape = parameter.shape
        parameter.grad = torch.randn(shape) * torch.rand(shape) ** spread
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return parameter.detach()


def start_of(kind, **settings):
    """A parameter and an optimizer of it."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(64, 512))
    return kind([parameter], lr=1e-3, weight_decay=0.01, **settings), parameter


def ours_8bit(parameters, lr, weight_decay):
    groups = [{"params": parameters, "weight_decay": weight_decay}]
    return AdamW8bit(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, in_32_bit=set())


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_an_update_is_that_of_bitsandbytes_up_to_quantisation(steps, bitsandbytes):
    """Its CPU code rounds second moments more coarsely than its GPU code and this."""
    runs = {
        "ours": start_of(ours_8bit),
        "theirs": start_of(bitsandbytes.optim.AdamW8bit, min_8bit_size=1),
        "32 bit": start_of(torch.optim.AdamW),
    }
    start = runs["ours"][1].detach().clone()
    after = {name: trained(*run, steps, spread=0) for name, run in runs.items()}
    moved = (after["32 bit"] - start).abs().mean()
    assert (after["ours"] - after["theirs"]).abs().mean() < 1e-3 * moved
    error = (after["ours"] - after["32 bit"]).abs().mean() / moved
    assert error < (1e-6 if steps == 1 else 0.03)
    state, exact = (runs[name][0].state[runs[name][1]] for name in ("ours", "32 bit"))
    small, large = (sum(v.nbytes for k, v in s.items() if k != "step") for s in (state, exact))
    assert large / small > 3.9


def test_a_small_second_moment_does_not_vanish():
    """Gradients of very different sizes: an update divided by 0 + ε would be 10^5 too large."""
    (eight, ours), (exact, wanted) = start_of(ours_8bit), start_of(torch.optim.AdamW)
    start = ours.detach().clone()
    ours, wanted = trained(eight, ours, 5, spread=6), trained(exact, wanted, 5, spread=6)
    assert (ours - start).abs().max() < 2 * (wanted - start).abs().max()
    assert (ours - wanted).abs().mean() < 0.1 * (wanted - start).abs().mean()


def test_the_embedding_and_norms_stay_in_32_bits_and_equal_torchs_adamw():
    exact, eight = tiny_policy(), tiny_policy()
    optimizers = []
    for name, policy in (("adamw", exact), ("adamw8bit", eight)):
        optimizers.append(make_optimizer(name, policy, weight_decay=0.1, beta2=0.99))
        for group in optimizers[-1].param_groups:
            group["lr"] = 1e-3
    torch.manual_seed(0)
    for _ in range(3):
        for ours, theirs in zip(eight.parameters(), exact.parameters()):
            ours.grad = theirs.grad = torch.randn_like(ours)
        for optimizer in optimizers:
            optimizer.step()
    for (name, ours), theirs in zip(eight.named_parameters(), exact.parameters()):
        state, in_32_bit = optimizers[1].state[ours], "norm" in name or "embed" in name
        assert state["exp_avg"].dtype == (torch.float32 if in_32_bit else torch.uint8), name
        tolerance = dict(rtol=1e-6, atol=1e-8) if in_32_bit else dict(rtol=0, atol=3e-4)
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_rows_at_a_time_make_no_difference(monkeypatch):
    whole = trained(*start_of(ours_8bit), 3, spread=1)
    monkeypatch.setattr(optim, "CHUNK", 700)
    assert torch.equal(whole, trained(*start_of(ours_8bit), 3, spread=1))
