"""Ratings of MT-Bench (2306.05685): how they are read, from replies of a judge or from files of
FastChat's, and what they add up to.

    turns       means of the ratings of all first answers, and of all second ones
    score       mean of all ratings of both turns
    interval    over questions, each with the mean of its ratings, around the score: both ratings
                of a question are about one conversation

A judgment that failed is left out and counted. If that leaves more ratings in one turn than in the
other, the score is nearer to that turn's mean.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from janus_min.bench import read_records
from janus_min.errors import UserError
from janus_min.formats import text_field, unicode_text
from janus_min.intervals import half_width, mean
from janus_min.replies import ReplyError

LOWEST, HIGHEST = 0.0, 10.0  # ratings that count; judges are told that the lowest is 1
NUMBER = r"([0-9]+\.?[0-9]*)"
MARK = rf"\[\[{NUMBER}\]\]"
# In FastChat's prompts: it is no rating of a judge that repeats it.
EXAMPLE = r'for example: "Rating: \[\[5\]\]"'


class Rating(NamedTuple):
    """What a judge said about one turn of one question."""

    id: str
    source: str  # the question's category; "" if it is not known
    turn: int  # 1 or 2
    value: float | None  # None: the judgment failed


# Replies and scores


def rating_in(reply: str) -> float:
    """The rating in a reply: the number in the first [[n]], or if there is none, in the first [n].
    Raises ReplyError if there is neither, or if the number is above 10.

        Note: this is FastChat's rule, by which published scores came about, but for numbers above
        10, and for the example in its own prompt, which a judge may repeat. So of two ratings the
        first counts, and where there is none, an index in a piece of code may pass for one, even 0.
    """
    text = re.sub(EXAMPLE, "", reply)
    found = re.search(MARK, text) or re.search(rf"\[{NUMBER}\]", text)
    if found is None:
        raise ReplyError("no [[rating]] in the reply")
    value = float(found[1])
    if value > HIGHEST:
        raise ReplyError(f"a rating of at most 10 is needed, found {found[0]:.20}")
    return int(value) if value.is_integer() else value


def scores(ratings: list[Rating]) -> dict:
    """Score, interval, means of turns and of categories; None where there is no rating."""
    kept = [rating for rating in ratings if rating.value is not None]
    questions: dict[str, list[float]] = defaultdict(list)
    for rating in kept:
        questions[rating.id].append(rating.value)
    score, half = _mean(kept), half_width([mean(values) for values in questions.values()])
    ends = None if half is None else [max(LOWEST, score - half), min(HIGHEST, score + half)]
    turns = {turn: [rating for rating in kept if rating.turn == turn] for turn in (1, 2)}
    categories = dict.fromkeys(rating.source for rating in ratings if rating.source)
    return {
        "score": score,
        "interval": ends,
        "turns": {str(turn): _mean(own) for turn, own in turns.items()},
        "by_category": {name: _mean(r for r in kept if r.source == name) for name in categories},
    }


def _mean(ratings: Iterable[Rating]) -> float | None:
    values = [rating.value for rating in ratings]
    return mean(values) if values else None


# Files of FastChat's


class Row(NamedTuple):
    """A judgment in a file of FastChat's."""

    id: str
    turn: int  # 1 or 2
    model: str
    judge: str
    value: float | None  # None: it failed


def read_rows(path: Path) -> Iterator[Row]:
    """The judgments in a file of FastChat's: {question_id, model, judge, judgment, score, turn, …}.
    A score is read from the text of the judgment, and taken as it stands only if there is no text.

    Raises UserError that names the entry and what it needs.
    """
    empty = True
    for where, _, record in read_records(path):
        empty, needed = False, ("question_id", "model", "turn")
        if not record.keys() >= {*needed} or not record.keys() & {"judgment", "score"}:
            raise UserError(
                f"{where}: keys {[*needed, 'judgment']} (or 'score') are needed, found "
                f"{sorted(record)}"
            )
        key, turn, judge = record["question_id"], record["turn"], record.get("judge")
        if type(key) not in (str, int) or type(turn) is not int or turn not in (1, 2):
            raise UserError(
                f"{where}: 'question_id' must be text or an integer, 'turn' 1 or 2; found "
                f"{json.dumps(key)} and {json.dumps(turn)}"
            )
        judge = judge[0] if isinstance(judge, list) and judge else judge
        yield Row(
            unicode_text(str(key), where),
            turn,
            text_field(record, ("model",), where),
            judge if isinstance(judge, str) and judge else "unknown",
            _value(record, where),
        )
    if empty:
        raise UserError(f"{path} has no judgment")


def _value(record: dict, where: str) -> float | None:
    text, score = record.get("judgment"), record.get("score")
    if isinstance(text, str) and text.strip():
        try:
            return rating_in(text)
        except ReplyError:
            return None
    if type(score) not in (int, float) or not (score == -1 or LOWEST <= score <= HIGHEST):
        raise UserError(
            f"{where}: without a text under 'judgment', 'score' must be a number up to 10, or -1 "
            f"for a failure; found {json.dumps(score)}"
        )
    return None if score == -1 else score
