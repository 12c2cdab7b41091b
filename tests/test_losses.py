"""The equations: by hand, their gradients, and beside TRL on the same numbers."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from janus_min import losses
from janus_min.losses import (
    average_logps,
    dpo_loss,
    log_odds,
    orpo_loss,
    reward_loss,
    sequence_logps,
    sft_loss,
)
from janus_min.row import build_row
from tests import trl_losses
from tests.conftest import random_examples, random_pairs, tiny_policy

# Log-probabilities of responses


def test_sequence_logps_by_hand():
    """Two responses in a row: −1 −2 and −4, and a prompt position whose value must not count."""
    logps = torch.tensor([-9.0, -1.0, -2.0, 0.0, -9.0, -4.0, 0.0])
    response = torch.tensor([-1, 0, 0, 0, -1, 1, 1])
    assert sequence_logps(logps, response, 2).tolist() == [-3.0, -4.0]
    assert sequence_logps(logps, response, 3).tolist() == [-3.0, -4.0, 0.0]


def test_average_logps_by_hand():
    """The same row: −3 over two tokens, −4 over one; positions of EOS predict nothing."""
    logps = torch.tensor([-9.0, -1.0, -2.0, 0.0, -9.0, -4.0, 0.0])
    targets = torch.tensor([5, 6, 2, -1, 5, 2, -1])
    response = torch.tensor([-1, 0, 0, 0, -1, 1, 1])
    assert average_logps(logps, targets, response, 2).tolist() == [-1.5, -4.0]


def test_a_response_said_twice_doubles_its_sum_and_keeps_its_mean():
    once, twice = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0, -2.0])
    for logps, total in ((once, -3.0), (twice, -6.0)):
        owner, targets = torch.zeros(len(logps), dtype=torch.long), torch.ones(len(logps))
        assert sequence_logps(logps, owner, 1).item() == total
        assert average_logps(logps, targets, owner, 1).item() == -1.5


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
        by_hand = sum(logps[P - 1 + i, token] for i, token in enumerate(example.responses[0]))
        assert total.item() == pytest.approx(by_hand.item(), abs=1e-10)


def test_a_long_bf16_sum_is_taken_in_fp32():
    """1,000 tokens at −15: a running sum in bf16 stalls at −8,192."""
    logps = torch.full((1000,), -15.0)  # fp32, as token_logps returns for any model
    owner = torch.zeros(1000, dtype=torch.long)
    assert sequence_logps(logps, owner, 1).item() == -15_000
    assert sequence_logps(logps.bfloat16(), owner, 1).item() != -15_000


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


# Direct Preference Optimization


def dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1):
    values = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    tensors = {n: torch.as_tensor(v, dtype=torch.float64) for n, v in zip(names, values)}
    return dpo_loss(**tensors, beta=beta)


def test_dpo_loss_by_hand():
    """Log-ratios −10+12 = 2 and −20+19 = −1; β = 0.1: margin 0.3, loss ln(1 + e^−0.3)."""
    loss, chosen, rejected = dpo(-10.0, -20.0, -12.0, -19.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.3)), abs=1e-12)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.2, -0.1))


def test_dpo_starts_at_ln_2_with_a_slope_of_half_beta_each_way():
    """At the reference the loss is ln 2, and its gradient −β/2 by log π(y_w), +β/2 by
    log π(y_l)."""
    chosen = torch.tensor([-50.0, -3.0], requires_grad=True)
    rejected = torch.tensor([-70.0, -1.0], requires_grad=True)
    loss, *rewards = dpo_loss(
        policy_chosen=chosen,
        policy_rejected=rejected,
        reference_chosen=chosen.detach(),
        reference_rejected=rejected.detach(),
        beta=0.1,
    )
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.05, -0.05])
    assert rejected.grad.tolist() == pytest.approx([0.05, 0.05])
    assert all(not reward.requires_grad and (reward == 0).all() for reward in rewards)


@pytest.mark.parametrize("margin", [-500.0, -120.0, 0.0, 120.0, 500.0])
def test_dpo_and_reward_losses_are_finite_far_from_zero(margin):
    """log(sigmoid(−120)) is −inf in fp32."""
    value = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    for loss in (
        dpo_loss(policy_chosen=value, policy_rejected=zero, reference_chosen=zero,
                 reference_rejected=zero, beta=1.0)[0],
        reward_loss(chosen=value, rejected=zero),
    ):  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.sum(), value)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert loss.item() == pytest.approx(max(0.0, -margin), abs=1)


def test_log_probabilities_go_by_name_only():
    """Four tensors of one kind: by position, two of them could change places unnoticed."""
    for function in (dpo_loss, orpo_loss, reward_loss):
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.kind is parameter.KEYWORD_ONLY


def test_sequence_logps_and_dpo_loss_fit_on_one_screen():
    _, first = inspect.getsourcelines(losses.sequence_logps)
    more, start = inspect.getsourcelines(losses.dpo_loss)
    assert start + len(more) - first <= 50


# Odds Ratio Preference Optimization


def test_orpo_loss_by_hand():
    """p = 1/2 has odds 1, p = 1/4 odds 1/3: a ratio of 3, and −log σ(log 3) = log(4/3)."""
    loss, ratio = orpo_loss(
        policy_chosen=torch.tensor([1 / 2]).log(), policy_rejected=torch.tensor([1 / 4]).log()
    )
    assert ratio.item() == pytest.approx(math.log(3), rel=1e-6)
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-6)


NEAR_AND_FAR = [0.0, -1e-12, -1e-8, -1e-7, -1e-3, -0.69, -50.0, -200.0]


@pytest.mark.parametrize("logp", NEAR_AND_FAR)
def test_log_odds_have_a_finite_gradient_everywhere(logp):
    """From ε on they equal the fp64 values to fp32's precision."""
    x = torch.tensor([logp], requires_grad=True)
    odds = log_odds(x)
    (gradient,) = torch.autograd.grad(odds.sum(), x)
    assert odds.isfinite().all() and gradient.isfinite().all() and gradient >= 0
    if logp < -1.2e-7:
        exact = x.item() - math.log(-math.expm1(x.item()))
        assert odds.item() == pytest.approx(exact, rel=3e-6, abs=1e-7)
        assert gradient.item() == pytest.approx(-1 / math.expm1(x.item()), rel=1e-5)


