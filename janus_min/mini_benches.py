"""What the miniatures are tested on, as files: the bench, parts of it, and more of its kind.

bench.jsonl     the miniature bench
unseen.jsonl    its items with unseen combinations
silent.jsonl    all of its items without their system messages; rubrics are the same
three.jsonl     questions under three system messages each, all of them unseen combinations
teacher.jsonl   the teacher's own answers to the latter
"""

import itertools
from pathlib import Path

import numpy as np

from janus_min.files import as_line, replace_file
from janus_min.mini_data import (
    SPLITS,
    SYSTEMS_PER_INSTRUCTION,
    TRAINED_WORDINGS,
    bench,
    record,
    rubric,
    split_combinations,
)
from janus_min.world import PREFERENCES, TOPICS, WORLD, PreferenceSet, system_message

UNSEEN = SPLITS[1]
QUESTIONS_PER_TOPIC = 5  # that are asked three times


def three_systems(seed: int = 6) -> list[dict]:
    """Items of which three have one question each, under system messages of their own."""
    random = np.random.default_rng(seed)
    _, unseen = split_combinations()
    items = []
    for topic, question in itertools.product(TOPICS, WORLD["questions"][:QUESTIONS_PER_TOPIC]):
        prompt = question.replace("{topic}", topic)
        for i in random.choice(len(unseen), SYSTEMS_PER_INSTRUCTION, replace=False):
            system = system_message(unseen[i], range(TRAINED_WORDINGS), random)
            row = record(topic, prompt, unseen[i], system)
            items.append(
                {"id": str(len(items)), "source": UNSEEN, "topic": topic}
                | {"system": system, "prompt": prompt, "reference_answer": row["output"]}
                | {"rubrics": [rubric(preference) for preference in unseen[i]]}
            )
    return items


def write_benches(directory: Path, topics: int | None = None) -> None:
    """Writes all files; with `topics`, of so many topics only, and one question of each."""
    items, three = bench(), three_systems()
    if topics is not None:
        items, three = few(items, topics, 1), few(three, topics, SYSTEMS_PER_INSTRUCTION)
    files = {
        "bench": items,
        "unseen": [item for item in items if item["source"] == UNSEEN],
        "silent": [item | {"system": ""} for item in items],
        "three": three,
        "teacher": [{"id": item["id"], "response": item["reference_answer"]} for item in three],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        replace_file(directory / f"{name}.jsonl", b"".join(map(as_line, records)))


def few(items: list[dict], topics: int, count: int) -> list[dict]:
    """Of each split, the first `count` items of the first topics."""
    found = []
    for split, topic in itertools.product(SPLITS, list(TOPICS)[:topics]):
        own = [item for item in items if (item["source"], item["topic"]) == (split, topic)]
        found += own[:count]
    return found


# Talking to a model

SHOWCASE = (  # three users, by the effects that they value: unseen combinations
    ("bullets", "play", "number", "feeling"),
    ("tale", "open_question", "cause", "culture"),
    ("formal", "method", "example", "danger"),
)


def showcase(topic: str = "volcanoes") -> list[tuple[str, str]]:
    """One instruction under three system messages, as (system, prompt)."""
    random = np.random.default_rng(3)
    prompt = WORLD["questions"][0].replace("{topic}", topic)
    wordings = range(TRAINED_WORDINGS)
    return [(system_message(chosen, wordings, random), prompt) for chosen in showcase_sets()]


def showcase_sets() -> list[PreferenceSet]:
    """The preferences behind the system messages of `showcase`."""
    by_effect = {preference.effect: preference for preference in PREFERENCES}
    return [tuple(by_effect[effect] for effect in effects) for effects in SHOWCASE]
