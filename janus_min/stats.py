"""What is in a collection: how much of it, how varied, how long, in one pass over its file.

The columns are those of kaist-ai/Multifaceted-Collection; plain texts between its rows are counted
and otherwise left out. Kept in memory are names, hashes of texts, and samples of a fixed size.

    Note: the paper measured ROUGE-L between all pairs of preference descriptions, per dimension;
    here it is measured on random pairs of rows.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min.errors import UserError
from janus_min.formats import read_jsonl, text_field
from janus_min.rouge import rouge_l, within_groups, words

COLUMNS = ("main_source", "preference_set", "system", "prompt", "output")
NAMES = ("dimension", "subdimension", "preference", "description")  # of one preference
PARTS = ("system", "prompt", "output")
REPEATED_WORDS = 8  # as many words in a row are no coincidence
LIST_ITEM = re.compile(r"^\s*([-*•]|\d+[.)])\s", re.M)
COMPARED = 3  # responses of an instruction, the first ones: as many as the paper compares
BATCH = 256  # rows whose texts are tokenized at once
MOST_FREQUENT = 10  # subdimensions that are named
SUMMARY = ("mean", "median", "p5", "p95", "max")  # of lengths
CountTokens = Callable[[list[str]], list[int]]  # the number of tokens of each text


class Row(NamedTuple):
    """One response, its system message, and the preferences behind that."""

    source: str
    preferences: list[dict[str, str]]  # by NAMES
    system: str
    prompt: str
    output: str


def parse(record: dict, where: str) -> Row | None:
    """A record as a row; None for a plain text. Raises UserError that names file and line."""
    if "text" in record and not record.keys() & {*COLUMNS}:
        return None
    if not record.keys() >= {*COLUMNS}:
        raise UserError(
            f"{where}: found are the columns {sorted(record)}, needed are {list(COLUMNS)}: "
            "statistics are of collections with preferences, such as Multifaceted-Collection"
        )
    preferences, inside = record["preference_set"], f"{where}: 'preference_set'"
    if not isinstance(preferences, list) or not all(isinstance(p, dict) for p in preferences):
        raise UserError(f"{inside} must be a list of objects with {list(NAMES)}")
    return Row(
        text_field(record, ("main_source",), where),
        [{name: text_field(p, (name,), inside) for name in NAMES} for p in preferences],
        *(text_field(record, (part,), where) for part in PARTS),
    )


def repeats(system: str, prompt: str) -> bool:
    """Whether a system message holds the whole instruction, or 8 words in a row of it.

    Letters' case, white space and punctuation make no difference; an instruction without words
    is not repeated.
    """
    own, others = words(system), words(prompt)
    length = min(REPEATED_WORDS, len(others))
    known, text = set(others), f" {' '.join(others)} "
    run = 0  # words in a row that the instruction has, in whatever order
    for end, word in enumerate(own, start=1):
        run = run + 1 if word in known else 0
        if 0 < length <= run and f" {' '.join(own[end - length : end])} " in text:
            return True
    return False


class Sample:
    """A random sample of `size` of the names that come, with all items that come under them.

    Each name has a random number, a hash of it and the seed, and the `size` smallest stay (a
    bottom-k sample, Cohen and Kaplan 2007). The largest that stays only falls, so a name that is
    there at the end has been there since its first item: it has all its items, in any order.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._items: dict[int, list] = {}
        self._negative: list[int] = []  # heap of −number: its first is that of the largest number

    def add(self, name: str, item: object) -> None:
        """Keeps the item, if its name is in the sample."""
        digest = blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        if number not in self._items:
            self._items[number] = []
            heappush(self._negative, -number)
            if len(self._negative) > self.size:
                del self._items[-heappop(self._negative)]
        if number in self._items:
            self._items[number].append(item)

    def groups(self) -> list[list]:
        """The items of each name of the sample, in random order of the names."""
        return [self._items[number] for number in sorted(self._items)]


