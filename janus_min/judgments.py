"""Judgments that there are: folders of them read once more, and results put into folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from janus_min.errors import UserError
from janus_min.files import read_json, replace_file
from janus_min.formats import read_jsonl
from janus_min.kinds import KINDS, RESULT
from janus_min.pipeline import STATE, Folder
from janus_min.replies import ReplyError

QUESTIONS, JUDGMENTS = "questions", "judgments"
FAILED = f"{JUDGMENTS}.failed"
FOUND = ("ok", "failed", "several", "odd", "unanswered")  # counts that judgments themselves show


def begin(folder: Folder, stage: str) -> None:
    """Notes that what there are judgments of is about to change: no result stands for it."""
    folder.begin(stage)
    (folder.path / RESULT).unlink(missing_ok=True)


def stored_judgments(folder: Path, read: Callable[[str | dict], object]) -> Iterator[dict]:
    """All judgments of a folder in the order of their items, their replies read once more, with
    the "source" of the item; "value" is None for what failed.

    Raises UserError if the last run ended before the judgments were those of the questions.
    """
    state = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    if JUDGMENTS not in state.get("stages", {}):
        raise UserError(f"{folder} has no finished judgments; go on without --rescore")
    questions = (record for _, record in read_jsonl(folder / f"{QUESTIONS}.jsonl"))
    sources = {question["id"]: question["source"] for question in questions}
    files = (read_jsonl(folder / f"{name}.jsonl") for name in (JUDGMENTS, FAILED))
    records = [record for file in files for _, record in file]
    places = {key: place for place, key in enumerate(sources)}
    for record in sorted(records, key=lambda record: places[record["id"]]):
        try:
            value = read(record["reply"]) if "reply" in record else None
        except ReplyError:
            value = None
        yield record | {"value": value, "source": sources[record["id"]]}


def stored_head(folder: Path, kind: str, **names: str | None) -> tuple[dict, dict]:
    """The head of the result in a folder, with other names if they are given, and those of its
    counts that judgments do not show. Raises UserError unless it is a result of this kind.
    """
    path, needed = folder / RESULT, ["kind", "model", "judge", "bench", "settings", "counts"]
    if not path.is_file() and (folder / STATE).is_file():
        raise UserError(f"{folder} has no result; go on without --rescore")
    if not path.is_file():
        raise UserError(f"{path} not found: --rescore needs a folder that `{kind}` has filled")
    result = read_json(path)
    if result.get("kind") != kind:
        raise UserError(f"{path} is a result of {result.get('kind')!r}, not of {kind!r}")
    needed += ["opponent"] if "opponent" in KINDS[kind].shape else []
    if not result.keys() >= {*needed}:
        raise UserError(f"{path}: needed are the keys {sorted(needed)}, found {sorted(result)}")
    head = {key: value for key, value in result.items() if key in (*needed, "answered_by")}
    counts = {key: n for key, n in head.pop("counts").items() if key not in FOUND}
    return head | {key: name for key, name in names.items() if name}, counts


def other_folder(out: Path | None, source: Path | None = None) -> Path | None:
    """Where a result goes that no judge was asked for: `out`, unless that is its `source`. Raises
    UserError if the folder holds the judgments of another result.
    """
    if out is None or (source and out.resolve() == source.resolve()):
        return None
    if (out / STATE).exists():
        raise UserError(f"{out} holds the judgments of another result; give another --out")
    return out


def require_kind(folder: Path, kind: str) -> None:
    """Raises UserError if a folder holds the result of another kind."""
    path = folder / RESULT
    if path.is_file() and (found := read_json(path).get("kind")) != kind:
        raise UserError(
            f"{folder} holds a result of {found!r}, not of {kind!r}; give another --out"
        )


def keep(result: dict, folder: Path | None) -> dict:
    """Puts a result into a folder, if one is given."""
    if folder:
        require_kind(folder, result["kind"])
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RESULT, result)
    return result


def write_whole(path: Path, content: dict) -> None:
    """Writes a JSON file that is whole or not there."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, text.encode("utf-8", "replace"))
