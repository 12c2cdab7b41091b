"""The Multifaceted Collection: what is asked of a model at each stage, and what is taken from its
replies. All of it is pure functions on records; `build.py` runs them over files and a server.

    instructions   {id, main_source, original_source, prompt}
    preferences    the same, and preference_sets: three sets of one preference per dimension
    systems        one record for each set: set, preference_set, and system, written from the
                   four descriptions alone, as in the paper
    responses      the same, and output: the answer to the prompt under the system message
    rubrics        of the bench: one record for each preference, with rubric

The paper's prompts and seeds are not known; neither is how it made three sets differ. Here all
three are asked for at once, each from starting points of its own that the seed and the
instruction's number decide, and a reply in which two users agree too much is refused.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

from janus_min import prompts
from janus_min.duplicates import normal_form
from janus_min.hierarchy import DIMENSIONS, Hierarchy, starting_points
from janus_min.replies import ReplyError, json_value

ENTRY = ("subdimension", "preference", "description")
LONGEST = {"subdimension": 80, "preference": 200, "description": 1200}  # characters
SHORTEST_SYSTEM, LONGEST_SYSTEM = 20, 400  # words
# What a system message does not begin with, and what it does not have anywhere.
INTRODUCTION = (
    r"(system message|here(\s+is|['’]s)|below is|(sure|certainly|absolutely|of course)(?=[,!.:]))\b"
)
REFUSAL = r"(I['’]m|I am) (sorry|unable)|I (can['’]t|cannot|can not)\b"
LIST = r"^[-*•>#]|```|\*\*|(^|\s)\d[.)]\s.*\s\d[.)]\s|^\d+[.)]\s"
SCORES = ("1", "2", "3", "4", "5")
CARRIED = ("id", "main_source", "original_source", "prompt")


class Question(NamedTuple):
    """What a model is asked."""

    system: str
    user: str
    json: bool  # whether the reply is to be one JSON object
    max_tokens: int
    sample: int = 0  # which of several independent replies to the same question
    extra: dict | None = None  # more parameters of the request


class Stage(NamedTuple):
    """One step from records to records, through a model."""

    name: str
    tasks: Callable[[dict], list[dict]]  # a record of the stage before -> what to do for it
    ask: Callable[[dict], Question]  # of a task
    read: Callable[[dict, str | dict], dict]  # (task, reply) -> record; raises ReplyError
    fan_out: int  # tasks per record
    written: int  # tokens that a reply has, more or less, for estimates
    # What is said to the model about a reply that cannot be read, with the mark {reason}; None:
    # just another one is asked for.
    again: str | None = prompts.AGAIN
    joined: bool = False  # what is said then goes on: `read` gets it behind what was said before
    # `read` gets all that is kept of a reply, in place of its text, even if it was cut short.
    whole: bool = False


# Preferences


def preferences_stage(hierarchy: Hierarchy, count: int, differ: int, seed: int) -> Stage:
    """Instruction -> `count` preference sets, of which any two differ in `differ` dimensions."""

    def seeds(record: dict) -> list[dict]:
        """The starting points of an instruction, by its number."""
        return starting_points(hierarchy, count, [seed, record["id"]])

    def ask(record: dict) -> Question:
        """The instruction and the starting points."""
        lines = "\n".join(json.dumps(user, ensure_ascii=False) for user in seeds(record))
        number = prompts.ONE_USER if count == 1 else prompts.MANY_USERS
        slots = {key: prompts.fill(text, count=count) for key, text in number.items()}
        slots |= {"instruction": record["prompt"], "seeds": lines}
        user = prompts.fill(prompts.PREFERENCES, **slots)
        return Question(prompts.PREFERENCES_SYSTEM, user, True, max(4096, 600 * count))

    def read(record: dict, reply: str) -> dict:
        """The sets, none of which only repeats a starting point."""
        sets = preference_sets(json_value(reply), count, differ)
        for number, (entries, points) in enumerate(zip(sets, seeds(record)), start=1):
            for entry in entries:
                if normal(entry) == normal(points[entry["dimension"]]):
                    raise ReplyError(
                        f"{entry['dimension']} of set {number} has the description of its starting "
                        "point; it must fit the instruction"
                    )
        return {key: record[key] for key in CARRIED} | {"preference_sets": sets}

    return Stage("preferences", lambda record: [record], ask, read, 1, 280 * count)


def normal(entry: dict, key: str = "description") -> str:
    """A text of an entry, for comparisons."""
    return normal_form(entry[key])


def preference_sets(value: object, count: int, differ: int) -> list[list[dict]]:
    """The sets in a reply, each in the order of DIMENSIONS. Raises ReplyError unless there are
    `count` of them, whole and different.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0] if "sets" in value[0] else value
    if isinstance(value, dict) and count == 1 and "sets" not in value:
        value = [value]
    if isinstance(value, dict):
        value = value.get("sets")
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} of them" if isinstance(value, list) else _kind(value)
        raise ReplyError(f'"sets" must be a list of {count} objects, found {found}')
    sets = [_preference_set(entry, f"set {n}") for n, entry in enumerate(value, start=1)]
    for (i, first), (j, second) in combinations(enumerate(sets, start=1), 2):
        same = [
            f"{key} in {a['dimension']}"
            for a, b in zip(first, second)
            for key in ("preference", "description")
            if normal(a, key) == normal(b, key)
        ]
        if len(DIMENSIONS) - len({text.split()[-1] for text in same}) < differ:
            raise ReplyError(f"sets {i} and {j} have the same {', '.join(same)}")
    return sets


