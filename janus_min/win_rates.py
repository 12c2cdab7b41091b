"""AlpacaEval 2.0's win rates (arXiv 2404.04475): from a judge's probabilities to preferences, and
from preferences to rates.

The judge sees two outputs, named "m" and "M", and answers with one of these names. It is the
probabilities of the two tokens that count:

    p = P(m) / (P(m) + P(M))    a token that is not among the likeliest five has probability 0

A preference x is from 1, for the baseline, to 2, for the model: 2 - p if the baseline was shown as
m, 1 + p if the model was, which the instruction decides by chance. Equal outputs are not judged:
x = 1.5. Of n preferences and y = x - 1,

    win rate = 100 mean(y),    its standard error = 100 s(y) / √n

The discrete win rate rounds each y to 0 or 1 and counts y = ½ as a draw. How the length-controlled
one takes the length of outputs out of it is in `length_control.py`.

    Note: what is no preference from 1 to 2 is left out, as upstream does; a 0, as older files have
    it, is a draw.
"""

import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min.errors import UserError
from janus_min.intervals import Z, deviation, mean
from janus_min.length_control import (
    QUESTIONS,
    difficulty_of,
    read_difficulty,
    read_gamed,
    read_weights,
    refit,
    win_rate,
)
from janus_min.replies import ReplyError

FIRST, SECOND = "m", "M"  # names of the outputs, as tokens


class Control(NamedTuple):
    """The files by which length is controlled: `weights` and `difficulty`, or `gamed`, and then the
    difficulties in it unless others are given.
    """

    weights: Path | None = None
    gamed: Path | None = None
    difficulty: Path | None = None
    by: str = QUESTIONS  # or ROWS


class Row(NamedTuple):
    """One question, and what was preferred."""

    question: int  # its number, from 0
    lengths: tuple[int, int]  # characters (code points) of the baseline's output and the model's
    preference: float | None  # 1 to 2; None: it failed


def all_same(records: list[dict]) -> bool:
    """Whether the model is the baseline, under whatever name."""
    return all(record["output_1"] == record["output_2"] for record in records)


def lengths_of(record: dict) -> tuple[int, int]:
    """Characters of the baseline's output and the model's."""
    return len(record["output_1"]), len(record["output_2"])


# Preferences


def is_switched(instruction: str) -> bool:
    """Whether the model's output is shown first: upstream's coin, so that its prompts are ours."""
    coin = random.Random(f"is_switched_outputs{instruction}0")
    return coin.choices([False, True], k=1)[0]


def first_preferred(reply: dict) -> float:
    """The probability p that the judge prefers what it was shown first, by the likeliest tokens of
    its reply. Raises ReplyError if they do not tell.
    """
    try:
        tokens = reply["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"]: float(entry["logprob"]) for entry in tokens}
    except (KeyError, IndexError, TypeError, ValueError):
        raise ReplyError(
            "the reply has no log-probabilities; the server must know 'logprobs' and 'top_logprobs'"
        ) from None
    first, second = (math.exp(min(found.get(name, -math.inf), 0.0)) for name in (FIRST, SECOND))
    if not first + second > 0:
        likeliest = ", ".join(map(repr, found))
        raise ReplyError(f"neither {FIRST!r} nor {SECOND!r} is likely; likely are {likeliest}")
    return first / (first + second)


def preference_of(p: float, switched: bool) -> float:
    """The preference that follows from the probability of what was shown first."""
    return 1 + p if switched else 2 - p


def as_preference(value: object) -> float | None:
    """A recorded preference as a number, if it is one, also where a text has it."""
    try:
        x = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        return None
    return 1.5 if x == 0 else x if 1 <= x <= 2 else None


# Scores


def scores(rows: list[Row]) -> dict:
    """Win rate with its error and 95 % interval, the discrete one, and what they are made of."""
    y = [row.preference - 1 for row in rows if row.preference is not None]
    wins, losses = sum(v > 0.5 for v in y), sum(v < 0.5 for v in y)
    rate, spread = 100 * mean(y) if y else None, deviation(y)
    error = None if spread is None else 100 * spread / math.sqrt(len(y))
    half = None if error is None else Z * error
    return {
        "win_rate": rate,
        "standard_error": error,
        "interval": None if half is None else [max(0.0, rate - half), min(100.0, rate + half)],
        "discrete": 100 * (wins + (len(y) - wins - losses) / 2) / len(y) if y else None,
        "wins": wins,
        "losses": losses,
        "draws": len(y) - wins - losses,
    }


def length_controlled(control: Control, rows: list[Row], name: str, itself: bool) -> dict:
    """The length-controlled win rate of `name`, if there are files to control it by; `itself`: the
    model is the baseline. As upstream, over all rows, also those whose judgment failed. A fit needs
    two judgments.

    Raises UserError if the files do not have what is needed.
    """
    judged = sum(row.preference is not None for row in rows)
    if not ((control.weights and judged) or (control.gamed and judged > 1)):
        return dict.fromkeys(("length_controlled", "lc_error", "length_control"))
    path = control.difficulty or control.gamed
    d = difficulty_of([row.question for row in rows], read_difficulty(path), path, control.by)
    if itself:
        by, weights = "the baseline itself", (0.0, 0.0, 0.0)
    elif control.weights:
        by, published = "published weights", read_weights(control.weights)
        if name not in published:
            raise UserError(f"{control.weights} has no weights of {name!r} (see --name)")
        weights = published[name]
    else:
        by = "new weights"
        y = np.array([math.nan if row.preference is None else row.preference - 1 for row in rows])
        lengths = np.array([row.lengths[0] - row.lengths[1] for row in rows])
        weights = refit(y, lengths, d, read_gamed(control.gamed)).weights
    rate, error = win_rate(weights, d)
    return {"length_controlled": rate, "lc_error": error, "length_control": by}
