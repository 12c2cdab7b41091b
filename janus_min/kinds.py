"""Kinds of results of evaluations: what is in their files, and the tables they make.

    rubric      grades 1 to 5 of an LLM judge, over several runs
    pairwise    an LLM judge's choices between two responses, shown in both orders
    people      people's choices between two responses

A new kind is a shape, a function that makes its tables, and an entry in `KINDS`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from janus_min.intervals import half_width

RESULT = "result.json"  # in the folder of an evaluation
LONGEST = 40  # characters of a name
MOST_SOURCES = 8  # that are columns; more of them are the rows of a table of their own
NONE = "—"
INTERVAL_HEAD = "95 % interval"
Column = tuple[str, list[str]]  # its head, and a cell for each row
Table = list[Column]


class OrNull(NamedTuple):
    """A shape that may also be null: what could not be measured, or is not known."""

    shape: dict | str


# A shape: for each key that is read, what is under it; `...` stands for any other key.
TEXT, COUNT, LIST = "text", "a whole number", "a list"
NUMBER, INTERVAL = OrNull("a number"), OrNull("two numbers")
COMMON = {
    "kind": TEXT,
    "model": TEXT,
    "judge": OrNull(TEXT),
    "bench": {"name": TEXT, "hash": TEXT, "items": COUNT},
    "settings": {},
    "counts": {"ok": COUNT, "failed": COUNT, "missing": COUNT, ...: COUNT},
}
SCORE = {"score": NUMBER, "spread": NUMBER, "interval": INTERVAL}
PAIR = {"opponent": TEXT, "tie_win": NUMBER, "interval": INTERVAL}


class Kind(NamedTuple):
    """What the report has to know of one kind."""

    title: str
    shape: dict  # beside COMMON
    tables: Callable[[list[dict], list[str]], list[Table]]  # of results and the names of their rows
    notes: dict[str, str]  # what stands in the tables -> its meaning
    missing: str = "items of the bench without a response"  # what "missing" counts
    own: tuple[str, ...] = ()  # settings that differ between any two results


# Names and numbers


def shown(name: object) -> str:
    """A name on one line, without control characters; of a long one, its start and its end."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(name))
    text = " ".join(text.split()) or NONE
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def percent(share: float | Fraction | None) -> str:
    """A fraction of 1 in percent, or a dash."""
    return NONE if share is None else f"{float(100 * share):.1f} %"


def grade(score: dict) -> str:
    """A mean grade and its spread, if it has one, or a dash."""
    if score["score"] is None:
        return NONE
    spread = score["spread"]
    return f"{score['score']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def lost(result: dict) -> Fraction:
    """The share of judgments that failed; exact, since it is compared with limits."""
    counts = result["counts"]
    return Fraction(counts["failed"], (counts["failed"] + counts["ok"]) or 1)


def _failed(result: dict) -> str:
    counts = result["counts"]
    return f"{counts['failed']:,} of {counts['ok'] + counts['failed']:,}"


# Tables


def sources(results: list[dict]) -> list[str]:
    """The sources of all results, in the order in which they first appear."""
    return list(dict.fromkeys(source for result in results for source in result["by_source"]))


def _rubric(results: list[dict], names: list[str]) -> list[Table]:
    def interval(result: dict) -> str:
        """The interval of the average."""
        return "{:.2f} to {:.2f}".format(*result["interval"]) if result["interval"] else NONE

    def cell(source: str, result: dict) -> str:
        """The grade of a result on a source, if it has one."""
        found = result["by_source"].get(source)
        return grade(found) if found else NONE

    def difference(result: dict) -> str:
        """How far a result is from the first one, on the items that both have."""
        first, own = results[0], result["means"]
        shared = own.keys() & first["means"] if result is not first else ()
        half = half_width([own[key] - first["means"][key] for key in shared])
        if half is None or result["bench"]["hash"] != first["bench"]["hash"]:
            return NONE
        gap = math.fsum(own[key] - first["means"][key] for key in shared) / len(shared)
        return f"{gap:+.2f} ({gap - half:+.2f} to {gap + half:+.2f})"

    every, differences = sources(results), [difference(result) for result in results]
    last = [
        ("average", ["no score" if r["score"] is None else grade(r) for r in results]),
        (INTERVAL_HEAD, [interval(result) for result in results]),
        *([("difference", differences)] if {*differences} != {NONE} else []),
        ("failed", [_failed(result) for result in results]),
    ]
    if len(every) <= MOST_SOURCES:
        columns = [(shown(source), [cell(source, r) for r in results]) for source in every]
        return [[("model", names), *columns, *last]]
    rows = [(name, [cell(s, result) for s in every]) for name, result in zip(names, results)]
    return [[("model", names), *last], [("source", [shown(s) for s in every]), *rows]]


