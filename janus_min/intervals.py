"""How far a mean may be off: standard deviations and 95 % intervals, over items."""

import math
from collections.abc import Iterable

Z = 1.959964  # of the normal distribution: 95 % lie within ± Z standard deviations


def mean(values: Iterable[float]) -> float:
    """The mean of one value or more."""
    values = list(values)
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float | None:
    """The standard deviation of a sample (its squares divided by n - 1); None for fewer than 2."""
    n = len(values)
    if n < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))


def half_width(values: list[float]) -> float | None:
    """Z · s / √n: half of the interval of a mean of n values with deviation s; None for fewer than
    two. It is the normal approximation, which is too narrow for fewer than about 30.
    """
    spread = deviation(values)
    return None if spread is None else Z * spread / math.sqrt(len(values))


def share_interval(share: float, n: int) -> list[float]:
    """Wilson's interval for a share p that was seen in n items (Wilson 1927):

        (p + Z²/2n ± Z √(p(1 - p)/n + Z²/4n²)) / (1 + Z²/n)

    Unlike p ± Z√(p(1 - p)/n) it has a width even if all items agree. Without items, it is [0, 1].
    """
    if n == 0:
        return [0.0, 1.0]
    centre, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]
