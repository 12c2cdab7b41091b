"""How long responses are, and how much those to one instruction differ under different system
messages: what the paper shows as a distribution of words and as its Table 6.

    length      words between white space
    ROUGE-L     F-measure (`rouge.py`) of each pair of responses to an instruction; average and
                maximum over the pairs, then the mean of each over instructions

Items have the same instruction if their prompts are the same text. Of two with the same system
message, too, the first one counts: they are one question. A response without words is like
nothing at all and would pass for an original one, so it is left out of ROUGE-L.

    Note: the paper compares three responses to each instruction; here it is all there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from janus_min import rouge
from janus_min.bench import about_bench, answered, read_bench
from janus_min.errors import UserError, require
from janus_min.intervals import deviation
from janus_min.judging import file_model
from janus_min.judgments import keep, other_folder

EDGES = (0, 50, 100, 200, 300, 400, 500, 700)  # of the classes of lengths; the last one is open


@dataclass(frozen=True)
class Options:
    """What is measured, and where the result is kept."""

    bench: Path | None = None  # items, as JSONL or JSON
    responses: Path | None = None  # of the evaluated model, as JSONL or JSON, by the items' ids
    name: str | None = None  # of the evaluated model, for tables; the file's name unless given
    out: Path | None = None  # folder of the result; it is only shown unless given
    allow_missing: bool = False  # leave items without a response out, and count them
    limit: int | None = None  # first items of the bench to take

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, self, "limit", "at least 1")


def evaluate(options: Options, say: Callable[[str], None] = print) -> dict:
    """The result of one file of responses, which is in FOLDER/result.json, too, if `out` is given.

    Raises UserError for files that cannot be used, as `bench.py` does.
    """
    for name in ("bench", "responses"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} is needed (see --help)")
    out = other_folder(options.out)
    items = read_bench(options.bench, rubrics=False)
    chosen = answered(items, options.responses, options.allow_missing, options.limit)
    bench = about_bench(items[: options.limit], options.bench)
    head = {
        "kind": "responses",
        "model": options.name or file_model(options.responses),
        "judge": None,
        "bench": bench,
        "settings": {},
        "counts": counts_of(chosen, bench["items"] - len(chosen)),
    }
    prompts = {item["prompt"] for item in chosen}
    say(f"{options.responses}: {len(chosen):,} responses to {len(prompts):,} instructions")
    return keep(head | measures(chosen), out)


def counts_of(items: list[dict], missing: int) -> dict[str, int]:
    """How many responses there are, and how many of them are not whole."""
    return {
        "ok": len(items),
        "failed": 0,
        "missing": missing,
        "cut": sum(item.get("stop") == "length" for item in items),
        "empty": sum(not item["response"].strip() for item in items),
    }


def measures(items: list[dict]) -> dict:
    """Lengths, their distribution, and ROUGE-L of one or more items with responses: in all, and
    by the source of the items.
    """
    lengths = [len(item["response"].split()) for item in items]
    sources = dict.fromkeys(item["source"] for item in items)
    by_source = {}
    for source in sources:
        own = [item for item in items if item["source"] == source]
        alike = likeness(own)
        by_source[source] = {
            "words": math.fsum(len(item["response"].split()) for item in own) / len(own),
            "rouge_l": alike and alike["average"],
        }
    return {
        "words": {
            "mean": math.fsum(lengths) / len(lengths),
            "median": median(lengths),
            "deviation": deviation(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
        },
        "histogram": {"edges": list(EDGES), "counts": histogram(lengths)},
        "rouge_l": likeness(items),
        "by_source": by_source,
    }


def histogram(lengths: list[int]) -> list[int]:
    """How many lengths each class has, from its edge to below the next one."""
    ends = (*EDGES[1:], math.inf)
    return [sum(low <= length < end for length in lengths) for low, end in zip(EDGES, ends)]


def likeness(items: list[dict]) -> dict | None:
    """ROUGE-L between the responses to an instruction under different system messages, as means
    over instructions, with the numbers of instructions and of responses that were compared; None
    if no instruction has two responses.
    """
    by_prompt: dict[str, dict[str, str]] = {}  # responses by system message
    for item in items:
        if rouge.words(item["response"]):
            responses = by_prompt.setdefault(item["prompt"], {})
            responses.setdefault(item["system"], item["response"])
    groups = [[*responses.values()] for responses in by_prompt.values() if len(responses) > 1]
    if not groups:
        return None
    average, maximum = rouge.within_groups(groups)
    return {
        "average": average,
        "maximum": maximum,
        "instructions": len(groups),
        "responses": sum(map(len, groups)),
    }
