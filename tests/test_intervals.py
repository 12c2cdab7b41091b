"""Deviations and intervals: numbers worked out by hand, published ones, and how often they hold."""

import math

import numpy as np
import pytest

from janus_min.intervals import Z, deviation, half_width, share_interval


def test_z_cuts_two_and_a_half_percent_off_each_side():
    assert 0.5 * math.erfc(Z / math.sqrt(2)) == pytest.approx(0.025, abs=1e-8)


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([], None),
        ([3.0], None),
        ([4, 4, 4], 0.0),
        ([1, 2], math.sqrt(0.5)),  # ± 1/2: (1/4 + 1/4) / 1
        ([2, 4, 4, 4, 5, 5, 7, 9], math.sqrt(32 / 7)),  # mean 5: 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16
        ([1e9 + 1, 1e9 + 2, 1e9 + 3], 1.0),
        ([0.1] * 10, 0.0),
    ],
)
def test_deviation_by_hand(values, spread):
    assert deviation(values) == (None if spread is None else pytest.approx(spread, abs=1e-12))


@pytest.mark.parametrize(
    ("values", "half"),
    [
        ([], None),
        ([3.0], None),
        ([4, 4, 4], 0),
        # Squares 4 + 0 + 4 over n - 1 = 2 make s = 2; half is 1.959964 · 2 / √3.
        ([1, 3, 5], 2.2631715),
        # s² = 0.5, and √(0.5 / 2) = 0.5.
        ([1, 2], 0.979982),
    ],
)
def test_half_width_by_hand(values, half):
    assert half_width(values) == (None if half is None else pytest.approx(half, abs=1e-6))


@pytest.mark.parametrize(
    ("seen", "n", "published"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_shares_as_published(seen, n, published):
    """Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I."""
    assert share_interval(seen / n, n) == pytest.approx(published, abs=5e-5)


def bisect(function, low, high):
    """Where a function that is negative at `low` and positive at `high` is zero."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("n", [1, 2, 7, 100, 921])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_the_ends_are_the_shares_that_are_just_z_deviations_away(share, n):
    """Wilson's interval has every q with |p - q| <= Z √(q(1 - q)/n), found here by bisection."""

    def excess(q):
        return abs(share - q) - Z * math.sqrt(q * (1 - q) / n)

    low = 0.0 if share == 0 else bisect(lambda q: -excess(q), 0.0, share)
    high = 1.0 if share == 1 else bisect(excess, share, 1.0)
    assert share_interval(share, n) == pytest.approx([low, high], abs=1e-9)


def test_shares_by_hand():
    """Z² is 3.841459: of 10 items, none, all or half."""
    assert share_interval(0.0, 0) == [0.0, 1.0]
    assert share_interval(0.5, 0) == [0.0, 1.0]
    assert share_interval(0.0, 10) == pytest.approx([0, 3.841459 / 13.841459], abs=1e-7)
    assert share_interval(1.0, 10) == pytest.approx([10 / 13.841459, 1], abs=1e-7)
    # In the middle the half width is Z √(1/40 + Z²/400) / (1 + Z²/10).
    half = 1.959964 * math.sqrt(0.025 + 0.009603647) / 1.3841459
    assert share_interval(0.5, 10) == pytest.approx([0.5 - half, 0.5 + half], abs=1e-7)


@pytest.mark.parametrize("n", [1, 3, 10, 921, 10**6])
def test_shares_stay_between_0_and_1_and_agreement_has_a_width(n):
    for share in (0.0, 1 / 3, 1.0):
        low, high = share_interval(share, n)
        assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
        assert high > low


def test_share_intervals_hold_as_often_as_they_say():
    """The exact probability that the interval has the true share in it, over 99 of these."""
    n = 50
    intervals = [share_interval(k / n, n) for k in range(n + 1)]

    def coverage(p):
        chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        inside = [low <= p <= high for low, high in intervals]
        return sum(chance for chance, yes in zip(chances, inside) if yes)

    covered = [coverage(p / 100) for p in range(1, 100)]
    assert 0.94 < np.mean(covered) < 0.965
    assert min(covered) > 0.85


def test_mean_intervals_hold_as_often_as_they_say():
    """Of 4,000 seeded samples of 50 uneven grades; 95 % ± 0.34 % if the formula is right."""
    grades, chances = np.array([1, 2, 3, 4, 5]), np.array([0.1, 0.1, 0.2, 0.3, 0.3])
    true = float(grades @ chances)
    samples = np.random.default_rng(0).choice(grades, size=(4000, 50), p=chances)
    held = [abs(np.mean(sample) - true) <= half_width(sample) for sample in samples.tolist()]
    assert 0.92 < np.mean(held) < 0.97
