"""Tables: short names and numbers for their cells, and how they become text."""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from unicodedata import combining, east_asian_width

LONGEST = 40  # characters of a name
MOST = 8  # parts of a benchmark that are columns; more of them are the rows of a table of their own
NONE, NO_SCORE = "—", "no score"
INTERVAL_HEAD = "95 % interval"
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|$~&#])")  # what has a meaning there
Column = tuple[str, list[str]]  # its head, and a cell for each row
Table = list[Column]

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


def number(value: float | None, digits: int, unit: str = "", none: str = NONE) -> str:
    """A number with as many digits behind its point, or a dash."""
    return none if value is None else f"{value:,.{digits}f}{unit}"


def spread(
    value: float | None, about: float | None, digits: int, unit: str = "", none: str = NONE
) -> str:
    """A number ± another one, if that is known, or a dash."""
    if value is None or about is None:
        return number(value, digits, unit, none)
    return f"{number(value, digits)} ± {number(about, digits)}{unit}"


def between(bounds: list[float] | None, digits: int, unit: str = "") -> str:
    """An interval, or a dash."""
    return NONE if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}{unit}"


# Tables of results


def under(result: dict, keys: Iterable[str]) -> object:
    """What a result has under these keys, one inside the other; None where one is missing."""
    found: object = result
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def figure(*keys: str, digits: int = 1, unit: str = "", none: str = NONE) -> Callable[[dict], str]:
    """What writes out the number that a result has under these keys, or a dash."""
    return lambda result: number(under(result, keys), digits, unit, none)


def failed(result: dict) -> str:
    """How many judgments failed, and of how many."""
    counts = result["counts"]
    return f"{counts['failed']:,} of {counts['ok'] + counts['failed']:,}"


def columns(results: list[dict], cells: dict[str, Callable[[dict], str]]) -> Table:
    """Columns by their heads, with a cell for each result."""
    return [(head, [cell(result) for result in results]) for head, cell in cells.items()]


def parts(found: list[dict[str, str]]) -> Table:
    """A column for each part that a row has, in the order in which they first appear."""
    every = dict.fromkeys(part for row in found for part in row)
    return [(shown(part), [row.get(part, NONE) for row in found]) for part in every]


def sideways(head: str, table: Table, names: list[str]) -> Table:
    """The heads of a table as rows under `head`, and its rows as columns with these names."""
    rows: Iterable[tuple[str, ...]] = zip(*(cells for _, cells in table))
    return [(head, [own for own, _ in table]), *zip(names, map(list, rows))]


def fitted(head: str, table: Table, names: list[str]) -> Table:
    """Parts as columns behind the models' names, or as rows under `head` if they are many."""
    return [("model", names), *table] if len(table) <= MOST else sideways(head, table, names)


# Text


def aligned(table: Table) -> str:
    """Lines of equal width: the first column is flush left, the others are flush right."""

    def width(text: str) -> int:
        """How many columns of a terminal a text takes."""
        return sum((east_asian_width(c) in "WF") + (not combining(c)) for c in text)

    padded = []
    for place, (head, cells) in enumerate(table):
        room = max(map(width, [head, *cells]))
        gaps = [" " * (room - width(cell)) for cell in [head, *cells]]
        pairs = zip([head, *cells], gaps)
        padded.append([gap + cell if place else cell + gap for cell, gap in pairs])
    return "\n".join("   ".join(row) for row in zip(*padded))


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    rows = list(zip(*([head, *cells] for head, cells in table)))
    rule = "|---|" + "---:|" * (len(table) - 1)
    lines = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def escaped(text: str) -> str:
    """A text that Markdown shows as it is."""
    return MARKDOWN.sub(r"\\\1", text)


def document(
    title: str, above: list[str], tables: list[Table], below: list[str], markdown: bool
) -> str:
    """Tables with their title and the lines around them, as plain text or Markdown."""
    drawn = [(as_markdown if markdown else aligned)(table) for table in tables]
    if markdown:
        title = f"### {title}"
        above, below = ([f"- {escaped(line)}" for line in lines] for lines in (above, below))
    return "\n\n".join(filter(None, [title, "\n".join(above), *drawn, "\n".join(below)]))
