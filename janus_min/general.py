"""Tables and bars of results on general benchmarks, with the columns of the benchmarks' own tables:
AlpacaEval 2.0 (2404.04475), MT-Bench (2306.05685), Arena-Hard (2406.11939) and RealToxicityPrompts
(2009.11462).
"""

from janus_min.results import (
    COUNT,
    INTERVAL,
    NUMBER,
    TEXT,
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
    NONE,
    Table,
    between,
    columns,
    failed,
    figure,
    fitted,
    number,
    parts,
    sideways,
    spread,
)

Bars = list[tuple[str, list[Bar]]]
LENGTH = figure("length", digits=0)
OPPONENT = {"opponent": TEXT, "interval": INTERVAL, "length": NUMBER}


# AlpacaEval


def _win_rate(result: dict) -> str:
    return spread(result["win_rate"], result["standard_error"], 1, " %", NO_SCORE)


def _length_controlled(result: dict) -> str:
    return spread(result["length_controlled"], result["lc_error"], 1, " %")


def _alpaca_eval(results: list[dict], names: list[str]) -> list[Table]:
    by = {"LC by": lambda result: result.get("length_control") or NONE}
    known = any(result.get("length_control") for result in results)
    cells = {
        "LC win rate": _length_controlled,
        **(by if known else {}),
        "win rate": _win_rate,
        INTERVAL_HEAD: lambda result: between(result["interval"], 1, " %"),
        **{name: figure(name, digits=0) for name in ("wins", "draws", "losses")},
        "length": LENGTH,
        "failed": failed,
    }
    return [[("model", names), *columns(results, cells)]]


def _alpaca_eval_bars(results: list[dict]) -> Bars:
    rates = [("win rate", bars(results, ("win_rate",), _win_rate, interval=True))]
    controlled = bars(results, ("length_controlled",), _length_controlled)
    known = any(bar.value is not None for bar in controlled)
    return [("LC win rate", controlled)] * known + rates


# MT-Bench

TURNS = {f"turn {turn}": figure("turns", turn, digits=2) for turn in ("1", "2")}
AVERAGE = figure("score", digits=2, none=NO_SCORE)


def _mt_bench(results: list[dict], names: list[str]) -> list[Table]:
    interval = {INTERVAL_HEAD: lambda result: between(result["interval"], 2)}
    cells = TURNS | {"average": AVERAGE} | interval | {"failed": failed}
    tables = [[("model", names), *columns(results, cells)]]
    scores = [{name: number(v, 2) for name, v in r["by_category"].items()} for r in results]
    return tables + ([fitted("category", parts(scores), names)] if any(scores) else [])


def _mt_bench_bars(results: list[dict]) -> Bars:
    turns = [(head, bars(results, ("turns", head[-1]), cell)) for head, cell in TURNS.items()]
    return [*turns, ("average", bars(results, ("score",), AVERAGE, interval=True))]


# Arena-Hard

POINTS = figure("score", unit=" %", none=NO_SCORE)


def _arena_hard(results: list[dict], names: list[str]) -> list[Table]:
    interval = {INTERVAL_HEAD: lambda result: between(result["interval"], 1, " %")}
    cells = {"score": POINTS} | interval | {"length": LENGTH, "failed": failed}
    return [[("model", names), *columns(results, cells)]]


# Toxicity


def _group(name: str, prefix: str = "") -> dict:
    """The columns of one group of prompts."""

    def worst(result: dict) -> str:
        """The mean of the largest toxicities, with their deviation."""
        group = result["groups"].get(name)
        return spread(group["max_toxicity"], group["spread"], 3, none=NO_SCORE) if group else NONE

    return {
        f"{prefix}prompts": figure("groups", name, "prompts", digits=0),
        f"{prefix}avg. max. toxicity": worst,
        f"{prefix}toxicity prob.": figure("groups", name, "probability", digits=3),
    }


ALL = _group("all")


def _toxicity(results: list[dict], names: list[str]) -> list[Table]:
    last = {
        INTERVAL_HEAD: lambda result: between(result["interval"], 3),
        "output perplexity": figure("perplexity"),
        "dist-2": figure("distinct", "2", digits=2),
        "dist-3": figure("distinct", "3", digits=2),
        "failed": failed,
    }
    tables = [[("model", names), *columns(results, ALL | last)]]
    sizes = [(name, own["prompts"]) for result in results for name, own in result["groups"].items()]
    cells = {}
    for name in dict.fromkeys(name for name, prompts in sizes if prompts and name != "all"):
        cells |= _group(name, f"{name}: ")
    return tables + ([sideways("group", columns(results, cells), names)] if cells else [])


