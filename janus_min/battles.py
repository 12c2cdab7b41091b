"""From the labels of a judge to battles, and from battles to scores, as in Arena-Hard-Auto v0.1
(arXiv 2406.11939).

Each question is two games: in the first the judge sees the baseline's answer as A and the model's
as B, in the second the other way round. A game is one battle, or three of the same outcome if its
label says that one side is much better. The score is that of a Bradley-Terry model,

    P(model beats baseline) = 1 / (1 + 10^((1000 - R) / 400)),    the baseline's Elo being 1000,

with the R that makes the battles likeliest. Upstream finds it by logistic regression, without an
intercept or a penalty: each battle is two rows with +ln 10 for one side and -ln 10 for the other,
a tie a win in one of them and a loss in the other, and R = 400 · coefficient + 1000. No fit is
needed. The baseline is in every battle, so the likelihood is a product of one factor for each
model, p^(2w + t) (1 - p)^(2l + t) for w wins, t ties and l losses, where p is the P above. It is
largest at p = (2w + t) / (2w + 2t + 2l):

    score = 100 / (1 + 10^((1000 - R) / 400)) = 100 (w + t/2) / (w + t + l)

Its 95 % interval has the 2.5th and the 97.5th percentile of the scores of resampled battles.

    Note: single battles are drawn, as upstream does it, so that the three of a clear win, and the
    two games of a question, pass for independent. The interval is too narrow: over questions, it
    would be 1.6 and 1.7 times as wide for gpt-4-0613 and gpt-3.5-turbo-0125. Upstream has 100
    rounds, with which the ends differ by up to a point from seed to seed.
    Percentiles are of scores, not of R, which has no bound if all battles are won.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from janus_min.replies import ReplyError

OUTCOMES = ("win", "tie", "lose")  # of the model, not of the baseline
POINTS = {"win": 1.0, "tie": 0.5, "lose": 0.0}
LABELS = {  # -> outcome of B, battles
    "A>>B": ("lose", 3),
    "A>B": ("lose", 1),
    "A=B": ("tie", 1),
    "B>A": ("win", 1),
    "B>>A": ("win", 3),
}
WINNERS = {"model_a": "lose", "tie": "tie", "model_b": "win"}  # in upstream's files of battles
LABEL = r"\[\[([AB<>=]+)\]\]"
ENDS = (2.5, 97.5)  # percentiles


class Game(NamedTuple):
    """What the judge said about one order of two answers."""

    id: str  # of the question
    number: int  # 0: the model is B; 1: the model is A
    labels: tuple[str, ...]  # all different ones that it wrote

    def label(self) -> str | None:
        """The one label; None for no verdict."""
        return self.labels[0] if len(self.labels) == 1 else None


class Battle(NamedTuple):
    """One row of upstream's file of battles."""

    id: str  # of the question
    model: str
    outcome: str  # one of OUTCOMES


# Labels


def labels_in(text: str) -> tuple[str, ...]:
    """All different labels in what a judge wrote, in their order."""
    return tuple(dict.fromkeys(re.findall(LABEL, text)))


def label_in(reply: str) -> str | None:
    """The only label in a reply, None if it has different ones, which is final. Raises ReplyError
    without any, so that the judge is asked to go on.
    """
    labels = labels_in(reply)
    if not labels:
        raise ReplyError("no label such as [[A>B]] in the reply")
    return labels[0] if len(labels) == 1 else None


def label_counts(games: Iterable[Game]) -> dict[str, int]:
    """How many games have each label, in the order of LABELS; then those that are none of them."""
    found = Counter(game.label() for game in games if game.label())
    return dict.fromkeys(LABELS, 0) | dict(sorted(found.items()))


def verdict_counts(games: list[Game]) -> dict[str, int]:
    """How many games have a verdict ("ok") or none ("failed"); among the latter, those with labels
    that contradict each other ("several") and with one that is none of LABELS ("odd").
    """
    labels = [game.label() for game in games]
    ok = sum(label in LABELS for label in labels)
    odd = sum(label is not None for label in labels) - ok
    several = sum(len(game.labels) > 1 for game in games)
    return {"ok": ok, "failed": len(games) - ok, "several": several, "odd": odd}


# Battles


def battles_of(model: str, games: Iterable[Game]) -> Iterator[Battle]:
    """The battles of a model's games; those without a verdict have none."""
    opposite = dict(zip(OUTCOMES, reversed(OUTCOMES)))
    for game in games:
        outcome, weight = LABELS.get(game.label(), ("tie", 0))
        yield from [Battle(game.id, model, opposite[outcome] if game.number else outcome)] * weight


def scores(
    battles: list[Battle], rounds: int, seed: int
) -> dict[str, tuple[float, list[float] | None]]:
    """Score and interval, 0 to 100, of each model with battles. In each of the rounds as many
    battles are drawn as there are, those of all models together; a model that no round has drawn
    has no interval.
    """
    names = list(dict.fromkeys(battle.model for battle in battles))
    numbers = {name: number for number, name in enumerate(names)}
    model = np.array([numbers[battle.model] for battle in battles], dtype=int)
    points = np.array([POINTS[battle.outcome] for battle in battles])
    generator = np.random.default_rng(seed)

    def means(rows: np.ndarray) -> np.ndarray:
        """Scores (models,) of some battles (rows,), by their places; NaN without any."""
        sums = np.bincount(model[rows], points[rows], len(names))
        with np.errstate(invalid="ignore"):
            return 100 * sums / np.bincount(model[rows], minlength=len(names))

    n = len(battles)
    drawn = np.stack([means(generator.integers(n, size=n)) for _ in range(rounds)])
    found = {}
    for name, score, column in zip(names, means(np.arange(n)), drawn.T):
        column = column[~np.isnan(column)]
        interval = np.percentile(column, ENDS).tolist() if column.size else None
        found[name] = float(score), interval
    return found
