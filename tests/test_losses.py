"""The equations by hand, and a step's loss under any split of its examples."""

import pytest
import torch

from janus_min.data import best_fit, build_row
from janus_min.losses import sequence_logps, sft_loss
from janus_min.objectives import Counts, sft
from janus_min.optim import adamw, learning_rate
from tests.conftest import random_examples, tiny_policy


def test_sequence_logps_by_hand():
    """Two responses in a row: −1 −2 and −4, and a prompt position whose value must not count."""
    logps = torch.tensor([-9.0, -1.0, -2.0, 0.0, -9.0, -4.0, 0.0])
    response = torch.tensor([-1, 0, 0, 0, -1, 1, 1])
    assert sequence_logps(logps, response, 2).tolist() == [-3.0, -4.0]
    assert sequence_logps(logps, response, 3).tolist() == [-3.0, -4.0, 0.0]


def test_sequence_logps_spread_their_gradient_over_their_own_tokens():
    logps = torch.zeros(5, requires_grad=True)
    sums = sequence_logps(logps, torch.tensor([-1, 0, 0, 1, -1]), 2)
    (sums * torch.tensor([2.0, 3.0])).sum().backward()
    assert logps.grad.tolist() == [0, 2, 2, 3, 0]


def test_sequence_logps_equal_a_loop_over_positions():
    policy, examples = tiny_policy(dtype=torch.float64), random_examples(5)
    row = build_row(examples, None)
    sums = sequence_logps(policy(row), row.response, len(examples))
    for example, total in zip(examples, sums, strict=True):
        alone = build_row([example], None)
        hidden = policy.model(alone.inputs, alone.positions, alone.key_end)
        logps = policy.lm_head(hidden).log_softmax(-1)
        P = len(example.prompt)
        by_hand = sum(logps[P - 1 + i, token] for i, token in enumerate(example.response))
        assert total.item() == pytest.approx(by_hand.item(), abs=1e-10)


def test_sft_loss_is_zero_for_a_perfect_model_and_sees_the_first_token():
    """One-hot logits at every target cost nothing; one wrong first token costs."""
    [example] = random_examples(1, seed=5)
    row = build_row([example], None)
    logits = torch.full((len(row.inputs), 97), -100.0)
    scored = row.targets >= 0
    logits[scored, row.targets[scored]] = 100.0

    def loss():
        logps = logits.log_softmax(-1).gather(1, row.targets.clamp(min=0)[:, None])[:, 0]
        return sft_loss(logps.where(scored, 0.0)).sum().item()

    assert loss() == pytest.approx(0.0, abs=1e-6)
    first = scored.nonzero()[0]
    logits[first, row.targets[first]] = -100.0
    assert loss() > 1


def step_gradients(policy, rows, examples):
    """Loss and gradients of one optimizer step whose examples are laid out in these rows."""
    counts = Counts.of(examples)
    policy.zero_grad()
    total = 0.0
    for row in rows:
        loss = sft(policy, build_row([examples[i] for i in row], None), counts)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in policy.parameters()]


def test_the_split_into_rows_changes_neither_loss_nor_gradients():
    """A mean of the rows' means would weigh a token by the row that it stands in."""
    policy, examples = tiny_policy(dtype=torch.float64), random_examples(9)
    lengths = [len(example) for example in examples]
    whole = step_gradients(policy, [list(range(9))], examples)
    for capacity in (24, 40, 70):
        split = step_gradients(policy, best_fit(lengths, capacity), examples)
        assert split[0] == pytest.approx(whole[0], rel=1e-13)
        for ours, wanted in zip(split[1], whole[1], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-13)


def test_padding_changes_neither_loss_nor_gradients():
    policy, examples = tiny_policy(dtype=torch.float64), random_examples(3)
    counts = Counts.of(examples)
    results = []
    for pad_to in (None, 90):
        policy.zero_grad()
        loss = sft(policy, build_row(examples, None, pad_to), counts)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in policy.parameters())])
    for bare, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, bare, rtol=1e-10, atol=1e-13)


def test_counts_are_the_number_of_summed_terms():
    examples = random_examples(9)
    row = build_row(examples, None)
    assert Counts.of(examples).targets == (row.targets >= 0).sum()


# Optimizer and schedule


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
    optimizer = adamw(policy, weight_decay=0.0, beta2=0.999)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 5e-7
    examples = random_examples(9)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    sft(policy, build_row(examples, None), Counts.of(examples)).backward()
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
        adamw(tiny_policy(dtype=torch.bfloat16), weight_decay=0.0, beta2=0.999)
    policy = tiny_policy()
    matrices, norms = adamw(policy, weight_decay=0.1, beta2=0.999).param_groups
    assert matrices["weight_decay"] == 0.1 and norms["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in policy.named_parameters()}
    assert all("norm" in names[parameter] for parameter in norms["params"])
    assert not any("norm" in names[parameter] for parameter in matrices["params"])
