"""Several benchmarks in one table: a row for each model, a column for each number that a benchmark
is known by, as in the main table of the paper.

Several benches of one kind are columns of their own: models that were trained differently, tested
with a system message and, on another bench, without one, make a table of both.
"""

from janus_min.comparison import about, by_kind, has_opponents, refuse, warnings
from janus_min.errors import UserError
from janus_min.kinds import KINDS
from janus_min.tables import NONE, Column, document, shown

TITLE = "Models side by side, a column for each benchmark"


def as_summary(results: list[dict], markdown: bool = False, mixed: bool = False) -> str:
    """One table of results of all kinds, with what must be known to read it.

    A dash is a benchmark that a model was not tested on. Columns are aligned, or GitHub's
    Markdown. Raises UserError if a model was tested twice in a column, or if the results in a
    column cannot be compared, unless `mixed`.
    """
    models = list(dict.fromkeys(result["model"] for result in results))
    names = list(map(shown, models))
    if len({*names}) < len(names):  # long ones, cut in the middle
        names = list(map(repr, models))
    rows = dict(zip(models, names))
    table, above, below = [("model", names)], [], []
    for group in by_kind(results):
        benches = _by_bench(group)
        for own, place in zip(benches, _places(benches)):
            _refuse_twice(own)
            if not mixed:
                refuse(own)
            table += _columns(own, models, place)
            head = KINDS[own[0]["kind"]].name + place
            above.append(f"{head}: {'; '.join(about(own))}")
            own_names = [rows[result["model"]] for result in own]
            below += [f"warning: {head}: {line}" for line in warnings(own, own_names)]
    return document(TITLE, above, [table], below, markdown)


def _by_bench(results: list[dict]) -> list[list[dict]]:
    """Results of one kind, those on each bench together, and against each opponent."""
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        opponent = result["opponent"] if has_opponents(result["kind"]) else None
        groups.setdefault((result["bench"]["hash"], opponent), []).append(result)
    return list(groups.values())


def _places(benches: list[list[dict]]) -> list[str]:
    """What tells the columns of one kind apart: the opponent, and the bench if there are several;
    two benches of one name have their hash, too.
    """
    hashes = {own[0]["bench"]["hash"]: shown(own[0]["bench"]["name"]) for own in benches}
    places = []
    for first in (own[0] for own in benches):
        place = f" vs {shown(first['opponent'])}" if has_opponents(first["kind"]) else ""
        if len(hashes) > 1:
            name = hashes[first["bench"]["hash"]]
            same = list(hashes.values()).count(name) > 1
            place += f" ({name} {first['bench']['hash'][:8]})" if same else f" ({name})"
        places.append(place)
    return places


def _columns(results: list[dict], models: list[str], place: str) -> list[Column]:
    """The numbers that a benchmark is known by, but for those that no result has."""
    kind, found = KINDS[results[0]["kind"]], {result["model"]: result for result in results}
    columns = []
    for label, cell in kind.headlines.items():
        cells = [cell(found[model]) if model in found else NONE for model in models]
        if {*cells} != {NONE}:
            columns.append((f"{kind.name} {label}".strip() + place, cells))
    return columns


def _refuse_twice(results: list[dict]) -> None:
    """Raises UserError if a model has two results."""
    files = {}
    for result in results:
        model = result["model"]
        if model in files:
            raise UserError(
                f"{files[model]} and {result['path']} are both of {model!r} on one bench; a cell "
                "of a summary has room for one of them (--name names the model of an evaluation)"
            )
        files[model] = result["path"]
