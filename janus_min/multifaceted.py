"""Tables and bars of results on Multifaceted Bench: grades by rubric, and choices between two."""

import math

from janus_min.intervals import half_width
from janus_min.results import COUNT, INTERVAL, LIST, NUMBER, TEXT, Axis, Bar, Kind, OrNull
from janus_min.tables import (
    INTERVAL_HEAD,
    MOST,
    NO_SCORE,
    NONE,
    Table,
    between,
    columns,
    failed,
    figure,
    parts,
    percent,
    sideways,
    spread,
)

CONSISTENT = 0.5  # share of pairs, below which ties say more about the judge than about the models
SCORE = {"score": NUMBER, "spread": NUMBER, "interval": INTERVAL}
PAIR = {"opponent": TEXT, "tie_win": NUMBER, "interval": INTERVAL}


# Grades


def _grade(score: dict, none: str = NONE) -> str:
    """A mean grade and its spread, if it has one, or a dash."""
    return spread(score["score"], score["spread"], 2, none=none)


def _rubric(results: list[dict], names: list[str]) -> list[Table]:
    def difference(result: dict) -> str:
        """How far a result is from the first one, on the items that both have."""
        first, own = results[0], result["means"]
        shared = own.keys() & first["means"] if result is not first else ()
        half = half_width([own[key] - first["means"][key] for key in shared])
        if half is None or result["bench"]["hash"] != first["bench"]["hash"]:
            return NONE
        gap = math.fsum(own[key] - first["means"][key] for key in shared) / len(shared)
        return f"{gap:+.2f} ({gap - half:+.2f} to {gap + half:+.2f})"

    sources = parts([{s: _grade(own) for s, own in r["by_source"].items()} for r in results])
    differences = ("difference", [difference(result) for result in results])
    last = [
        *columns(results, {
            "average": lambda result: _grade(result, NO_SCORE),
            INTERVAL_HEAD: lambda result: between(result["interval"], 2),
        }),
        *([differences] if {*differences[1]} != {NONE} else []),
        *columns(results, {"failed": failed}),
    ]  # fmt: skip
    if len(sources) <= MOST:
        return [[("model", names), *sources, *last]]
    return [[("model", names), *last], sideways("source", sources, names)]


def _grade_bars(results: list[dict]) -> list[tuple[str, list[Bar]]]:
    """Those of each source, and of the average."""

    def bar(score: dict) -> Bar:
        """That of one grade."""
        return Bar(score["score"], score["interval"], _grade(score, NO_SCORE))

    every = dict.fromkeys(source for result in results for source in result["by_source"])
    without = dict.fromkeys(SCORE)
    heads = [(s, [bar(r["by_source"].get(s, without)) for r in results]) for s in every]
    return [*heads, ("average", [bar(result) for result in results])]


# Choices


def outcomes(result: dict) -> list[str]:
    """The outcomes of a choice, from best to worst for the model; tie+win is the first two."""
    return list(MULTIFACETED[result["kind"]].shape["rates"].shape)


def _tie_win(result: dict) -> str:
    return NO_SCORE if result["tie_win"] is None else percent(result["tie_win"])


def _outcomes(results: list[dict], names: list[str]) -> Table:
    """Name, rates, tie+win and its interval: what both kinds of choices have."""

    def interval(result: dict) -> str:
        """The interval of tie+win."""
        bounds = result["interval"]
        return between(bounds and [100 * bound for bound in bounds], 1, " %")

    rates = [result["rates"] or {} for result in results]
    shares = [(name, [percent(own.get(name)) for own in rates]) for name in outcomes(results[0])]
    last = columns(results, {"tie+win": _tie_win, INTERVAL_HEAD: interval})
    return [("model vs opponent", names), *shares, *last]


def _pairwise(results: list[dict], names: list[str]) -> list[Table]:
    more = {
        "consistent": lambda result: percent(result["consistent"]),
        "first": lambda result: percent(result["first"]),
        "failed": failed,
    }
    return [[*_outcomes(results, names), *columns(results, more)]]


def _inconsistent(result: dict) -> str | None:
    """A warning about a judge that looks at the place of a response."""
    share = result["consistent"]
    if share is None or share >= CONSISTENT:
        return None
    return f"in only {percent(share)} of the pairs both orders agree, others are ties"


def _people(results: list[dict], names: list[str]) -> list[Table]:
    def agreement(result: dict) -> str:
        """How often annotators agree, and on how many items they could."""
        share, items = (result["agreement"][key] for key in ("observed", "items"))
        return NONE if share is None else f"{percent(share)} on {items:,} items"

    more = {
        "agreement": agreement,
        "alpha": figure("agreement", "alpha", digits=2),
        "annotators": lambda result: f"{len(result['annotators']):,}",
        "judgments": lambda result: f"{result['counts']['ok']:,}",
    }
    return [[*_outcomes(results, names), *columns(results, more)]]


CHOICES = Axis("%, with the 95 % interval of tie+win over items", 0, 100)
MULTIFACETED = {
    "rubric": Kind(
        name="Multifaceted Bench",
        title="Mean grades, 1 to 5",
        shape=SCORE | {"runs": LIST, "by_source": {...: SCORE}, "means": {...: NUMBER.shape}},
        tables=_rubric,
        notes={
            "±": "standard deviation over runs",
            INTERVAL_HEAD: "of the average, over items",
            "difference": "from the first row, item by item, with its 95 % interval",
        },
        headlines={"": figure("score", digits=2, none=NO_SCORE)},
        axis=Axis("mean grade, with the 95 % interval over items", 1, 5),
        bars=_grade_bars,
    ),
    "pairwise": Kind(
        name="pairwise",
        title="Choices of a judge between two responses, shown in both orders",
        shape=PAIR
        | {"rates": OrNull({"win": NUMBER, "tie": NUMBER, "lose": NUMBER})}
        | {"consistent": NUMBER, "first": NUMBER},
        tables=_pairwise,
        notes={
            INTERVAL_HEAD: "of tie+win, over items",
            "consistent": "share of pairs in which both orders agree",
            "first": "share of verdicts for the response shown first; far from 50 %: position bias",
        },
        headlines={"tie+win": _tie_win},
        axis=CHOICES,
        remark=_inconsistent,
    ),
    "people": Kind(
        name="people",
        title="Choices of people between two responses; they see the system message, too",
        shape=PAIR
        | {"rates": OrNull(dict.fromkeys(("win", "both good", "both bad", "lose"), NUMBER))}
        | {"agreement": {"observed": NUMBER, "alpha": NUMBER, "items": COUNT}}
        | {"annotators": {...: COUNT}},
        tables=_people,
        notes={
            "tie+win": "win and both good",
            INTERVAL_HEAD: "of tie+win, over items",
            "agreement": "share of pairs of judgments of an item with the same outcome",
            "alpha": "Krippendorff's: 1 is full agreement, 0 is that of chance",
        },
        headlines={"tie+win": _tie_win},
        axis=CHOICES,
        counts={"missing": "judgments that were not made, which are left out"},
        own=("sheet",),
    ),
}
