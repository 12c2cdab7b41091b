"""A step's loss under any split of its examples, and beside TRL on the same batch and model."""

import copy
import math

import pytest
import torch
from torch import nn

from janus_min.checkpoint import load_model
from janus_min.losses import average_logps, sequence_logps
from janus_min.model import Policy, RewardModel
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.plan import best_fit
from janus_min.recipes import NAMES
from janus_min.row import build_row, laid_tokens
from tests import trl_losses
from tests.conftest import (
    random_examples,
    random_pairs,
    tiny_policy,
    tiny_recipe,
    tiny_reward_model,
)
from tests.test_model import KINDS, write_mistral

PAIRED = ("dpo", "orpo", "orpo with the prompt", "reward")


def setting(name, dtype=torch.float32, count=9):
    """Model, examples and recipe of an objective."""
    objective = name.split()[0]
    changes = {"nll_on_prompt": True} if "prompt" in name else {}
    model = (tiny_reward_model if objective == "reward" else tiny_policy)(dtype=dtype)
    examples = (random_examples if objective == "sft" else random_pairs)(count, longest=20)
    return model, examples, tiny_recipe(objective, **changes)


def reference_of(examples):
    """Some log-probabilities of a reference for each example."""
    generator = torch.Generator().manual_seed(7)
    return -50 * torch.rand(len(examples), 2, generator=generator, dtype=torch.float64)


def step(model, examples, recipe, rows, window=None, share_prompt=True, pad_to=None):
    """Loss, metrics and gradients of one optimizer step whose examples are laid in these rows."""
    counts, reference = Counts.of(examples, recipe.nll_on_prompt), reference_of(examples)
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    totals: dict[str, float] = {}
    for indices in rows:
        row = build_row(
            [examples[i] for i in indices],
            window,
            pad_to,
            share_prompt=share_prompt,
            score_prompt=bool(recipe.nll_on_prompt),
        )
        row = row._replace(reference_logps=reference[indices].flatten().to(dtype))
        loss, metrics = OBJECTIVES[recipe.objective](model, row, counts, recipe)
        loss.backward()
        for key, value in ({"loss": loss.detach()} | metrics).items():
            assert not value.requires_grad
            totals[key] = totals.get(key, 0.0) + value.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return totals, gradients


def assert_same_step(ours, wanted, rtol, atol):
    assert ours[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=rtol)
    assert ours[0] == pytest.approx(wanted[0], rel=rtol, abs=rtol)  # means that may be near 0
    assert ours[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[1][name], gradient, rtol=rtol, atol=rtol * scale + atol)


def splits(examples, share_prompt):
    """Rows of one example, of two, of as many as fit in rows of three sizes, and of all."""
    count = len(examples)
    yield [[i] for i in range(count)]
    yield [list(range(i, min(i + 2, count))) for i in range(0, count, 2)]
    lengths = [laid_tokens(example, None, share_prompt) for example in examples]
    for capacity in (max(lengths), 2 * max(lengths), 3 * max(lengths)):
        yield best_fit(lengths, capacity)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["sft", *PAIRED])
def test_the_split_into_rows_changes_neither_loss_nor_gradients(name, dtype, rtol):
    """A mean of the rows' means would weigh tokens and pairs by their row. With the
    prompt shared or not, the numbers are the same."""
    model, examples, recipe = setting(name, dtype)
    whole = step(model, examples, recipe, [list(range(len(examples)))])
    assert whole[0]["loss"] > 0 and all(g.isfinite().all() for g in whole[1].values())
    for share_prompt in (True, False):
        for rows in splits(examples, share_prompt):
            split = step(model, examples, recipe, rows, share_prompt=share_prompt)
            assert_same_step(split, whole, rtol, rtol * 1e-2)


@pytest.mark.parametrize("name", PAIRED)
def test_a_pair_in_a_sliding_window_is_that_of_its_two_documents(name):
    """Where the window binds the pair is laid as two documents, otherwise it is not applied."""
    model, pairs, recipe = setting(name, torch.float64, count=4)
    everything = [[0, 1, 2, 3]]
    longest = [len(p.prompt) + max(map(len, p.responses)) for p in pairs]
    for window in (4, sorted(longest)[1], max(longest)):
        shared = step(model, pairs, recipe, everything, window)
        apart = step(model, pairs, recipe, everything, window, share_prompt=False)
        assert_same_step(shared, apart, 1e-10, 1e-12)
    assert shared[0] == pytest.approx(step(model, pairs, recipe, everything)[0], rel=1e-10)


@pytest.mark.parametrize("name", ["sft", *PAIRED])
def test_padding_changes_neither_loss_nor_gradients(name):
    model, examples, recipe = setting(name, torch.float64, count=3)
    bare, padded = (
        step(model, examples, recipe, [[0, 1, 2]], pad_to=pad_to) for pad_to in (None, 300)
    )
    assert_same_step(padded, bare, 1e-10, 1e-12)


