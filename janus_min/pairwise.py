"""Which of two models answers better: a judge sees each pair of responses in both orders.

    win     both games name our response
    lose    both games name the other one
    tie     anything else: a tie in either game, or games that contradict each other

A judge that prefers what it sees first has 100 % ties and no say (2306.05685, section 3.4). A pair
of which a game failed is left out and counted. Rates are means over items in one run, then over
runs; tie+win is win + tie.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min import judging, judgments
from janus_min.bench import about_bench, answered, read_bench
from janus_min.errors import UserError, require
from janus_min.intervals import deviation, mean, share_interval
from janus_min.judge import has_mark, pairwise_messages, verdict_in
from janus_min.judging import Work
from janus_min.people import read_sheets, write_sheet

OUTCOMES = ("win", "tie", "lose")
OURS, SHOWN_FIRST = ("A", "B"), "A"  # what our response is called in each game


@dataclass(frozen=True)
class Options(judging.Options):
    """What is compared, by whom, and where the judgments are kept."""

    against: Path | None = None  # responses of the other model
    against_name: str | None = None  # of the other model, for tables; the file's name unless given
    runs: int = 1  # independent judgments of everything
    show_system: bool = True  # show the judge the system message, too
    sheet: Path | None = None  # write a page on which people judge, OUT.html, and ask no judge
    key: Path | None = None  # OUT.key.json, written with the page: which side was which model
    from_sheet: tuple[Path, ...] | None = None  # what people exported from the page: rates
    seed: int = 0  # of the sides on the page

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, self, "seed", "0 or more")

    def opponent(self) -> str:
        """What the other model is called."""
        return self.against_name or judging.file_model(self.against)


class Pair(NamedTuple):
    """Both games of one item in one run."""

    id: str
    source: str
    run: int
    verdicts: tuple[str | None, str | None]  # "A", "B", "C"; None: it failed

    def outcome(self) -> str | None:
        """One of OUTCOMES; None if a game failed."""
        if None in self.verdicts:
            return None
        ours = [verdict == name for verdict, name in zip(self.verdicts, OURS)]
        theirs = [verdict == name for verdict, name in zip(self.verdicts, reversed(OURS))]
        return "win" if all(ours) else "lose" if all(theirs) else "tie"


# Rates


def rates(pairs: Iterable[Pair]) -> dict:
    """The rates of the outcomes and of tie+win, with its spread over runs and its interval; None
    without any outcome.
    """
    outcomes: dict[int, list[str]] = defaultdict(list)
    items = set()
    for pair in pairs:
        if (outcome := pair.outcome()) is not None:
            outcomes[pair.run].append(outcome)
            items.add(pair.id)
    if not outcomes:
        return {"items": 0, "rates": None, "tie_win": None, "spread": None, "interval": None}
    runs = [outcomes[run] for run in sorted(outcomes)]
    shares = {name: mean(own.count(name) / len(own) for own in runs) for name in OUTCOMES}
    tie_win = [1 - own.count("lose") / len(own) for own in runs]
    return {
        "items": len(items),
        "rates": shares,
        "tie_win": mean(tie_win),
        "spread": deviation(tie_win),
        "interval": share_interval(mean(tie_win), len(items)),
    }


def result_of(head: dict, pairs: list[Pair], counts: dict) -> dict:
    """A result; `counts` has what the judgments themselves do not show."""
    sources = dict.fromkeys(pair.source for pair in pairs)
    whole = [pair for pair in pairs if pair.outcome() is not None]
    verdicts = [verdict for pair in whole for verdict in pair.verdicts if verdict != "C"]
    same = [pair for pair in whole if pair.verdicts in (("A", "B"), ("B", "A"), ("C", "C"))]
    found = rates(pairs)
    del found["items"]
    return (
        head
        | {"counts": {"ok": len(whole), "failed": len(pairs) - len(whole)} | counts}
        | found
        | {"consistent": len(same) / len(whole) if whole else None}
        | {"first": verdicts.count(SHOWN_FIRST) / len(verdicts) if verdicts else None}
        | {"by_source": {s: rates(pair for pair in pairs if pair.source == s) for s in sources}}
    )


# A judge that is asked


def read_pairs(options: Options, limit: int | None) -> tuple[list[dict], list[dict], dict]:
    """The items that are taken, those of them that both models answered, and counts."""
    options.require_flags("bench", "responses", "against")
    if options.model_name() == options.opponent():
        raise UserError("both models have one name; give --name and --against-name")
    items = read_bench(options.bench, rubrics=False)
    ours, theirs = (
        {item["id"]: item for item in answered(items, path, options.allow_missing, limit)}
        for path in (options.responses, options.against)
    )
    items = items[:limit]
    both = [(ours[key], theirs[key]) for key in ours if key in theirs]
    if not both:
        raise UserError(f"{options.responses} and {options.against} have no item in common")
    pairs = []
    for pair in both:
        item = {key: pair[0][key] for key in ("id", "source", "system", "prompt")}
        pairs.append(item | {"responses": [own["response"] for own in pair]})
    counts = {
        "missing": len(items) - len(pairs),
        "marked": sum(any(map(has_mark, pair["responses"])) for pair in pairs),
        "cut": sum(any(own.get("stop") == "length" for own in pair) for pair in both),
        "empty": sum(not all(text.strip() for text in pair["responses"]) for pair in pairs),
    }
    return items, pairs, counts


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all pairs judged. Returns the result, which is in FOLDER/result.json, too; after a dry
    run there is none.
    """
    options = work.options
    items, pairs, counts = read_pairs(options, options.limit)
    template = work.template()

    def tasks(question: dict) -> list[dict]:
        """Two games for each run: ours first, then ours second."""
        ours, theirs = question["responses"]
        orders = [ours, theirs], [theirs, ours]
        return [
            question | {"run": run, "game": game, "responses": order}
            for run in range(options.runs)
            for game, order in enumerate(orders)
        ]

    def messages(task: dict) -> tuple[str, str]:
        """The prompt of a task."""
        return pairwise_messages(template, task, options.show_system)

    stage = judging.judge_stage(tasks, messages, verdict_in, options, 2 * options.runs)
    if options.dry_run:
        judging.estimate(work, pairs, stage, say)
        return None
    options.require_flags("out", "judge")
    head = judging.about(work, items, opponent=options.opponent())
    head = judging.ask_judge(work, head, pairs, stage, say)
    return judgments.keep(score_folder(options.out, head, counts), options.out)


