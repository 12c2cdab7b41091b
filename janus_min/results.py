"""What a result of an evaluation is: the shape of its file, and what is known of its kind."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from janus_min.errors import UserError
from janus_min.tables import NO_SCORE, Table, under

# Shapes: for each key that is read, what is under it; `...` stands for any other key.


class OrNull(NamedTuple):
    """A shape that may also be null: what could not be measured, or is not known."""

    shape: dict | str


class IfThere(NamedTuple):
    """The shape of something that not all results have."""

    shape: dict | str


Shape = dict | str | OrNull | IfThere
TEXT, COUNT, LIST = "text", "a whole number", "a list"
TEXTS, NUMBERS, COUNTS = "a list of texts", "a list of numbers", "a list of whole numbers"
NUMBER, INTERVAL = OrNull("a number"), OrNull("two numbers")
COMMON = {
    "kind": TEXT,
    "model": TEXT,
    "judge": OrNull(TEXT),
    "bench": {"name": TEXT, "hash": TEXT, "items": COUNT},
    "settings": {},
    "counts": {"ok": COUNT, "failed": COUNT, "missing": COUNT, ...: COUNT},
    "runs": IfThere(LIST),
    "annotators": IfThere({...: COUNT}),
    "answered_by": IfThere(TEXTS),
}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _list_of(valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(valid, value))


CHECKS: dict[str, Callable[[object], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    COUNT: _is_count,
    LIST: lambda value: isinstance(value, list),
    TEXTS: _list_of(lambda value: isinstance(value, str)),
    NUMBERS: _list_of(_is_number),
    COUNTS: _list_of(_is_count),
    NUMBER.shape: _is_number,
    INTERVAL.shape: lambda value: _list_of(_is_number)(value) and len(value) == 2,
}


def check(value: object, shape: Shape, file: Path, name: str = "") -> None:
    """Raises UserError that names the file and the key, unless the value has this shape."""
    null = ""
    if isinstance(shape, IfThere):
        shape = shape.shape
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
    needed = [k for k, rule in shape.items() if k is not ... and not isinstance(rule, IfThere)]
    if not value.keys() >= {*needed}:
        what = f"{name!r} has" if name else "not a result: found are"
        raise UserError(f"{file}: {what} the keys {sorted(value)}, needed are {needed}")
    for key, inner in value.items():
        if (rule := shape.get(key, shape.get(...))) is not None:
            check(inner, rule, file, f"{name}.{key}" if name else key)


# Kinds


class Bar(NamedTuple):
    """A number in a picture; None if there is none."""

    value: float | None
    interval: list[float] | None
    text: str  # the number, written out


def bars(
    results: list[dict], keys: tuple[str, ...], text: Callable[[dict], str], interval: bool = False
) -> list[Bar]:
    """A bar for the number that each result has under these keys; `interval`: the result's own."""
    values = [under(result, keys) for result in results]
    texts = [NO_SCORE if v is None else text(r) for v, r in zip(values, results)]
    intervals = [result["interval"] if interval else None for result in results]
    return list(map(Bar, values, intervals, texts))


class Axis(NamedTuple):
    """What the bars of a picture measure, and from where to where."""

    label: str
    low: float
    high: float


class Kind(NamedTuple):
    """What the report has to know of one kind."""

    name: str  # of the benchmark, on a column
    title: str
    shape: dict  # beside COMMON
    tables: Callable[[list[dict], list[str]], list[Table]]  # of results and the names of their rows
    notes: dict[str, str]  # what stands in the tables -> its meaning
    headlines: dict[str, Callable[[dict], str]]  # what `name` does not say of a number -> its cell
    axis: Axis
    bars: Callable[[list[dict]], list[tuple[str, list[Bar]]]] | None = None  # head, one a result
    remark: Callable[[dict], str | None] = lambda result: None  # a warning about one result
    counts: dict[str, str] = {}  # noqa: RUF012  # meanings of counts that are this kind's own
    judge: str | None = "judge"  # what the one who judges is called; None: nobody does
    fixed: tuple[str, ...] = ()  # keys that must be equal, beside bench, judge and settings
    own: tuple[str, ...] = ()  # settings that differ between any two results
