"""Tables and bars of results that no judge makes: what a reward model prefers (RewardBench,
2403.13787), and how long and how different responses are.
"""

from itertools import pairwise

from janus_min.results import (
    COUNT,
    COUNTS,
    INTERVAL,
    NUMBER,
    NUMBERS,
    TEXTS,
    Axis,
    Bar,
    IfThere,
    Kind,
    OrNull,
    bars,
)
from janus_min.tables import (
    INTERVAL_HEAD,
    NO_SCORE,
    Table,
    between,
    columns,
    figure,
    fitted,
    number,
    parts,
    percent,
    sideways,
)

Bars = list[tuple[str, list[Bar]]]

# Reward models

ACCURACY = figure("accuracy", unit=" %", none=NO_SCORE)


def _reward(results: list[dict], names: list[str]) -> list[Table]:
    sections = parts([{s: number(v, 1, " %") for s, v in r["sections"].items()} for r in results])
    score = {"score": figure("score", unit=" %")} if sections else {}
    cells = score | {
        "accuracy": ACCURACY,
        INTERVAL_HEAD: lambda result: between(result["interval"], 1, " %"),
        "pairs": figure("counts", "ok", digits=0),
    }
    tables = [[("model", names), *sections, *columns(results, cells)]]
    subsets = [
        {name: number(own["accuracy"], 1, " %") for name, own in result["by_subset"].items()}
        for result in results
    ]
    return tables + ([fitted("subset", parts(subsets), names)] if any(subsets) else [])


def _reward_bars(results: list[dict]) -> Bars:
    sections = dict.fromkeys(section for result in results for section in result["sections"])
    heads = [
        (s, bars(results, ("sections", s), figure("sections", s, unit=" %"))) for s in sections
    ]
    return [*heads, ("accuracy", bars(results, ("accuracy",), ACCURACY, interval=True))]


def _incomplete(result: dict) -> str | None:
    reasons = result.get("incomplete")
    return f"no score of the whole benchmark, {'; '.join(reasons)}" if reasons else None


# Responses


def _shares(result: dict) -> dict[str, float]:
    """The share of the responses in each class of lengths, from one edge to the next."""
    edges, counts = (result["histogram"][key] for key in ("edges", "counts"))
    classes = [f"{low:g} to {high - 1:g} words" for low, high in pairwise(edges)]
    classes += [f"{edge:g} words or more" for edge in edges[-1:]]
    return {name: count / (sum(counts) or 1) for name, count in zip(classes, counts)}


def _responses(results: list[dict], names: list[str]) -> list[Table]:
    cells = {name: figure("words", name) for name in ("mean", "median", "deviation")}
    cells |= {name: figure("words", name, digits=0) for name in ("shortest", "longest")}
    for name in ("average", "maximum"):
        cells[f"ROUGE-L {name}"] = figure("rouge_l", name, digits=3)
    cells["instructions"] = figure("rouge_l", "instructions", digits=0)
    shares = [{name: percent(share) for name, share in _shares(r).items()} for r in results]
    sources = [result["by_source"].items() for result in results]
    both = [
        {s: f"{number(own['words'], 1)}; {number(own['rouge_l'], 3)}" for s, own in every}
        for every in sources
    ]
    tables = [[("model", names), *columns(results, cells)]]
    tables.append(sideways("length", parts(shares), names))
    return tables + ([sideways("source", parts(both), names)] if any(both) else [])


def _responses_bars(results: list[dict]) -> Bars:
    found = [_shares(result) for result in results]
    none = Bar(None, None, NO_SCORE)
    return [
        (name, [Bar(100 * s[name], None, percent(s[name])) if name in s else none for s in found])
        for name in dict.fromkeys(name for shares in found for name in shares)
    ]


def _alone(result: dict) -> str | None:
    if result["rouge_l"]:
        return None
    return "no ROUGE-L, as no instruction has responses under two different system messages"


WORDS = dict.fromkeys(("mean", "median", "deviation", "shortest", "longest"), NUMBER)
ROUGE = {"average": NUMBER, "maximum": NUMBER, "instructions": COUNT, "responses": COUNT}
MEASURES = {
    "reward": Kind(
        name="reward",
        title="Rewards: how often the better one of two responses has the larger one",
        shape={"accuracy": NUMBER, "interval": INTERVAL, "score": NUMBER}
        | {"sections": {...: NUMBER}, "incomplete": IfThere(TEXTS)}
        | {"by_subset": {...: {"accuracy": NUMBER, "pairs": COUNT}}},
        tables=_reward,
        notes={
            "score": "mean of the sections, as RewardBench",
            "accuracy": "over all pairs",
            INTERVAL_HEAD: "of the accuracy, over pairs",
        },
        headlines={"score": figure("score", unit=" %"), "accuracy": ACCURACY},
        axis=Axis("%, with the 95 % interval of the accuracy over pairs", 0, 100),
        bars=_reward_bars,
        remark=_incomplete,
        counts={
            "missing": "pairs without rewards, which are left out",
            "cut": "pairs that were cut at the longest length",
        },
        judge=None,
    ),
    "responses": Kind(
        name="responses",
        title="Responses: how long they are, and how alike under different system messages",
        shape={"words": WORDS, "histogram": {"edges": NUMBERS, "counts": COUNTS}}
        | {"rouge_l": OrNull(ROUGE), "by_source": {...: {"words": NUMBER, "rouge_l": NUMBER}}},
        tables=_responses,
        notes={
            "mean": "words, like median, deviation, shortest and longest",
            "ROUGE-L": "between the responses to an instruction under different system messages: "
            "average or maximum over their pairs, then mean over instructions; low is varied",
            "source": "mean words; average ROUGE-L",
        },
        headlines={
            "words": figure("words", "mean"),
            "ROUGE-L": figure("rouge_l", "average", digits=3),
        },
        axis=Axis("% of the responses", 0, 100),
        bars=_responses_bars,
        remark=_alone,
        judge=None,
    ),
}