def score_folder(folder: Path, head: dict, counts: dict) -> dict:
    """The result of what a folder holds."""
    games: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for record in judgments.stored_judgments(folder, verdict_in):
        games[record["id"], record["source"], record["run"]][record["game"]] = record
    pairs = [Pair(*key, (own[0]["value"], own[1]["value"])) for key, own in games.items()]
    unanswered = sum(any("unanswered" in game for game in own.values()) for own in games.values())
    return result_of(head, pairs, {"unanswered": unanswered} | counts)


def rescore(options: Options) -> dict:
    """The result of a folder's stored judgments, read once more. Nobody is asked anything."""
    [folder, *others] = options.rescore
    if others:
        raise UserError("--rescore: one folder at a time")
    out = judgments.other_folder(options.out, folder)
    names = {"model": options.name, "opponent": options.against_name, "judge": options.judge}
    result = score_folder(folder, *judgments.stored_head(folder, "pairwise", **names))
    return judgments.keep(result, out or folder)


# People who judge


def make_sheet(options: Options) -> Path:
    """Writes the page on which people judge. Returns the file that says which side was which.

    `limit` items are drawn by the seed, as many of each source as there are, in mixed order.
    """
    items, pairs, _ = read_pairs(options, None)
    drawn = sample(pairs, options.limit, options.seed)
    names, chosen = (options.model_name(), options.opponent()), {pair["id"] for pair in drawn}
    bench = about_bench([item for item in items if item["id"] in chosen], options.bench)
    return write_sheet(drawn, names, bench, options.sheet, options.seed)


def sample(pairs: list[dict], count: int | None, seed: int) -> list[dict]:
    """Pairs in random order, of which the first ones of all sources come first, then the second
    ones, and so on; all of them, or the first `count`.
    """
    order, seen, ranked = np.random.default_rng(seed).permutation(len(pairs)), Counter(), []
    for i in order:
        source = pairs[i]["source"]
        ranked.append((seen[source], pairs[i]))
        seen[source] += 1
    ranked.sort(key=lambda entry: entry[0])  # stable
    return [pair for _, pair in ranked[:count]]


def people(options: Options) -> dict:
    """The result of what people exported."""
    options.require_flags("key")
    out = judgments.other_folder(options.out)
    return judgments.keep(read_sheets(options.key, list(options.from_sheet)), out)
