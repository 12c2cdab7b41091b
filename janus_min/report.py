"""Results of evaluations side by side: one table for each kind, in the layout of the paper.

Models are rows; sub-benchmarks, then the average, are columns. Who sees two numbers in one table
compares them. So results that differ in bench, judge or settings are refused unless the caller
insists, and whatever else bends a comparison is a warning below the table.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from unicodedata import combining, east_asian_width

from janus_min.errors import UserError
from janus_min.files import read_json
from janus_min.kinds import (
    COMMON,
    COUNT,
    INTERVAL,
    KINDS,
    LIST,
    NONE,
    NUMBER,
    RESULT,
    TEXT,
    OrNull,
    Table,
    lost,
    percent,
    shown,
)

CONSISTENT = 0.5  # share of pairs, below which ties say more about the judge than about the models
UNEVEN, UNFAIR = Fraction(2, 100), Fraction(10, 100)  # distances of two shares of lost judgments
INSIST = "--mixed puts them into one table nevertheless"
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|$~&#])")  # what has a meaning there

# Files


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


CHECKS: dict[str, Callable[[object], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    COUNT: lambda value: type(value) is int and value >= 0,
    LIST: lambda value: isinstance(value, list),
    NUMBER.shape: _is_number,
    INTERVAL.shape: lambda value: (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    ),
}


def load(paths: list[Path]) -> list[dict]:
    """The results in these files, each with its file under "path"; a folder stands for its RESULT.

    Raises UserError for no file, for a file given twice, and for what is not a result.
    """
    if not paths:
        raise UserError(f"no results given: needed are {RESULT} files, or folders that hold one")
    results: dict[Path, dict] = {}
    for path in paths:
        file = path / RESULT if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{file} not found: a {RESULT}, or a folder that holds one, is needed")
        if file.resolve() in results:
            raise UserError(f"{file} is given twice")
        result = read_json(file)
        _check(result, COMMON, file)
        if result["kind"] not in KINDS:
            raise UserError(f"{file}: kind {result['kind']!r} is unknown, known are {list(KINDS)}")
        _check(result, KINDS[result["kind"]].shape, file)
        results[file.resolve()] = result | {"path": file}
    return list(results.values())


def _check(value: object, shape: dict | str | OrNull, file: Path, name: str = "") -> None:
    """Raises UserError that names the file and the key, unless the value has this shape."""
    null = ""
    if isinstance(shape, OrNull):
        if value is None:
            return
        shape, null = shape.shape, " or null"
    if isinstance(shape, str):
        if not CHECKS[shape](value):
            raise UserError(f"{file}: {name!r} must be {shape}{null}, found {value!r:.40}")
        return
    if not isinstance(value, dict):
        raise UserError(f"{file}: {name!r} must be an object{null}, found {value!r:.40}")
    needed = [key for key in shape if key is not ...]
    if not value.keys() >= {*needed}:
        what = f"{name!r} has" if name else "not a result: found are"
        raise UserError(f"{file}: {what} the keys {sorted(value)}, needed are {needed}")
    for key, inner in value.items():
        if (rule := shape.get(key, shape.get(...))) is not None:
            _check(inner, rule, file, f"{name}.{key}" if name else key)


# What can be compared


def by_kind(results: list[dict]) -> list[list[dict]]:
    """The results of each kind together, in the order in which the kinds first appear."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["kind"], []).append(result)
    return list(groups.values())


def differences(results: list[dict]) -> list[tuple[str, list]]:
    """What results of one kind differ in: (bench, judge or a setting, its value in each result)."""
    own = KINDS[results[0]["kind"]].own
    benches: dict[str, str] = {}  # by hash: a bench is the same under another name
    for bench in (result["bench"] for result in results):
        benches.setdefault(bench["hash"], f"{bench['name']} ({bench['hash']})")
    settings = dict.fromkeys(key for result in results for key in result["settings"])
    values = [
        ("bench", [benches[result["bench"]["hash"]] for result in results]),
        ("judge", [result["judge"] for result in results]),
        *((k, [r["settings"].get(k) for r in results]) for k in settings if k not in own),
    ]
    return [(name, column) for name, column in values if any(v != column[0] for v in column)]


def _extremes(results: list[dict]) -> tuple[dict, dict]:
    """The results that lost the smallest and the largest share of their judgments.

    One without judgments has no share, and is neither unless all are so.
    """
    judged = [r for r in results if r["counts"]["ok"] + r["counts"]["failed"]] or results
    return min(judged, key=lost), max(judged, key=lost)


def _refuse(results: list[dict]) -> None:
    """Raises UserError if the numbers of two results cannot be compared."""
    differing, first = differences(results), results[0]
    for i, other in enumerate(results):
        if found := [f"{name}: {v[0]!r} and {v[i]!r}" for name, v in differing if v[0] != v[i]]:
            raise UserError(
                f"{first['path']} and {other['path']} differ in {'; '.join(found)} ({INSIST})"
            )
    least, most = _extremes(results)
    if lost(most) - lost(least) > UNFAIR:
        raise UserError(
            f"{least['path']} and {most['path']} differ in the share of failed judgments, which "
            f"are left out: {percent(lost(least))} and {percent(lost(most))} ({INSIST})"
        )


# What stands around a table


