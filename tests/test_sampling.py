"""The rules of sampling, by hand."""

import pytest
import torch

from janus_min import sampling as rules
from janus_min.errors import UserError
from janus_min.sampling import FEW, Sampling, first_ranks, sample


def draw(probs, uniform, **settings):
    """Which of the tokens is drawn, for each of the numbers in [0, 1)."""
    sampling = Sampling(**(dict(repetition_penalty=1.0) | settings))
    logits = torch.tensor(probs, dtype=torch.float64).log().repeat(len(uniform), 1)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    return sample(logits, seen, sampling, torch.tensor(uniform, dtype=torch.float64)).tolist()


GRID = [i / 1000 for i in range(1000)]


def test_nucleus_keeps_the_token_that_crosses():
    assert set(draw([0.5, 0.41, 0.09], GRID, top_p=0.9)) == {0, 1}
    assert set(draw([0.5, 0.39, 0.11], GRID, top_p=0.9)) == {0, 1, 2}
    assert set(draw([0.5, 0.41, 0.09], GRID, top_p=1.0)) == {0, 1, 2}
    assert set(draw([0.3, 0.3, 0.4], GRID, top_p=1e-8)) == {2}
    assert set(draw([0.25] * 4, GRID, top_p=0.5)) == {0, 1}  # ties: the lower ids


def test_frequencies_are_the_renormalised_probabilities():
    drawn = draw([0.5, 0.41, 0.09], GRID, top_p=0.9)
    assert drawn.count(0) / 1000 == pytest.approx(0.5 / 0.91, abs=0.002)
    # Temperature ½ squares the probabilities: 0.64, 0.16 over their sum.
    drawn = draw([0.8, 0.2], GRID, temperature=0.5, top_p=1.0)
    assert drawn.count(0) / 1000 == pytest.approx(0.64 / 0.68, abs=0.002)


def test_extreme_random_numbers_stay_within_the_nucleus():
    almost_one = 1 - 2**-53
    assert draw([0.5, 0.41, 0.09], [0.0, almost_one], top_p=0.9) == [0, 1]


def test_the_largest_random_number_does_not_become_one_in_fp32():
    """Of a thousand tokens two are possible, and the last one has the largest id."""
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, :2] = 0.0
    settings = Sampling(top_p=1.0, repetition_penalty=1.0)
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample(logits, torch.zeros(1, 1000, dtype=torch.bool), settings, almost_one) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [5, 1000])
@pytest.mark.parametrize("settings", [{"top_p": 1e-50}, {"temperature": 1e-46}])
def test_numbers_below_those_of_fp32_are_greedy(dtype, vocabulary, settings):
    logits = torch.randn(3, vocabulary, dtype=dtype, generator=torch.Generator().manual_seed(0))
    seen, numbers = torch.zeros(3, vocabulary, dtype=torch.bool), torch.tensor([0.0, 0.5, 0.99])
    found = sample(logits, seen, Sampling(repetition_penalty=1.0, **settings), numbers)
    assert torch.equal(found, logits.argmax(-1))


def test_temperature_zero_is_the_most_likely_token():
    assert draw([0.2, 0.5, 0.3], [0.0, 0.999], temperature=0.0) == [1, 1]


def test_a_tiny_temperature_is_nearly_greedy_and_not_nan():
    assert draw([0.2, 0.5, 0.3], [0.0, 0.999], temperature=1e-40) == [1, 1]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    """2 / 1.03 falls below 1.95, and −2 · 1.03 below −2.05; unseen logits stay."""
    seen = torch.tensor([[True, False, False]])
    sampling = Sampling(temperature=0, repetition_penalty=1.03)
    for logits, winner in [([2.0, 1.95, 0.0], 1), ([2.0, 1.93, 0.0], 0)]:
        assert sample(torch.tensor([logits]), seen, sampling, torch.zeros(1)).item() == winner
    for logits, winner in [([-2.0, -2.05, -9.0], 1), ([-2.0, -2.07, -9.0], 0)]:
        assert sample(torch.tensor([logits]), seen, sampling, torch.zeros(1)).item() == winner


def test_settings_out_of_range_are_refused():
    for wrong, message in [
        ({"temperature": -0.1}, "--temperature is -0.1, must be finite and at least 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"repetition_penalty": float("inf")}, "--repetition-penalty is inf"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            Sampling(**wrong)


# The nucleus among a few tokens, and among all


def rows(count, vocabulary=1000, spread=3.0, seed=0):
    """Probabilities of `count` rows, in which some are equal."""
    random = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, vocabulary, generator=random, dtype=torch.float64)
    return (logits * 2).round().div(2).softmax(-1)


@pytest.mark.parametrize("top_p", [1e-8, 0.3, 0.6, 0.9])
def test_the_first_ranks_are_those_of_a_stable_sort(top_p):
    found = 0
    for seed in range(40):
        probs = rows(2, seed=seed)
        if (ranked := first_ranks(probs, top_p)) is None:
            continue
        found += 1
        values, order = probs.sort(dim=-1, descending=True, stable=True)
        kept = (rules.in_nucleus(values, values.cumsum(-1), top_p)).sum(-1)
        for row in range(2):
            count = kept[row]
            assert count < FEW and torch.equal(ranked[1][row, :count], order[row, :count])
            assert torch.equal(ranked[0][row, :count], values[row, :count])
    assert found > 20 if top_p <= 0.6 else found > 0


def test_a_nucleus_that_may_be_larger_is_not_looked_for_among_a_few():
    flat = torch.full((1, 1000), 1 / 1000)
    assert first_ranks(flat, 0.9) is None
    assert first_ranks(rows(1), 1.0) is None and first_ranks(rows(1, vocabulary=200), 0.5) is None
    # The nucleus is of two, but others are as likely as its second one.
    logits = torch.zeros(1, 1000, dtype=torch.float64)
    logits[0, 500] = 9.0
    assert first_ranks(logits.softmax(-1), 0.9) is None
    assert first_ranks(logits.softmax(-1), 0.8) is not None


def test_draws_are_the_same_by_few_and_by_all(monkeypatch):
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = rows(200, spread=5.0).log()
    seen = torch.zeros_like(logits, dtype=torch.bool)
    taken = [sum(first_ranks(row[None], 0.9) is not None for row in logits.softmax(-1))]
    settings = Sampling(repetition_penalty=1.0)

    def draws():
        pairs = zip(logits.split(1), uniform.split(1))
        return [sample(row, seen[:1], settings, number).item() for row, number in pairs]

    by_few = draws()
    monkeypatch.setattr(rules, "first_ranks", lambda probs, top_p: None)
    assert by_few == draws() and taken[0] > 100