@pytest.mark.parametrize("name", ["sft", "orpo", "orpo with the prompt"])
def test_counts_are_the_number_of_summed_terms(name):
    """Counting labels before the shift would be off by one in every document."""
    _, examples, recipe = setting(name)
    score_prompt = bool(recipe.nll_on_prompt)
    row = build_row(examples, None, score_prompt=score_prompt)
    summed = (row.targets >= 0) & ((row.response < 0) | (row.response % 2 == 0))
    if name == "sft":
        summed = row.targets >= 0
    assert Counts.of(examples, recipe.nll_on_prompt).targets == summed.sum()
    assert Counts.of(examples).pairs == (0 if name == "sft" else len(examples))


def test_every_objective_has_a_recipe_and_every_name_an_objective():
    assert tuple(OBJECTIVES) == NAMES


# What each objective reads


def test_dpo_reads_sums_orpo_means_and_the_reward_the_last_token():
    """The same rows, by hand."""
    policy, pairs, recipe = setting("dpo", torch.float64, count=3)
    row = build_row(pairs, None)._replace(reference_logps=torch.zeros(6, dtype=torch.float64))
    counts = Counts.of(pairs)
    sums = sequence_logps(policy(row), row.response, 6)
    loss, metrics = OBJECTIVES["dpo"](policy, row, counts, recipe)
    margins = recipe.beta * (sums[0::2] - sums[1::2])
    assert loss.item() == pytest.approx(torch.log1p((-margins).exp()).mean().item())
    assert metrics["rewards/margins"].item() == pytest.approx(margins.mean().item())
    assert metrics["logps/chosen"].item() == pytest.approx(sums[0::2].mean().item())

    recipe = tiny_recipe("orpo")
    loss, metrics = OBJECTIVES["orpo"](policy, row, counts, recipe)
    means = average_logps(policy(row), row.targets, row.response, 6)
    lengths = torch.tensor([len(pair.responses[0]) for pair in pairs])
    nll = -(means[0::2] * lengths).sum() / lengths.sum()
    assert metrics["nll_loss"].item() == pytest.approx(nll.item())
    odds = means.exp() / (1 - means.exp())
    ratio = torch.log1p(odds[1::2] / odds[0::2]).mean()  # −log σ(log r) = log(1 + 1/r)
    assert loss.item() == pytest.approx((nll + recipe.lambda_or * ratio).item())
    twice, _ = OBJECTIVES["orpo"](policy, row, counts, tiny_recipe("orpo", lambda_or=0.6))
    assert (twice - nll).item() == pytest.approx(2 * (loss - nll).item())  # linear in λ

    model, _, recipe = setting("reward", torch.float64)
    rewards = model(row)
    hidden = model.model(row.inputs, row.positions, row.key_end)
    assert (row.inputs[row.ends] == 2).all()  # on EOS, not on the token before it
    torch.testing.assert_close(rewards, hidden[row.ends] @ model.value_head.weight[0])
    loss, metrics = OBJECTIVES["reward"](model, row, counts, recipe)
    margins = rewards[0::2] - rewards[1::2]
    assert loss.item() == pytest.approx(torch.log1p((-margins).exp()).mean().item())
    assert metrics["accuracy"].item() == pytest.approx((margins > 0).double().mean().item())


def test_metrics_are_means_over_pairs_and_not_over_rows():
    """Five pairs in rows of four and one."""
    model, pairs, recipe = setting("reward", count=5)
    by_row = step(model, pairs, recipe, [[0, 1, 2, 3], [4]])[0]
    rewards = model(build_row(pairs, None)).view(-1, 2)
    right = (rewards[:, 0] > rewards[:, 1]).sum().item()
    assert by_row["accuracy"] == pytest.approx(right / 5) and 0 < right < 5
    assert by_row["margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item())
    assert by_row["mean_reward"] == pytest.approx(rewards.mean().item(), abs=1e-6)


def test_dpo_metrics_add_up():
    """The margin is what is optimised; both rewards may fall."""
    policy, pairs, recipe = setting("dpo")
    metrics = step(policy, pairs, recipe, [list(range(9))])[0]
    assert metrics["rewards/margins"] == pytest.approx(
        metrics["rewards/chosen"] - metrics["rewards/rejected"], rel=1e-4
    )
    assert {"rewards/accuracies", "logps/chosen", "logps/rejected"} <= metrics.keys()


def test_dpo_starts_at_ln_2_when_the_reference_is_the_policy():
    """To 1e-6 in fp32, and the first gradient is not zero."""
    policy, pairs, recipe = setting("dpo")
    row = build_row(pairs, None)
    with torch.no_grad():
        reference = sequence_logps(policy(row), row.response, len(row.ends))
    loss, metrics = OBJECTIVES["dpo"](
        policy, row._replace(reference_logps=reference), Counts.of(pairs), recipe
    )
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards/margins"] == 0
    loss.backward()
    assert policy.lm_head.weight.grad.norm() > 1e-3


# Beside TRL, on the same batch and model


@pytest.fixture(params=["v0.1, window", "v0.2, no window"])
def both(request, tmp_path):
    """The same Mistral by transformers and by us."""
    theirs = write_mistral(tmp_path, **KINDS[request.param])
    return theirs, load_model(Policy, tmp_path, impl="torch")


def assert_same_as_trl(share, ours: nn.Module, their_loss, theirs: nn.Module, logged: dict):
    """Loss to 1e-5, every parameter's gradient and every metric to 1e-4. Theirs has its own."""
    loss, metrics = share
    loss.backward()
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-5)
    for name, value in metrics.items():
        assert value.item() == pytest.approx(logged[name], rel=1e-4, abs=1e-5), name
    wanted = {n.replace("score.", "value_head."): p for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = wanted[name].grad
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4 * scale)


