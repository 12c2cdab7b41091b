"""The miniature: the paper's experiment in a closed little world, on a laptop.

The rows and files have the shape of the paper's collection and bench. Two things are kept back from
training. Some pairs of preferences never meet in a system message; one that joins such a pair is an
*unseen combination*. Two wordings of every preference are never used: *unseen wordings*. Nothing of
this says anything about real language models.
"""

import io
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from janus_min.chat import encode_prompts
from janus_min.errors import UserError
from janus_min.model import Policy
from janus_min.sampling import Request, Sampling, generate
from janus_min.tokenizer import Tokenizer
from janus_min.world import (
    BY_DIMENSION,
    BY_NAME,
    DIMENSIONS,
    PREFERENCES,
    TOPICS,
    WORLD,
    Preference,
    PreferenceSet,
    answer,
    judge,
    system_message,
    true_sentences,
)

FILES = Path("runs") / "miniature"  # where the programs keep the files of the world
SYSTEMS_PER_INSTRUCTION = 3  # the paper's
HELD_OUT_SHARE = 0.06  # of all pairs of preferences of two dimensions
TRAINED_WORDINGS = 6  # of 8
UNIFORM_SYSTEM = "You are a helpful assistant."
UNIFORM_SLOTS = ("plain_1", "plain_2", "example", "source")  # of the answer to it
COLLECTIONS = ("multifaceted", "uniform")
SPLITS = ("trained combinations", "unseen combinations", "unseen wordings")
TEXTS_PER_TOPIC = 200  # plain texts to read beside the collection
ITEMS_PER_TOPIC = 5  # in each split of the bench
ASKED_FOR = "Is the response as asked for: "  # how the criteria of a rubric begin

# The collection and the bench


def split_combinations() -> tuple[list[PreferenceSet], list[PreferenceSet]]:
    """All preference sets: those to train on, and those that join a pair kept apart there."""
    pairs = [
        (a, b)
        for first, second in itertools.combinations(DIMENSIONS, 2)
        for a in BY_DIMENSION[first]
        for b in BY_DIMENSION[second]
    ]
    chosen = np.random.default_rng(0).permutation(len(pairs))[: round(HELD_OUT_SHARE * len(pairs))]
    apart = {pairs[i] for i in chosen}
    trained, unseen = [], []
    for combination in itertools.product(*BY_DIMENSION.values()):
        joins = any(pair in apart for pair in itertools.combinations(combination, 2))
        (unseen if joins else trained).append(combination)
    return trained, unseen


def record(topic: str, prompt: str, preferences: PreferenceSet, system: str) -> dict:
    """One row of the collection, in the columns of the published one."""
    return {
        "main_source": "miniature",
        "original_source": topic,
        "preference_set": [
            {"dimension": p.dimension, "subdimension": p.subdimension, "preference": p.preference}
            | {"description": p.wordings[0]}
            for p in preferences
        ],
        "system": system,
        "prompt": prompt,
        "output": answer(topic, preferences),
    }


def row_preferences(row: dict) -> PreferenceSet:
    """The preferences behind a row of the collection."""
    return tuple(BY_NAME[entry["preference"]] for entry in row["preference_set"])


def collection(seed: int = 0) -> list[dict]:
    """The training rows: every instruction under three system messages."""
    random = np.random.default_rng(seed)
    trained, _ = split_combinations()
    rows = []
    for topic, question, opener in itertools.product(TOPICS, WORLD["questions"], WORLD["openers"]):
        prompt = opener + question.replace("{topic}", topic)
        for i in random.choice(len(trained), SYSTEMS_PER_INSTRUCTION, replace=False):
            system = system_message(trained[i], range(TRAINED_WORDINGS), random)
            rows.append(record(topic, prompt, trained[i], system))
    return rows


def uniform_collection() -> list[dict]:
    """The same instructions, all under one system message that asks for nothing special.

    The teacher answers them as it answers whoever states no preference: always in the same way.
    """
    rows = []
    for topic, question, opener in itertools.product(TOPICS, WORLD["questions"], WORLD["openers"]):
        prompt = opener + question.replace("{topic}", topic)
        output = " ".join(TOPICS[topic][slot] for slot in UNIFORM_SLOTS)
        row = {"main_source": "miniature", "original_source": topic, "preference_set": []}
        row |= {"system": UNIFORM_SYSTEM, "prompt": prompt, "output": output}
        rows.append(row)
    return rows


def plain_texts(seed: int = 2) -> list[dict]:
    """What a pretrained model would have read: the world's sentences, without any relation.

    Each text is a role with some wordings (none of those kept back), a question, and sentences
    about its topic that owe nothing to the role. A model that starts from nothing needs it to stay
    sane under a system message of which it knows no word; what it does about the message it cannot
    learn here.
    """
    random = np.random.default_rng(seed)
    trained, _ = split_combinations()
    texts = []
    for topic in TOPICS:
        for _ in range(TEXTS_PER_TOPIC):
            chosen = trained[random.integers(len(trained))]
            some = random.choice(4, random.integers(1, 5), replace=False)
            paragraph = system_message([chosen[i] for i in some], range(TRAINED_WORDINGS), random)
            question = random.choice(WORLD["questions"]).replace("{topic}", topic)
            facts = random.permutation(list(TOPICS[topic].values()))[:6]
            texts.append({"text": f"{paragraph}\n{question}\n{' '.join(facts)}"})
    return texts