def test_the_gradient_of_trls_log_odds_is_nan_near_certainty_and_ours_is_not():
    """As TRL computes them today."""
    for logp in (-1e-8, -1e-12):
        theirs, ours = (torch.tensor([logp], requires_grad=True) for _ in range(2))
        (theirs - trl_losses.log1mexp(theirs)).sum().backward()
        log_odds(ours).sum().backward()
        assert theirs.grad.isnan().all() and ours.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_the_precision_of_token_logps(dtype):
    """That is fp32 for any model (`test_bf16_rows_of_a_fixed_length_as_on_a_gpu`)."""
    x = torch.tensor([-1.234567, -2.0], dtype=dtype)
    four = dict.fromkeys(
        ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"), x
    )
    assert {
        sft_loss(x).dtype,
        dpo_loss(**four, beta=0.1)[0].dtype,
        orpo_loss(policy_chosen=x, policy_rejected=x)[0].dtype,
        reward_loss(chosen=x, rejected=x).dtype,
    } == {dtype}


# Beside TRL, on random tensors


def random_logps(count, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [-scale * torch.rand(256, generator=generator) - 1e-4 for _ in range(count)]


class Fixed(nn.Module):
    """A model that knows the log-probabilities of responses of one token."""

    is_gradient_checkpointing = False

    def __init__(self, chosen, rejected):
        super().__init__()
        self.logps = torch.cat([chosen, rejected])[:, None]

    def forward(self, **_):
        others = dict(entropy=self.logps, mean_logits=self.logps, is_top1=self.logps > 0)
        return SimpleNamespace(log_probs=self.logps, **others)


def test_dpo_loss_equals_trls_sigmoid_loss():
    pairs = random_logps(4, scale=300.0)
    ids = torch.ones(512, 2, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids}
    batch["completion_mask"] = torch.tensor([[0, 1]]).expand(512, 2)
    theirs, logged = trl_losses.dpo(Fixed(*pairs[:2]), Fixed(*pairs[2:]), batch, beta=0.3)
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    ours, chosen, rejected = dpo_loss(**dict(zip(names, pairs)), beta=0.3)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-6, atol=0)
    assert logged["rewards/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert logged["rewards/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-5)


def test_orpo_loss_equals_trls_odds_ratio_loss():
    """Theirs is β·log σ(…), whose mean they subtract."""
    chosen, rejected = random_logps(2, scale=4.0)
    theirs, *_, ratio, log_odds_ratio = trl_losses.odds_ratio(chosen, rejected, beta=0.3)
    ours, log_ratio = orpo_loss(policy_chosen=chosen, policy_rejected=rejected)
    torch.testing.assert_close(-0.3 * ours, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(-ours.mean(), ratio, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_ratio.mean(), log_odds_ratio, rtol=1e-5, atol=0)


def test_reward_loss_equals_trls():
    chosen, rejected = random_logps(2, scale=8.0)
    model = lambda **_: SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])  # noqa: E731
    theirs, logged = trl_losses.reward(model, {"attention_mask": torch.ones(1)})
    ours = reward_loss(chosen=chosen, rejected=rejected)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-6, atol=0)
    assert logged["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())


def test_padding_behind_a_response_changes_nothing():
    """In the official ORPO code the first pad token was scored."""
    policy, pairs = tiny_policy(dtype=torch.float64), random_pairs(3)
    results = []
    for pad_to in (None, 150):
        row = build_row(pairs, None, pad_to)
        logps = policy(row)
        results.append(
            torch.stack([
                sequence_logps(logps, row.response, 6),
                average_logps(logps, row.targets, row.response, 6),
            ])
        )  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    lengths = torch.tensor([len(r) for pair in pairs for r in pair.responses])
    torch.testing.assert_close(results[0][1] * lengths, results[0][0])
