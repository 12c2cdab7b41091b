"""What may stand beside what: results whose numbers can be compared, and what bends a comparison.

Who sees two numbers in one table compares them. So results that differ in bench, judge or settings
are refused unless the caller insists, and whatever else bends a comparison is a warning below the
table.
"""

from collections import Counter
from fractions import Fraction

from janus_min.errors import UserError
from janus_min.kinds import KINDS
from janus_min.tables import percent, shown

UNEVEN, UNFAIR = Fraction(2, 100), Fraction(10, 100)  # distances of two shares of lost judgments
INSIST = "--mixed puts them into one table nevertheless"
MEANINGS = {  # of counts
    "missing": "items of the bench without a response, which are left out",
    "unanswered": "judgments without an answer, for which the same command asks again",
    "dropped": "judgments without a usable preference, which are left out",
    "twice": "judgments that are there twice, of which one counts",
    "marked": "responses that contain a judge's own mark such as [RESULT]; read them",
    "cut": "responses that were cut short at their limit of tokens",
    "empty": "responses without any text",
    "same": "responses that are the opponent's own, which are draws",
    "ties": "pairs with equal rewards, which count as wrong",
}


def by_kind(results: list[dict]) -> list[list[dict]]:
    """The results of each kind together, in the order in which the kinds first appear."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["kind"], []).append(result)
    return list(groups.values())


# Differences


def differences(results: list[dict]) -> list[tuple[str, list]]:
    """What results of one kind differ in: (bench, judge or a setting, its value in each result)."""
    kind = KINDS[results[0]["kind"]]
    benches: dict[str, str] = {}  # by hash: a bench is the same under another name
    for bench in (result["bench"] for result in results):
        benches.setdefault(bench["hash"], f"{bench['name']} ({bench['hash']})")
    settings = dict.fromkeys(key for result in results for key in result["settings"])
    values = [
        ("bench", [benches[result["bench"]["hash"]] for result in results]),
        ("judge", [result["judge"] for result in results]),
        *((key, [result[key] for result in results]) for key in kind.fixed),
        *((k, [r["settings"].get(k) for r in results]) for k in settings if k not in kind.own),
    ]
    return [(name, column) for name, column in values if any(v != column[0] for v in column)]


def _lost(result: dict) -> Fraction:
    """The share of judgments that failed; exact, since it is compared with limits."""
    counts = result["counts"]
    return Fraction(counts["failed"], (counts["failed"] + counts["ok"]) or 1)


def _extremes(results: list[dict]) -> tuple[dict, dict]:
    """The results that lost the smallest and the largest share of their judgments.

    One without judgments has no share, and is neither unless all are so.
    """
    judged = [r for r in results if r["counts"]["ok"] + r["counts"]["failed"]] or results
    return min(judged, key=_lost), max(judged, key=_lost)


def refuse(results: list[dict]) -> None:
    """Raises UserError if the numbers of two results of one kind cannot be compared."""
    differing, first = differences(results), results[0]
    for i, other in enumerate(results):
        if found := [f"{name}: {v[0]!r} and {v[i]!r}" for name, v in differing if v[0] != v[i]]:
            raise UserError(
                f"{first['path']} and {other['path']} differ in {'; '.join(found)} ({INSIST})"
            )
    least, most = _extremes(results)
    if _lost(most) - _lost(least) > UNFAIR:
        raise UserError(
            f"{least['path']} and {most['path']} differ in the share of failed judgments, which "
            f"are left out: {percent(_lost(least))} and {percent(_lost(most))} ({INSIST})"
        )


# What stands around a table


def about(results: list[dict]) -> list[str]:
    """Who judged what, and how often: lines for results of one kind."""
    kind, lines = KINDS[results[0]["kind"]], []
    benches = {
        r["bench"]["hash"]: f"{shown(r['bench']['name'])}, {r['bench']['items']:,} items"
        for r in results
    }
    if kind.judge:
        judges = dict.fromkeys(shown(result["judge"] or "not known") for result in results)
        lines.append(f"{kind.judge}: {' and '.join(judges)}")
        saw = [result["settings"].get("show_system") for result in results]
        if all(each is True for each in saw):
            lines[0] += ", which sees the system message"
        if all(each is False for each in saw):
            lines[0] += ", which does not see the system message"
    lines.append(f"bench: {' and '.join(benches.values())}")
    for key in kind.fixed:
        values = dict.fromkeys(shown(result[key]) for result in results)
        lines.append(f"{key}: {' and '.join(values)}")
    if runs := sorted({len(result["runs"]) for result in results if result.get("runs")}):
        lines.append(f"runs: {' and '.join(map(str, runs))}")
    return lines


def has_opponents(kind: str) -> bool:
    """Whether results of this kind are of pairs of models, each of which is a row."""
    return "opponent" in KINDS[kind].shape and "opponent" not in KINDS[kind].fixed


def labels(results: list[dict]) -> list[str]:
    """A name for each result of one kind; equal ones get their folder added, or else their file."""
    names = [shown(result["model"]) for result in results]
    if has_opponents(results[0]["kind"]):
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


def warnings(results: list[dict], names: list[str]) -> list[str]:
    """What a reader must know before comparing results of one kind, whose names are given."""
    kind, lines = KINDS[results[0]["kind"]], []
    if differing := differences(results):
        what = ", ".join(shown(name) for name, _ in differing)
        lines.append(f"the rows cannot be compared, they differ in {what}")
    least, most = _extremes(results)
    if _lost(most) - _lost(least) > UNEVEN:
        pair = (f"{percent(_lost(r))} of {names[results.index(r)]}" for r in (least, most))
        lines.append(f"failed judgments are left out, and their share differs: {', '.join(pair)}")
    runs = {name: len(r["runs"]) for name, r in zip(names, results) if r.get("runs")}
    if len({*runs.values()}) > 1:
        each = ", ".join(f"{number} of {name}" for name, number in runs.items())
        lines.append(f"the number of runs differs: {each}")
    remarks = [(kind.remark(result), name) for result, name in zip(results, names)]
    lines += [f"{remark}: {name}" for remark, name in remarks if remark]
    models = {tuple(result["answered_by"]) for result in results if result.get("answered_by")}
    if len(models) > 1:
        lines.append(f"judged by different models: {'; '.join(map(', '.join, sorted(models)))}")
    annotators = [result.get("annotators", {}).keys() for result in results]
    if any(people != annotators[0] for people in annotators):
        lines.append("the annotators differ")
    for key, meaning in (MEANINGS | kind.counts).items():
        counts = [(result["counts"].get(key, 0), name) for name, result in zip(names, results)]
        if each := ", ".join(f"{count:,} of {name}" for count, name in counts if count):
            lines.append(f"{meaning}: {each}")
    return lines