class _Tally:
    """What is counted as rows pass by."""

    def __init__(self, pairs: int, seed: int):
        self.rows = self.plain_texts = 0
        self.sources: Counter[str] = Counter()
        self.prompts: Counter[int] = Counter()  # rows by the hash of their instruction
        self.systems: set[int] = set()  # hashes, which are smaller than texts
        self.preferences: set[str] = set()
        self.descriptions: set[int] = set()
        self.subdimensions: dict[str, Counter[str]] = {}  # by dimension
        self.shares: Counter[str] = Counter()
        self.lengths: dict[str, dict[str, Counter[int]]] = {part: {} for part in PARTS}
        self.responses = Sample(pairs, seed)  # by instruction
        self.described = Sample(pairs + 1, seed)  # descriptions by dimension, a row each

    def add(self, row: Row) -> None:
        """Counts a row, except for its lengths."""
        self.rows += 1
        self.sources[row.source] += 1
        self.prompts[hash(row.prompt)] += 1
        self.systems.add(hash(row.system))
        for dimension, subdimension, preference, description in map(dict.values, row.preferences):
            self.subdimensions.setdefault(dimension, Counter())[subdimension] += 1
            self.preferences.add(preference)
            self.descriptions.add(hash(description))
        self.shares["repeat_instruction"] += repeats(row.system, row.prompt)
        self.shares["one_paragraph"] += "\n" not in row.system.strip()
        self.shares["with_list"] += LIST_ITEM.search(row.system) is not None
        if self.prompts[hash(row.prompt)] <= COMPARED:
            self.responses.add(row.prompt, row.output)
        by_dimension = {p["dimension"]: p["description"] for p in row.preferences}
        self.described.add(str(self.rows), by_dimension)

    def measure(self, rows: list[Row], tokens: CountTokens | None) -> None:
        """Counts the lengths of some rows."""
        for part in PARTS:
            texts = [getattr(row, part) for row in rows]
            lengths = {"words": [len(text.split()) for text in texts]}
            if tokens:
                lengths["tokens"] = tokens(texts)
            for unit, numbers in lengths.items():
                self.lengths[part].setdefault(unit, Counter()).update(numbers)

    def dimension(self, name: str, pairs: int) -> dict:
        """The report of one dimension."""
        counts = self.subdimensions[name]
        texts = [row[name] for (row,) in self.described.groups() if name in row]
        # Neighbours first, then all others: the texts are in random order.
        every = (pair for far in range(1, len(texts)) for pair in zip(texts, texts[far:]))
        scores = [rouge_l(*pair) for pair in islice(every, pairs)]
        return {
            "preferences": counts.total(),
            "subdimensions": len(counts),
            "most_frequent": [list(item) for item in counts.most_common(MOST_FREQUENT)],
            "pairs": len(scores),
            "rouge_l_mean": float(np.mean(scores)) if scores else None,
            "rouge_l_p95": float(np.percentile(scores, 95)) if scores else None,
        }


def collect(path: Path, tokens: CountTokens | None, pairs: int, seed: int) -> dict:
    """Statistics of the collection in a JSONL file, which JSON can hold.

    `tokens` gives the number of tokens of each text; without it, lengths are in words alone.
    ROUGE-L is measured on `pairs` pairs of rows per dimension and on `pairs` instructions, which
    `seed` chooses. Lengths in words are of what white space separates.
    """
    if pairs < 1:
        raise UserError(f"--pairs is {pairs}, must be 1 or more")
    tally, batch = _Tally(pairs, seed), []
    for number, record in read_jsonl(path):
        if (row := parse(record, f"{path}:{number}")) is None:
            tally.plain_texts += 1
            continue
        tally.add(row)
        batch.append(row)
        if len(batch) == BATCH:
            tally.measure(batch, tokens)
            batch = []
    if not tally.rows:
        found = f"{tally.plain_texts} plain texts" if tally.plain_texts else "empty file"
        raise UserError(f"{path}: {found}, needed are rows with {list(COLUMNS)}")
    tally.measure(batch, tokens)
    return _report(tally, pairs)


def _report(tally: _Tally, pairs: int) -> dict:
    by_count = sorted(tally.subdimensions.items(), key=lambda item: -item[1].total())
    with_rows = Counter(str(n) if n < 4 else "more" for n in tally.prompts.values())
    groups = [group for group in tally.responses.groups() if len(group) > 1]
    mean, largest = within_groups(groups) or (None, None)
    return {
        "rows": tally.rows,
        "plain_texts": tally.plain_texts,
        "instructions": len(tally.prompts),
        "instructions_with_rows": {rows: with_rows[rows] for rows in ("1", "2", "3", "more")},
        "system_messages": len(tally.systems),
        "system_shares": {name: count / tally.rows for name, count in tally.shares.items()},
        "main_source": dict(tally.sources.most_common()),
        "unique": {
            "dimensions": len(tally.subdimensions),
            "subdimensions": sum(map(len, tally.subdimensions.values())),  # of one dimension each
            "preferences": len(tally.preferences),
            "descriptions": len(tally.descriptions),
        },
        "dimensions": {name: tally.dimension(name, pairs) for name, _ in by_count},
        "responses": {"instructions": len(groups), "rouge_l_mean": mean, "rouge_l_max": largest},
        "lengths": {
            part: {unit: _summary(counts) for unit, counts in units.items()}
            for part, units in tally.lengths.items()
        },
        "length_counts": {
            part: {unit: sorted(map(list, counts.items())) for unit, counts in units.items()}
            for part, units in tally.lengths.items()
        },
    }