def _preference_set(value: object, where: str) -> list[dict]:
    named: dict[str, object] = {}
    for key, entry in _object(value, where).items():
        name = re.sub(r"[\s-]+", "_", key.strip().lower())
        if name in named:
            raise ReplyError(f"{where} has the dimension {name} twice")
        named[name] = entry
    if sorted(named) != sorted(DIMENSIONS):
        raise ReplyError(f"{where} must have the keys {list(DIMENSIONS)}, found {list(named)}")
    found = []
    for dimension in DIMENSIONS:
        here = f"{dimension} of {where}"
        entry = _object(named[dimension], here)
        texts = {key: _text(entry, key, here, LONGEST[key]) for key in ENTRY}
        found.append({"dimension": dimension, **texts})
    return found


# System messages and responses


def systems_stage(count: int, taken: Callable[[str], bool] = lambda system: False) -> Stage:
    """Each of `count` preference sets -> system message. One that is `taken` is refused."""

    def tasks(record: dict) -> list[dict]:
        """One for each set."""
        carried = {key: record[key] for key in CARRIED}
        return [
            carried | {"set": number, "preference_set": entries}
            for number, entries in enumerate(record["preference_sets"])
        ]

    def ask(task: dict) -> Question:
        """The four descriptions, and nothing else of the record."""
        lines = "\n".join(f"- {entry['description']}" for entry in task["preference_set"])
        user = prompts.fill(prompts.SYSTEM_MESSAGE, descriptions=lines)
        return Question(prompts.SYSTEM_MESSAGE_SYSTEM, user, False, 1024)

    def read(task: dict, reply: str) -> dict:
        """The system message, if there is none like it yet."""
        system = system_message(reply)
        if taken(system):
            raise ReplyError("this system message exists already")
        return task | {"system": system}

    return Stage("systems", tasks, ask, read, count, 190)


def system_message(reply: str) -> str:
    """The system message in a reply. Raises ReplyError unless it is one paragraph of fitting
    length that speaks to the assistant.
    """
    text = reply.strip()
    if text[:1] + text[-1:] in ('""', "“”") and not set(text[1:-1]) & set('"“”'):
        text = text[1:-1].strip()
    if "\n" in text:
        raise ReplyError("it must be one paragraph, without line breaks")
    if re.match(INTRODUCTION, text, re.I) or re.search(LIST, text):
        raise ReplyError("it must be plain sentences, without list, heading or introduction")
    if re.match(REFUSAL, text, re.I):
        raise ReplyError("it must be a system message, not an excuse")
    words = len(text.split())
    if not SHORTEST_SYSTEM <= words <= LONGEST_SYSTEM:
        raise ReplyError(f"it has {words} words, needed are {SHORTEST_SYSTEM} to {LONGEST_SYSTEM}")
    if not re.search(r"\byou(r|rs|rself)?\b", text, re.I):
        raise ReplyError('it must speak to the assistant as "you"')
    return text


def responses_stage() -> Stage:
    """System message and instruction -> response, asked for as the trained model will be."""

    def ask(task: dict) -> Question:
        """The instruction, under the system message."""
        return Question(task["system"], task["prompt"], False, 4096)

    def read(task: dict, reply: str) -> dict:
        """The response, whatever it is."""
        return task | {"output": reply.strip()}

    return Stage("responses", lambda record: [record], ask, read, 1, 500)


# Rubrics of the bench


def rubrics_stage() -> Stage:
    """Preference -> rubric: a question and what each score from 1 to 5 means."""

    def tasks(record: dict) -> list[dict]:
        """One for each preference."""
        carried = {key: record[key] for key in ("id", "set")}
        return [carried | {"preference": entry} for entry in record["preference_set"]]

    def ask(task: dict) -> Question:
        """The description of the preference."""
        description = task["preference"]["description"]
        user = prompts.fill(prompts.RUBRIC, description=description)
        return Question(prompts.RUBRIC_SYSTEM, user, True, 1024)

    def read(task: dict, reply: str) -> dict:
        """The rubric, whole."""
        return task | {"rubric": rubric(json_value(reply))}

    return Stage("rubrics", tasks, ask, read, len(DIMENSIONS), 250)


def rubric(value: object) -> dict:
    """A rubric in the bench's format. Raises ReplyError unless it is whole."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    value = _object(value, "the reply")
    scores = _object(value.get("score_descriptions"), '"score_descriptions"')
    if sorted(scores) != list(SCORES):
        raise ReplyError(f'"score_descriptions" must have the keys 1 to 5, found {sorted(scores)}')
    texts = {key: _text(scores, key, '"score_descriptions"', 1000) for key in SCORES}
    if len({normal_form(text) for text in texts.values()}) < len(SCORES):
        raise ReplyError("two scores have the same description")
    return {"criteria": _text(value, "criteria", "the reply", 500), "score_descriptions": texts}


# Checks that the stages share


def _object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ReplyError(f"{where} must be a JSON object, found {_kind(value)}")
    return value


def _text(entry: dict, key: str, where: str, longest: int) -> str:
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        found = "none" if isinstance(text, str) else _kind(text)
        raise ReplyError(f"{where} needs text under {key!r}, found {found}")
    if len(text) > longest:
        raise ReplyError(f"{key!r} of {where} has {len(text)} characters, {longest} at most")
    return " ".join(text.split())


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names[type(None)] = "nothing"
    return names.get(type(value), "a number")


# Groups


def grouped(records: Iterator[dict]) -> Iterator[list[dict]]:
    """Records that follow one another and have the same id, together."""
    group: list[dict] = []
    for record in records:
        if group and group[0]["id"] != record["id"]:
            yield group
            group = []
        group.append(record)
    if group:
        yield group
