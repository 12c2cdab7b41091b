"""Results of evaluations side by side: one table for each kind, in the layout of the paper.

Models are rows; sub-benchmarks, then the average, are columns.
"""

from pathlib import Path

from janus_min.comparison import about, by_kind, differences, labels, refuse, warnings
from janus_min.errors import UserError
from janus_min.files import read_json
from janus_min.kinds import KINDS, RESULT
from janus_min.results import COMMON, check
from janus_min.tables import NONE, document, shown


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
        result = _read(file)
        check(result, COMMON, file)
        if result["kind"] not in KINDS:
            raise UserError(f"{file}: kind {result['kind']!r} is unknown, known are {list(KINDS)}")
        check(result, KINDS[result["kind"]].shape, file)
        results[file.resolve()] = result | {"path": file}
    return list(results.values())


def _read(file: Path) -> dict:
    """The JSON object in a file, which may be another one than was meant."""
    try:
        return read_json(file)
    except UserError as error:
        hint = "" if file.name == RESULT else f"; results are in files called {RESULT}"
        raise UserError(f"{error}{hint}") from None


def as_text(results: list[dict], markdown: bool = False, mixed: bool = False) -> str:
    """The tables of all results, one for each kind, with what must be known to read them.

    Columns are aligned, or GitHub's Markdown. Raises UserError if results of one kind cannot be
    compared; `mixed` shows them all the same, with what they differ in.
    """
    return "\n\n".join(_section(group, markdown, mixed) for group in by_kind(results))


def _section(results: list[dict], markdown: bool, mixed: bool) -> str:
    """Title, conditions, tables, notes and warnings of the results of one kind."""
    if not mixed:
        refuse(results)
    kind, names = KINDS[results[0]["kind"]], labels(results)
    tables = kind.tables(results, names)
    for name, values in differences(results):
        tables[0].append((shown(name), [NONE if v is None else shown(v) for v in values]))
    texts = {text for table in tables for head, cells in table for text in (head, *cells)}
    marks = [mark for mark in kind.notes if any(mark in text for text in texts)]
    below = [f"{mark}: {kind.notes[mark]}" for mark in marks]
    below += [f"warning: {line}" for line in warnings(results, names)]
    return document(kind.title, about(results), tables, below, markdown)