def about(results: list[dict]) -> list[str]:
    """Who judged what, and how often: lines for results of one kind."""
    judges = dict.fromkeys(shown(result["judge"] or "not known") for result in results)
    benches = {
        r["bench"]["hash"]: f"{shown(r['bench']['name'])}, {r['bench']['items']:,} items"
        for r in results
    }
    saw = [result["settings"].get("show_system") for result in results]
    lines = [f"judge: {' and '.join(judges)}", f"bench: {' and '.join(benches.values())}"]
    if all(each is True for each in saw):
        lines[0] += ", which sees the system message"
    if all(each is False for each in saw):
        lines[0] += ", which does not see the system message"
    if runs := sorted({len(result["runs"]) for result in results if result.get("runs")}):
        lines.append(f"runs: {' and '.join(map(str, runs))}")
    return lines


def labels(results: list[dict]) -> list[str]:
    """A name for each result of one kind; equal ones get their folder added, or else their file."""
    names = [shown(result["model"]) for result in results]
    if "opponent" in KINDS[results[0]["kind"]].shape:
        names = [f"{name} vs {shown(result['opponent'])}" for name, result in zip(names, results)]
    if len({*names}) == len(names):
        return names
    files, counts = [result["path"] for result in results], Counter(names)
    folders = [shown(file.resolve().parent.name) for file in files]
    for places in (folders, [" ".join(str(file).split()) for file in files]):
        pairs = zip(names, places)
        unique = [name if counts[name] == 1 else f"{name} ({place})" for name, place in pairs]
        if len({*unique}) == len(unique):
            break
    return unique


def _warnings(results: list[dict], names: list[str]) -> list[str]:
    """What a reader must know before comparing the rows of a table."""
    lines = []
    if differing := differences(results):
        what = ", ".join(shown(name) for name, _ in differing)
        lines.append(f"the rows cannot be compared, they differ in {what}")
    least, most = _extremes(results)
    if lost(most) - lost(least) > UNEVEN:
        pair = (f"{percent(lost(r))} of {names[results.index(r)]}" for r in (least, most))
        lines.append(f"failed judgments are left out, and their share differs: {', '.join(pair)}")
    runs = {name: len(r["runs"]) for name, r in zip(names, results) if r.get("runs")}
    if len({*runs.values()}) > 1:
        each = ", ".join(f"{number} of {name}" for name, number in runs.items())
        lines.append(f"the number of runs differs: {each}")
    for result, name in zip(results, names):
        if result.get("consistent") is not None and result["consistent"] < CONSISTENT:
            share = percent(result["consistent"])
            lines.append(f"in only {share} of the pairs both orders agree, others are ties: {name}")
    models = {tuple(result["answered_by"]) for result in results if result.get("answered_by")}
    if len(models) > 1:
        lines.append(f"judged by different models: {'; '.join(map(', '.join, sorted(models)))}")
    annotators = [result.get("annotators", {}).keys() for result in results]
    if any(people != annotators[0] for people in annotators):
        lines.append("the annotators differ")
    meanings = {
        "missing": f"{KINDS[results[0]['kind']].missing}, which are left out",
        "unanswered": "judgments without an answer, for which the same command asks again",
        "marked": "responses that contain a judge's own mark such as [RESULT]; read them",
        "cut": "responses that were cut short at their limit of tokens",
        "empty": "responses without any text",
    }
    for key, meaning in meanings.items():
        counts = [(result["counts"].get(key, 0), name) for name, result in zip(names, results)]
        if each := ", ".join(f"{count:,} of {name}" for count, name in counts if count):
            lines.append(f"{meaning}: {each}")
    return [f"warning: {line}" for line in lines]


# Text


def as_text(results: list[dict], markdown: bool = False, mixed: bool = False) -> str:
    """The tables of all results, one for each kind, with what must be known to read them.

    Columns are aligned, or GitHub's Markdown. Raises UserError if results of one kind cannot be
    compared; `mixed` shows them all the same, with what they differ in.
    """
    return "\n\n".join(_section(group, markdown, mixed) for group in by_kind(results))


def _section(results: list[dict], markdown: bool, mixed: bool) -> str:
    """Title, conditions, tables, notes and warnings of the results of one kind."""
    if not mixed:
        _refuse(results)
    kind, names = KINDS[results[0]["kind"]], labels(results)
    tables = kind.tables(results, names)
    for name, values in differences(results):
        tables[0].append((shown(name), [NONE if v is None else shown(v) for v in values]))
    drawn = [(_markdown if markdown else _aligned)(table) for table in tables]
    notes = [f"{mark}: {text}" for mark, text in kind.notes.items() if mark in "".join(drawn)]
    above, below = about(results), notes + _warnings(results, names)
    if markdown:
        above, below = ([f"- {_escaped(line)}" for line in lines] for lines in (above, below))
    title = f"### {kind.title}" if markdown else kind.title
    return "\n\n".join([title, "\n".join(above), *drawn, "\n".join(below)])


def _aligned(table: Table) -> str:
    """The first column is flush left, the others are flush right."""

    def width(text: str) -> int:
        """How many columns of a terminal a text takes."""
        return sum((east_asian_width(c) in "WF") + (not combining(c)) for c in text)

    columns = []
    for number, (head, cells) in enumerate(table):
        room = max(map(width, [head, *cells]))
        gaps = [" " * (room - width(cell)) for cell in [head, *cells]]
        pairs = zip([head, *cells], gaps)
        columns.append([gap + cell if number else cell + gap for cell, gap in pairs])
    return "\n".join("   ".join(row) for row in zip(*columns))


def _markdown(table: Table) -> str:
    rows = list(zip(*([head, *cells] for head, cells in table)))
    rule = "|---|" + "---:|" * (len(table) - 1)
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def _escaped(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", text)