def bench(seed: int = 1) -> list[dict]:
    """The items of all splits, in the columns of Multifaceted Bench; `source` is the split."""
    random = np.random.default_rng(seed)
    _, unseen = split_combinations()
    trained = sorted({row_preferences(row) for row in collection()}, key=str)
    old, new = range(TRAINED_WORDINGS), range(TRAINED_WORDINGS, 8)
    items = []
    for split, sets, wordings in zip(SPLITS, (trained, unseen, trained), (old, old, new)):
        for topic, _ in itertools.product(TOPICS, range(ITEMS_PER_TOPIC)):
            preferences = sets[random.integers(len(sets))]
            prompt = random.choice(WORLD["questions"]).replace("{topic}", topic)
            row = record(topic, prompt, preferences, system_message(preferences, wordings, random))
            items.append(
                {"id": str(len(items)), "source": split, "topic": topic}
                | {"system": row["system"], "prompt": prompt, "reference_answer": row["output"]}
                | {"rubrics": [rubric(p) for p in preferences]}
            )
    return items


def rubric(preference: Preference) -> dict:
    """A rubric in the bench's format; its criteria name the preference."""
    grades = ("not at all", "hardly", "in part", "almost", "fully")
    return {
        "criteria": f"{ASKED_FOR}{preference.preference}?",
        "score_descriptions": {str(i): f"It is {g} so." for i, g in enumerate(grades, start=1)},
    }


def rubric_preference(rubric: dict) -> Preference:
    """The preference that a rubric of `rubric` grades."""
    return BY_NAME[rubric["criteria"].removeprefix(ASKED_FOR).removesuffix("?")]


def train_tokenizer(rows: list[dict], vocab_size: int = 2048) -> bytes:
    """The file of a SentencePiece model over the collection's texts, with the settings of Mistral's
    own.
    """
    texts = {
        text for row in rows for text in (row["system"], row["prompt"], *row["output"].splitlines())
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(texts) + ["[INST] [/INST]"] * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        num_threads=1,  # the same model every time
        minloglevel=2,
    )
    return model.getvalue()


def write_world(directory: Path) -> None:
    """Writes collections, bench and tokenizer into `directory`: what `train.py` needs."""
    directory.mkdir(parents=True, exist_ok=True)
    rows, texts = collection(), plain_texts()
    files = {
        "multifaceted": rows + texts,
        "uniform": uniform_collection() + texts,
        "bench": bench(),
    }
    for name, records in files.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        _write(directory / f"{name}.jsonl", text.encode())
    _write(directory / "tokenizer.model", train_tokenizer(rows))


def _write(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a program that reads it meanwhile never sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


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


# Scoring a model


@dataclass(frozen=True)
class Score:
    """How a model did on the items of one split."""

    split: str
    mean: float  # of the grades, over rubrics, then items
    items: int
    true: int  # sentences that are true of the topic
    sentences: int

    def __str__(self) -> str:
        share = 100 * self.true / max(1, self.sentences)
        return (
            f"{self.split}: {self.mean:.2f} of 5  "
            f"({self.items} answers, {share:.1f} % of their sentences true)"
        )


def newest_model() -> Path:
    """The model of the miniature run that ended last."""
    configs = list(Path("runs").glob("mini*/model/config.json"))
    if not configs:
        raise UserError("no miniature model in runs/ yet: run `python train.py`, or give --model")
    return max(configs, key=lambda path: path.stat().st_mtime).parent


def respond(
    policy: Policy, tokenizer: Tokenizer, items: list[dict], system: str | None = None
) -> list[str]:
    """The model's most likely answer to each item, under its system message or another one."""
    prompts = [(item["system"] if system is None else system, item["prompt"]) for item in items]
    requests = [Request(ids) for ids in encode_prompts(tokenizer, prompts)]
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=256)
    return [tokenizer.decode(completion.ids) for completion in generate(policy, requests, sampling)]


def score(split: str, items: list[dict], responses: list[str]) -> Score:
    """Grades the responses by all rubrics of their items, and checks their sentences."""
    means, true, sentences = [], 0, 0
    for item, response in zip(items, responses, strict=True):
        grades = [judge(rubric_preference(r), item["topic"], response) for r in item["rubrics"]]
        means.append(sum(grades) / len(grades))
        right, total = true_sentences(item["topic"], response)
        true, sentences = true + right, sentences + total
    return Score(split, sum(means) / len(means), len(items), true, sentences)


def score_model(policy: Policy, tokenizer: Tokenizer, uniform: bool) -> list[Score]:
    """All splits; for the uniform model the first one again under its own system message."""
    items = bench()
    responses = respond(policy, tokenizer, items)
    scores = []
    for split in SPLITS:
        chosen = [i for i, item in enumerate(items) if item["source"] == split]
        scores.append(score(split, [items[i] for i in chosen], [responses[i] for i in chosen]))
    if uniform:
        chosen = [item for item in items if item["source"] == SPLITS[0]]
        own = respond(policy, tokenizer, chosen, UNIFORM_SYSTEM)
        scores.append(score("under its own system message", chosen, own))
    return scores
