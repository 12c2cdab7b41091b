"""Published results from recorded outputs of real judges, where these lie beside the clone."""

import pytest

from janus_min.length_control import refit, win_rate
from tests.bench.alpaca_eval import (
    MODELS,
    STALE,
    Published,
    columns,
    from_weights,
    judged_rows,
    off_the_leaderboard,
    off_the_preferences,
    read_published,
    strength_behind,
    wanted,
)
from tests.recorded import recorded


@pytest.fixture(scope="module")
def published() -> Published:
    return read_published(recorded("alpaca_eval"))


def test_published_weights_give_the_published_length_controlled_win_rates(published):
    off = from_weights(published, recorded("alpaca_eval"))
    assert len(off) == 199
    wrong = {name for name, (rate, error, _) in off.items() if max(rate, error) > 1e-6}
    assert wrong == set(STALE)


@pytest.mark.parametrize("name", MODELS)
def test_recorded_judgments_give_the_columns_of_the_leaderboard(published, name):
    off = off_the_leaderboard(published, recorded("alpaca_eval"), name)
    assert len(off) >= 9 and {column for column in off if off[column] > 1e-6} == set()


def test_every_preference_follows_from_the_recorded_log_probabilities():
    """They are kept with ten decimals. Three of 805 outputs were the baseline's own."""
    count, off = off_the_preferences(recorded("alpaca_eval", "alpaca-7b", "annotations.json"))
    assert count == 802 and off < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_to_the_judgments_gives_the_published_length_controlled_win_rate(published, name):
    """The gamed rows are not the published ones: hence the tolerances."""
    y, lengths = judged_rows(recorded("alpaca_eval", name, "annotations.json"))
    d, weights = published.difficulty, published.weights[name]
    found = refit(y, lengths, d, published.gamed)
    assert win_rate(found.weights, d)[0] == pytest.approx(wanted(published, name), abs=0.15)
    C = strength_behind(weights, *columns(y, lengths, d, published.gamed))
    at_C = refit(y, lengths, d, published.gamed, C)
    assert win_rate(at_C.weights, d)[0] == pytest.approx(wanted(published, name), abs=0.02)
    assert at_C.weights == pytest.approx(weights, abs=0.001)