def _summary(counts: Counter[int]) -> dict[str, float]:
    lengths = np.repeat(list(counts), list(counts.values()))
    low, median, high = np.percentile(lengths, [5, 50, 95]).tolist()
    return dict(zip(SUMMARY, (float(lengths.mean()), median, low, high, int(lengths.max()))))


# What a person reads

SHOWN = 6  # sources and dimensions, the most frequent ones
COLUMN, LONGEST = 26, 42  # characters for a name, and of one that is longer
BARS = 50  # of a histogram, at most


def as_text(stats: dict) -> str:
    """What `collect` found, as a report of fewer than 60 lines."""
    shares, responses = stats["system_shares"], stats["responses"]
    sizes = ", ".join(f"{n:,} with {rows}" for rows, n in stats["instructions_with_rows"].items())
    lines = [
        _line("rows", stats["rows"], f"and {stats['plain_texts']:,} plain texts"),
        _line("instructions", stats["instructions"], f"rows each: {sizes}"),
        _line("system messages", stats["system_messages"], "different ones; of all of them:"),
        *(_line(f"  {name.replace('_', ' ')}", f"{s:.1%}") for name, s in shares.items()),
        f"\nrows by main_source, {len(stats['main_source']):,} in all",
        *(_line(f"  {name}", n) for name, n in list(stats["main_source"].items())[:SHOWN]),
        *("", "different", *(_line(f"  {name}", n) for name, n in stats["unique"].items())),
        "",
        _line("dimensions", "count", "subdimensions    ROUGE-L of descriptions: mean, 95 %, pairs"),
    ]
    for name, found in list(stats["dimensions"].items())[:SHOWN]:
        rouge = f"{_score(found['rouge_l_mean'])} {_score(found['rouge_l_p95'])}"
        rest = f"{found['subdimensions']:>13,}    {rouge}  {found['pairs']:,}"
        named = ", ".join(f"{name[:COLUMN]} {count:,}" for name, count in found["most_frequent"])
        wrapped = textwrap.wrap(named, 90, max_lines=2, placeholder=" …")
        lines += [_line(f"  {name}", found["preferences"], rest), *(f"      {w}" for w in wrapped)]
    rouge = f"{_score(responses['rouge_l_mean'])} {_score(responses['rouge_l_max'])}"
    lines += [
        "\nROUGE-L of the responses to an instruction: mean, max, instructions",
        f"  {rouge}  {responses['instructions']:,}",
        "\nlengths                 mean    median       5 %      95 %       max",
    ]
    for part, units in stats["lengths"].items():
        for unit, row in units.items():
            numbers = "".join(f"{round(number, 1):>10,}" for number in map(row.get, SUMMARY))
            lines.append(f"  {part:<8}{unit:<8}{numbers}")
    return "\n".join(lines)


def _line(name: str, value: int | str, rest: str = "") -> str:
    name = name.replace("\n", " ")[:LONGEST]
    return f"{name:<{COLUMN}}{value:>10{',' if isinstance(value, int) else ''}}   {rest}".rstrip()


def _score(number: float | None) -> str:
    return "  —  " if number is None else f"{number:.3f}"


def histogram(stats: dict, out: Path) -> None:
    """Draws the lengths of system messages, instructions and responses into a .png or .svg file.

    In tokens if they were counted, else in words; the last bar holds the longest 1 % too.
    """
    if out.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"{out}: a picture is a .png or .svg file")
    try:  # the programs run without it
        figure = import_module("matplotlib.figure").Figure(figsize=(12, 3.5), layout="constrained")
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None
    for axes, (part, units) in zip(figure.subplots(1, 3), stats["length_counts"].items()):
        unit = "tokens" if "tokens" in units else "words"
        lengths, counts = np.array(units[unit]).T
        longest = np.percentile(np.repeat(lengths, counts), 99, method="higher")
        width = 1 + (longest - lengths[0]) // BARS  # whole lengths, as many in each bar
        edges = np.arange(lengths[0], longest + width + 1, width)
        axes.hist(lengths.clip(max=longest), bins=edges, weights=counts)
        axes.set(title=part, xlabel=unit, ylabel="rows")
    figure.savefig(out)