def _outcomes(results: list[dict], names: list[str]) -> Table:
    """Name, rates, tie+win and its interval: what both kinds of choices have."""

    def interval(result: dict) -> str:
        """The interval of tie+win."""
        bounds = result["interval"]
        return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %" if bounds else NONE

    wins, rates = [r["tie_win"] for r in results], [r["rates"] or {} for r in results]
    return [
        ("model vs opponent", names),
        *((name, [percent(own.get(name)) for own in rates]) for name in outcomes(results[0])),
        ("tie+win", ["no score" if win is None else percent(win) for win in wins]),
        (INTERVAL_HEAD, [interval(result) for result in results]),
    ]


def outcomes(result: dict) -> list[str]:
    """The outcomes of a choice, from best to worst for the model; tie+win is the first two."""
    return list(KINDS[result["kind"]].shape["rates"].shape)


def _pairwise(results: list[dict], names: list[str]) -> list[Table]:
    shares = [(key, [percent(r[key]) for r in results]) for key in ("consistent", "first")]
    return [[*_outcomes(results, names), *shares, ("failed", [_failed(r) for r in results])]]


def _people(results: list[dict], names: list[str]) -> list[Table]:
    def agreement(found: dict) -> str:
        """How often annotators agree, and on how many items they could."""
        share = found["observed"]
        return NONE if share is None else f"{percent(share)} on {found['items']:,} items"

    alphas = [result["agreement"]["alpha"] for result in results]
    more = [
        ("agreement", [agreement(result["agreement"]) for result in results]),
        ("alpha", [NONE if alpha is None else f"{alpha:.2f}" for alpha in alphas]),
        ("annotators", [f"{len(result['annotators']):,}" for result in results]),
        ("judgments", [f"{result['counts']['ok']:,}" for result in results]),
    ]
    return [[*_outcomes(results, names), *more]]


KINDS = {
    "rubric": Kind(
        "Mean grades, 1 to 5",
        SCORE | {"runs": LIST, "by_source": {...: SCORE}, "means": {...: NUMBER.shape}},
        _rubric,
        {
            "±": "standard deviation over runs",
            INTERVAL_HEAD: "of the average, over items",
            "difference": "from the first row, item by item, with its 95 % interval",
        },
    ),
    "pairwise": Kind(
        "Choices of a judge between two responses, shown in both orders",
        PAIR
        | {"rates": OrNull({"win": NUMBER, "tie": NUMBER, "lose": NUMBER})}
        | {"consistent": NUMBER, "first": NUMBER},
        _pairwise,
        {
            INTERVAL_HEAD: "of tie+win, over items",
            "consistent": "share of pairs in which both orders agree",
            "first": "share of verdicts for the response shown first; far from 50 %: position bias",
        },
    ),
    "people": Kind(
        "Choices of people between two responses; they see the system message, too",
        PAIR
        | {"rates": OrNull(dict.fromkeys(("win", "both good", "both bad", "lose"), NUMBER))}
        | {"agreement": {"observed": NUMBER, "alpha": NUMBER, "items": COUNT}}
        | {"annotators": {...: COUNT}},
        _people,
        {
            "tie+win": "win and both good",
            INTERVAL_HEAD: "of tie+win, over items",
            "agreement": "share of pairs of judgments of an item with the same outcome",
            "alpha": "Krippendorff's: 1 is full agreement, 0 is that of chance",
        },
        missing="judgments that were not made",
        own=("sheet",),
    ),
}
