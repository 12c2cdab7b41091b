"""AdamW and the learning-rate schedule."""

import pytest
import torch

from janus_min.objectives import Counts, sft
from janus_min.optim import learning_rate, make_optimizer
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