def _toxicity_bars(results: list[dict]) -> Bars:
    keys = {"avg. max. toxicity": "max_toxicity", "toxicity prob.": "probability"}
    return [
        (head, bars(results, ("groups", "all", key), ALL[head], interval=key == "max_toxicity"))
        for head, key in keys.items()
    ]


GROUP = {"prompts": COUNT, "max_toxicity": NUMBER, "spread": NUMBER, "probability": NUMBER}
GENERAL = {
    "alpaca-eval": Kind(
        name="AlpacaEval",
        title="AlpacaEval 2.0: how often a judge prefers the model to its opponent",
        shape=OPPONENT
        | dict.fromkeys(("win_rate", "standard_error", "length_controlled", "lc_error"), NUMBER)
        | dict.fromkeys(("wins", "losses", "draws"), COUNT)
        | {"length_control": IfThere(OrNull(TEXT))},
        tables=_alpaca_eval,
        notes={
            "LC win rate": "length-controlled, as if both wrote responses of the same length",
            "LC by": "where the weights come from; new ones differ from published ones by chance",
            "±": "standard error",
            INTERVAL_HEAD: "of the win rate, over instructions",
            "length": "mean characters of a response",
        },
        headlines={
            "LC": figure("length_controlled", unit=" %"),
            "WR": figure("win_rate", unit=" %", none=NO_SCORE),
        },
        axis=Axis("%, with the 95 % interval of the win rate over instructions", 0, 100),
        bars=_alpaca_eval_bars,
        fixed=("opponent",),
    ),
    "mt-bench": Kind(
        name="MT-Bench",
        title="MT-Bench: mean grades, 1 to 10, of conversations of two turns",
        shape={"score": NUMBER, "interval": INTERVAL, "turns": {"1": NUMBER, "2": NUMBER}}
        | {"by_category": {...: NUMBER}},
        tables=_mt_bench,
        notes={
            "average": "of all grades of both turns",
            INTERVAL_HEAD: "of the average, over questions",
        },
        headlines={"": AVERAGE},
        axis=Axis("mean grade, with the 95 % interval of the average over questions", 1, 10),
        bars=_mt_bench_bars,
        counts={
            "missing": "turns of questions without an answer, which are left out",
            "marked": "responses that contain a grade such as [[5]]; read them",
        },
    ),
    "arena-hard": Kind(
        name="Arena-Hard",
        title="Arena-Hard: how often a judge prefers the model to its opponent",
        shape=OPPONENT | {"score": NUMBER},
        tables=_arena_hard,
        notes={
            "score": "wins and half of the ties, where clear wins and losses count three times",
            INTERVAL_HEAD: "of the score, by resampling the games",
            "length": "mean tokens of a response, as the file of the answers counts them",
        },
        headlines={"": POINTS},
        axis=Axis("%, with the 95 % interval of resampled games", 0, 100),
        bars=lambda results: [("score", bars(results, ("score",), POINTS, interval=True))],
        counts={
            "cut": "pairs of responses of which one was cut short at its limit of tokens",
            "empty": "pairs of responses of which one has no text",
            "marked": "pairs of responses of which one contains a label such as [[A>B]]; read them",
            "differ": "judgments whose label is not the one in their text",
        },
        fixed=("opponent",),
    ),
    "toxicity": Kind(
        name="toxicity",
        title="Toxicity of continuations: of the worst of each prompt",
        shape={"groups": {"all": GROUP, ...: GROUP}, "perplexity": NUMBER, "interval": INTERVAL}
        | {"distinct": dict.fromkeys(("1", "2", "3"), NUMBER), "generations": COUNT},
        tables=_toxicity,
        notes={
            "avg. max. toxicity": "mean over prompts of the largest toxicity of a continuation",
            "±": "standard deviation over prompts",
            "toxicity prob.": "share of prompts with a continuation above 0.5",
            INTERVAL_HEAD: "of avg. max. toxicity, over prompts",
            "output perplexity": "of a continuation, given its prompt",
            "dist-": "different pairs (2) or triples (3) of words, for each word",
            "failed": "continuations without a score",
        },
        headlines={
            "max.": figure("groups", "all", "max_toxicity", digits=3, none=NO_SCORE),
            "prob.": figure("groups", "all", "probability", digits=3, none=NO_SCORE),
        },
        axis=Axis("with the 95 % interval of avg. max. toxicity over prompts", 0, 1),
        bars=_toxicity_bars,
        counts={
            "missing": "prompts without any score, which are left out",
            "empty": "continuations without any text, which have no score",
            "ungrouped": "prompts without a toxicity of their own, which are in no group",
            "uneven": "prompts with fewer continuations than others",
            "implausible": "perplexities too large to be true, which are left out",
        },
        judge="scorer",
        fixed=("generations",),
    ),
}
