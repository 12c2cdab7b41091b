"""Items of a bench, and responses to them.

    bench       id, source, system, prompt, reference_answer, rubrics (or rubric): a list of
                {criteria, score_descriptions: {"1": …, …, "5": …}}, or one of these, or texts
    responses   {id: {"response": …}}, as the official scripts write them, or records with id and
                response (or output)

Both are JSONL, or JSON: a list of records, or an object of them by id. Items without an id have
their number, from 0, as the hub's version of Multifaceted Bench needs it; so have responses of
generate.py to them, which say the line. An id is text, whether the file has text or a number.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from janus_min.errors import UserError
from janus_min.files import text_hash
from janus_min.formats import read_jsonl, text_field, unicode_text

PROMPT, SYSTEM = ("prompt", "user_prompt", "instruction"), ("system", "system_prompt")
SOURCE, RESPONSE = ("source", "original_source"), ("response", "output")
RUBRICS = ("rubrics", "rubric")
SCORES = {"1", "2", "3", "4", "5"}
SHOWN = 3  # ids that a message names


def read_records(path: Path) -> Iterator[tuple[str, int, dict]]:
    """(where, number, record) of a JSONL or JSON file: numbers are those of lines, empty ones too,
    or entries, from 0. Of an object by id, records get their id.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; a JSONL or JSON file is needed")
    if path.suffix in (".jsonl", ".parquet") or not path.is_file():
        yield from ((f"{path}:{line}", line - 1, record) for line, record in read_jsonl(path))
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if isinstance(content, dict):
        content = [_by_id(key, value, path) for key, value in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{path}: a JSON list or object is needed, found {type(content).__name__}")
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{path}, entry {number}: a JSON object is needed, found {kind}")
        yield f"{path}, entry {number}", number, record


def read_bench(path: Path, rubrics: bool = True) -> list[dict]:
    """The items: id, source, system, prompt, and if `rubrics`, reference_answer and rubrics.

    Raises UserError that names the entry, the keys found and those needed.
    """
    items, seen = [], {}
    for where, number, record in read_records(path):
        item = {"id": _id(record, where) if "id" in record else str(number)}
        _once(item["id"], where, seen)
        item["source"] = text_field(record, SOURCE, where, optional=True) or path.stem
        item["system"] = text_field(record, SYSTEM, where, optional=True)
        item["prompt"] = text_field(record, PROMPT, where)
        if rubrics:
            item["reference_answer"] = text_field(record, ("reference_answer",), where)
            item["rubrics"] = _rubrics(record, where)
        items.append(item)
    if not items:
        raise UserError(f"{path} has no item")
    return items


def read_responses(path: Path) -> dict[str, dict]:
    """Responses by id: {"response": text}, with "stop" if the file says why it ended."""
    found, seen = {}, {}
    for where, _, record in read_records(path):
        if "id" not in record and type(record.get("line")) is not int:
            raise UserError(f"{where}: key 'id' is needed, found {sorted(record)}")
        key = _id(record, where) if "id" in record else str(record["line"] - 1)
        _once(key, where, seen)
        found[key] = {"response": text_field(record, RESPONSE, where)}
        found[key] |= {"stop": record["stop"]} if "stop" in record else {}
    if not found:
        raise UserError(f"{path} has no response")
    return found


def answered(
    items: list[dict], path: Path, allow_missing: bool, limit: int | None = None
) -> list[dict]:
    """Those of the first `limit` items that the file of responses has, each with its response.

    Raises UserError for responses to unknown items, for missing ones unless they are allowed, and
    if all are missing.
    """
    responses = read_responses(path)
    chosen = with_response(items, responses, path, allow_missing, limit)
    return [item | responses[item["id"]] for item in chosen]


def with_response(
    items: list[dict], responses: dict, path: Path, allow_missing: bool, limit: int | None = None
) -> list[dict]:
    """Those of the first `limit` items whose ids are keys of `responses`, which were read from
    `path`. Raises UserError as `answered` does.
    """
    known = {item["id"] for item in items}
    if unknown := [key for key in responses if key not in known]:
        raise UserError(
            f"{path}: responses to {len(unknown):,} items that the bench does not have: "
            f"{_some(unknown)}; its ids are {_some(item['id'] for item in items)}"
        )
    items = items[:limit]
    missing = [item["id"] for item in items if item["id"] not in responses]
    if len(missing) == len(items) or (missing and not allow_missing):
        advice = "" if len(missing) == len(items) else "; --allow-missing evaluates the others"
        raise UserError(
            f"{path}: no response to {len(missing):,} of {len(items):,} items: {_some(missing)}"
            + advice
        )
    return [item for item in items if item["id"] in responses]


def about_bench(items: list[dict], path: Path) -> dict:
    """What a result says about its bench: two with the same hash are of the same items.

    Sources do not count, as items without one have the file's name.
    """
    content = [{key: value for key, value in item.items() if key != "source"} for item in items]
    own = text_hash(json.dumps(content, sort_keys=True))
    return {"name": path.name, "hash": own, "items": len(items)}


def one_name(
    names: Iterable[str], where: str, wanted: str | None = None, flag: str | None = None
) -> str:
    """The name that is wanted if it is among these, or else the only one of them. Raises UserError
    if there are others, which names the flag by which one is wanted.
    """
    found = list(dict.fromkeys(names))
    if wanted in found:
        return wanted
    if len(found) > 1:
        advice = f"{flag} takes one" if flag else "needed is one"
        raise UserError(f"{where} has {len(found):,} names: {_some(found)}; {advice}")
    return found[0]


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _by_id(key: str, value: object, path: Path) -> dict:
    """An entry of a file in which records stand under their ids."""
    if isinstance(value, str):
        return {"id": key, "response": value}
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{path}: under {key!r}, an object or text is needed, found {kind}")
    if str(value.get("id", key)) != key:
        raise UserError(f"{path}: what stands under {key!r} has the id {value['id']!r}")
    return {"id": key} | value


def _id(record: dict, where: str) -> str:
    key = record["id"]
    if type(key) not in (str, int):
        raise UserError(f"{where}: 'id' must be text or an integer, found {type(key).__name__}")
    return unicode_text(str(key), f"{where}: 'id'")


def _once(key: str, where: str, seen: dict[str, str]) -> None:
    if key in seen:
        raise UserError(f"{where}: the id {key!r} is also that of {seen[key]}")
    seen[key] = where


def _rubrics(record: dict, where: str) -> list[dict | str]:
    key = next((key for key in RUBRICS if record.get(key) is not None), None)
    if key is None:
        raise UserError(f"{where}: key 'rubrics' or 'rubric' is needed, found {sorted(record)}")
    rubrics = record[key] if isinstance(record[key], list) else [record[key]]
    if not rubrics:
        raise UserError(f"{where}: {key!r} is empty")
    for rubric in rubrics:
        if isinstance(rubric, str) and rubric.strip():
            continue
        scores = rubric.get("score_descriptions") if isinstance(rubric, dict) else None
        whole = isinstance(scores, dict) and SCORES == set(scores)
        texts = [rubric.get("criteria"), *scores.values()] if whole else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where}: {key!r} needs text under 'criteria' and, in 'score_descriptions', under "
                "'1' to '5'"
            )
    return rubrics


def _some(ids: Iterable[str]) -> str:
    ids = list(ids)
    more = ", …" if len(ids) > SHOWN else ""
    return ", ".join(map(repr, ids[:SHOWN])) + more