def test_dpo_equals_trl_on_a_batch(both):
    theirs, ours = both
    pairs, recipe = random_pairs(6), tiny_recipe("dpo")
    reference = copy.deepcopy(theirs)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
    batch = trl_losses.concatenated_batch(pairs)
    fused = (trl_losses.with_fused_head(model) for model in (theirs, reference))
    their_loss, logged = trl_losses.dpo(*fused, batch, recipe.beta)
    their_loss.backward()

    row = build_row(pairs, ours.config.sliding_window)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        logps = reference(batch["input_ids"], batch["attention_mask"], labels=labels,
                          fused_lm_head=True).log_probs.sum(1)  # fmt: skip
    row = row._replace(reference_logps=logps.view(2, -1).T.flatten())
    share = OBJECTIVES["dpo"](ours, row, Counts.of(pairs), recipe)
    assert_same_as_trl(share, ours, their_loss, theirs, logged)


def test_orpo_equals_trl_on_a_batch_with_the_prompt_scored(both):
    theirs, ours = both
    pairs, recipe = random_pairs(6), tiny_recipe("orpo", nll_on_prompt=True)
    their_loss, logged = trl_losses.orpo(theirs, trl_losses.orpo_batch(pairs), recipe.lambda_or)
    their_loss.backward()
    row = build_row(pairs, ours.config.sliding_window, score_prompt=True)
    share = OBJECTIVES["orpo"](ours, row, Counts.of(pairs, True), recipe)
    assert_same_as_trl(share, ours, their_loss, theirs, logged)

    response_only, _ = OBJECTIVES["orpo"](
        ours, build_row(pairs, ours.config.sliding_window), Counts.of(pairs), tiny_recipe("orpo")
    )
    assert abs(response_only - their_loss) > 1e-3  # our default is another scope


def test_transformers_reads_rewards_before_eos_where_eos_is_the_pad_token(both, tmp_path):
    """What TRL does for a tokenizer that has no pad token. Ours are read on EOS."""
    policy, _ = both
    pairs = random_pairs(3)
    theirs = trl_losses.classifier(policy)
    ours = RewardModel(load_model(Policy, tmp_path, impl="torch").config, "torch")
    state = {k.replace("score.", "value_head."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    batch = trl_losses.concatenated_batch(pairs)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    row = build_row(pairs, ours.config.sliding_window)
    hidden = ours.model(row.inputs, row.positions, row.key_end)
    for pad, ends in ((0, row.ends), (2, row.ends - 1)):
        theirs.config.pad_token_id = pad
        ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)
        rewards = theirs(ids, inputs["attention_mask"]).logits[:, 0].view(2, -1).T.flatten()
        torch.testing.assert_close(hidden[ends] @ ours.value_head.weight[0], rewards)
    torch.testing.assert_close(ours(row), hidden[row.ends] @ ours.value_head.weight[0])


def test_the_reward_equals_trl_on_a_batch(both, tmp_path):
    """Transformers' MistralForSequenceClassification, whose head is called `score`."""
    policy, _ = both
    pairs, recipe = random_pairs(6), tiny_recipe("reward")
    theirs = trl_losses.classifier(policy)
    ours = RewardModel(load_model(Policy, tmp_path, impl="torch").config, "torch")
    state = {k.replace("score.", "value_head."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    batch = trl_losses.concatenated_batch(pairs)
    del batch["completion_mask"]
    their_loss, logged = trl_losses.reward(theirs, batch)
    their_loss.backward()
    row = build_row(pairs, ours.config.sliding_window)
    share = OBJECTIVES["reward"](ours, row, Counts.of(pairs), recipe)
    assert_same_as_trl(share, ours, their_loss, theirs, logged)
