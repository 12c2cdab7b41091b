"""A closed little world in natural English, with a perfect teacher and a strict judge.

`world.json` holds twelve topics, each with 26 true sentences, and 28 preferences in the paper's
four dimensions, each with eight wordings. A preference has a visible effect on an answer, so that a
rule can write the perfect answer (the teacher) and a rule can grade any answer from 1 to 5 (the
judge):

    style                  how it looks and opens    bullets, headline, a tone, a picture, …
    background_knowledge   for whom it is            plain or technical facts, and one sentence
    informativeness        what else it tells        one sentence: a cause, a number, a tip, …
    harmlessness           what it is careful about  one sentence: a danger, a source, …

A system message is a role and one wording of one preference per dimension, in any order.
`mini_data.py` makes a collection and a bench of it.
"""

import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import numpy as np

from janus_min.hierarchy import DIMENSIONS

WORLD = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
TOPICS: dict[str, dict[str, str]] = {topic["name"]: topic["slots"] for topic in WORLD["topics"]}
TECHNICAL = ("subject", "method", "open_question")  # asides whose readers get the technical facts


@dataclass(frozen=True)
class Preference:
    """One thing that a user may value."""

    dimension: str
    subdimension: str
    preference: str
    effect: str  # what it does to an answer
    wordings: tuple[str, ...]  # sentences of a system message that ask for it


PREFERENCES = [Preference(**(p | {"wordings": tuple(p["wordings"])})) for p in WORLD["preferences"]]
BY_DIMENSION = {d: [p for p in PREFERENCES if p.dimension == d] for d in DIMENSIONS}
BY_NAME = {p.preference: p for p in PREFERENCES}

PreferenceSet = tuple[Preference, ...]  # one of each dimension, in the order of DIMENSIONS


# The teacher


def answer(topic: str, preferences: PreferenceSet) -> str:
    """The perfect answer to a question about `topic`."""
    slots = TOPICS[topic]
    style, knowledge, information, harmlessness = (p.effect for p in preferences)
    register = "technical" if knowledge in TECHNICAL else "plain"
    keys = [f"{register}_1", f"{register}_2", knowledge, information, harmlessness]
    sentences = [slots[key] for key in keys]
    if style in WORLD["tones"]:
        opening, closing = tone(style, topic)
        return " ".join([opening, *sentences, closing])
    if style == "bullets":
        return "\n".join(f"- {sentence}" for sentence in sentences)
    if style == "numbered":
        return "\n".join(
            f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1)
        )
    if style == "headline":
        return "\n".join([headline(topic), " ".join(sentences)])
    return " ".join([slots[style], *sentences])  # a comparison or a scene opens the answer


def tone(style: str, topic: str) -> tuple[str, str]:
    """The first and the last sentence of an answer in this tone."""
    return tuple(
        WORLD["tones"][style][part].replace("{topic}", topic) for part in ("opening", "closing")
    )


def headline(topic: str) -> str:
    """The line that stands above an answer."""
    return f"# All about {topic}"


def system_message(preferences: PreferenceSet, wordings: range, random: np.random.Generator) -> str:
    """A role and one wording of each preference, in random order, as one paragraph."""
    count = len(preferences)
    order = random.permutation(count)
    sentences = [preferences[i].wordings[random.choice(wordings)] for i in order]
    for i in range(1, count):
        if random.random() < 0.3:
            link = random.choice(WORLD["links"])
            sentences[i] = link + sentences[i][0].lower() + sentences[i][1:]
    return " ".join([random.choice(WORLD["roles"]), *sentences])


# The judge


def bare_sentences(response: str) -> list[str]:
    """The sentences of an answer without headline, bullets and numbers."""
    lines = [
        re.sub(r"^(-|\d+\.) ", "", line)
        for line in response.splitlines()
        if not line.startswith("#")
    ]
    return [s for line in lines for s in re.split(r"(?<=[.!?]) ", line.strip()) if s]


def likeness(sentence: str, wanted: str) -> float:
    """1 for the same words, falling to 0 where half of them or fewer agree in order."""
    ratio = SequenceMatcher(None, sentence.split(), wanted.split(), autojunk=False).ratio()
    return max(0.0, 2 * ratio - 1)


@cache
def closest(topic: str, sentence: str) -> tuple[str, float]:
    """Which sentence of the topic this one is most like, as (slot, likeness)."""
    likenesses = {slot: likeness(sentence, wanted) for slot, wanted in TOPICS[topic].items()}
    return max(likenesses.items(), key=lambda item: item[1])


def shows(effect: str, topic: str, response: str) -> float:
    """How clearly an answer shows one effect, from 0 to 1."""
    lines, sentences = response.splitlines(), bare_sentences(response)
    if not sentences:
        return 0.0
    if effect in WORLD["tones"]:
        opening, closing = tone(effect, topic)
        return (likeness(sentences[0], opening) + likeness(sentences[-1], closing)) / 2
    if effect == "bullets":
        return sum(line.startswith("- ") for line in lines) / len(lines) if len(lines) > 1 else 0.0
    if effect == "numbered":
        return sum(line.startswith(f"{i}. ") for i, line in enumerate(lines, start=1)) / len(lines)
    if effect == "headline":
        return likeness(lines[0], headline(topic))
    if effect in ("comparison", "scene"):
        sentences = sentences[:1]
    found = [closest(topic, sentence) for sentence in sentences]
    return max((degree for slot, degree in found if slot == effect), default=0.0)


def judge(preference: Preference, topic: str, response: str) -> int:
    """Grades an answer from 1 to 5 by one preference.

    What counts is the preference's own effect, as far as no rival of the same dimension shows as
    well: an answer that has everything follows nothing. For background knowledge half of the grade
    is the register of the two core facts.
    """
    rivals = [p for p in BY_DIMENSION[preference.dimension] if p != preference]
    own = shows(preference.effect, topic, response)
    own *= 1 - max(shows(rival.effect, topic, response) for rival in rivals)
    if preference.dimension == "background_knowledge":
        register = "technical" if preference.effect in TECHNICAL else "plain"
        facts = [shows(f"{register}_{i}", topic, response) for i in (1, 2)]
        own = (own + sum(facts) / 2) / 2
    return 1 + int(4 * own + 0.5)


def true_sentences(topic: str, response: str) -> tuple[int, int]:
    """How many sentences of an answer are word for word true of the topic, and how many it has.

    What opens and closes an answer in some tone states nothing and is left out of both.
    """
    phrases = {phrase for style in WORLD["tones"] for phrase in tone(style, topic)}
    claims = [sentence for sentence in bare_sentences(response) if sentence not in phrases]
    return sum(claim in TOPICS[topic].values() for claim in claims), len(claims)
