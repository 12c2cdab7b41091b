"""The miniature: the paper's experiment in a closed little world, on a laptop.

The rows and files have the shape of the paper's collection and bench. Two things are kept back from
training. Some pairs of preferences never meet in a system message; one that joins such a pair is an
*unseen combination*. Two wordings of every preference are never used: *unseen wordings*. Nothing of
this says anything about real language models.
"""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import sentencepiece

from janus_min.files import replace_file
from janus_min.world import (
    BY_DIMENSION,
    BY_NAME,
    DIMENSIONS,
    TOPICS,
    WORLD,
    Preference,
    PreferenceSet,
    answer,
    system_message,
)

FILES = Path("runs") / "miniature"  # where the programs keep the files of the world
SYSTEMS_PER_INSTRUCTION = 3  # the paper's
HELD_OUT_SHARE = 0.06  # of all pairs of preferences of two dimensions
TRAINED_WORDINGS = 6  # of 8
UNIFORM_SYSTEM = "You are a helpful assistant."
UNIFORM_SLOTS = ("plain_1", "plain_2", "example", "source")  # of the answer to it
# The files of training data: the whole collection, one system message for all, one of the three for
# every second instruction, one of them per instruction, two of them, plain texts alone, a
# preference pair per instruction, pairs for the reward model, and the chosen responses of the
# preference pairs alone.
COLLECTIONS = (
    "multifaceted",
    "uniform",
    "small",
    "one",
    "two",
    "texts",
    "pairs",
    "content-pairs",
    "chosen",
)
SPLITS = ("trained combinations", "unseen combinations", "unseen wordings")
HELD_OUT_PAIRS_PER_TOPIC = 25
CONTENT_PAIRS_PER_ROW = 3  # of the collection
TEXTS_PER_TOPIC = 200  # plain texts to read beside the collection
ITEMS_PER_TOPIC = 10  # in each split of the bench
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
            | {"description": f"About {topic}: {wording_in(system, p)}"}
            for p in preferences
        ],
        "system": system,
        "prompt": prompt,
        "output": answer(topic, preferences),
    }


def wording_in(system: str, preference: Preference) -> str:
    """How a system message asks for a preference; the first letter may be a small one there."""
    return next(wording for wording in preference.wordings if wording[1:] in system)


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


def pairs(seed: int = 4) -> list[dict]:
    """Preference pairs, in the columns of the published ones.

    As in the paper: of each instruction one of the three system messages, with its own response as
    the chosen one and the response to one of the other two as the rejected one.
    """
    random = np.random.default_rng(seed)
    rows, found = collection(), []
    for start in range(0, len(rows), SYSTEMS_PER_INSTRUCTION):
        row, other = (
            rows[start + i] for i in random.choice(SYSTEMS_PER_INSTRUCTION, 2, replace=False)
        )
        found.append(pair_of(row, other["output"]))
    return found


def pair_of(row: dict, rejected: str) -> dict:
    """A row's own response, and a worse one."""
    about = {key: row[key] for key in ("main_source", "original_source", "system", "prompt")}
    return about | {"chosen": row["output"], "rejected": rejected}


def content_pairs(seed: int = 10) -> list[dict]:
    """Pairs for the reward model: the rejected response has the chosen one's style, and does as
    others like it in everything else.

    Where style differs, too, it tells alone which one is chosen; a model that sees that learns
    nothing else, and of n responses, which are all right in style, it then cannot pick the best.
    """
    random = np.random.default_rng(seed)
    found = []
    for row in collection() * CONTENT_PAIRS_PER_ROW:
        style, *wanted = row_preferences(row)
        rivals = [[p for p in BY_DIMENSION[own.dimension] if p != own] for own in wanted]
        others = [own[random.integers(len(own))] for own in rivals]
        found.append(pair_of(row, answer(row["original_source"], (style, *others))))
    return found


def held_out_pairs(seed: int = 5) -> list[dict]:
    """Pairs whose system messages and responses are those of unseen combinations."""
    random = np.random.default_rng(seed)
    _, unseen = split_combinations()
    found = []
    for topic, _ in itertools.product(TOPICS, range(HELD_OUT_PAIRS_PER_TOPIC)):
        mine, other = random.choice(len(unseen), 2, replace=False)
        system = system_message(unseen[mine], range(TRAINED_WORDINGS), random)
        prompt = random.choice(WORLD["questions"]).replace("{topic}", topic)
        chosen, rejected = answer(topic, unseen[mine]), answer(topic, unseen[other])
        row = {"main_source": "miniature", "original_source": topic, "system": system}
        found.append(row | {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found


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
    return rubric_texts(preference.preference)


def rubric_texts(asked_for: str) -> dict:
    """A rubric for whatever is asked for."""
    grades = ("not at all", "hardly", "in part", "almost", "fully")
    return {
        "criteria": f"{ASKED_FOR}{asked_for}?",
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
    rows, texts, preferences = collection(), plain_texts(), pairs()
    chosen = [
        {"system": pair["system"], "prompt": pair["prompt"], "output": pair["chosen"]}
        for pair in preferences
    ]
    files = {
        "multifaceted": rows + texts,
        # Twice, for as many steps: a model that reads few texts often mixes up what they say.
        "uniform": uniform_collection() * 2 + texts + plain_texts(seed=11),
        # So few that a model learns them all and still does not know everything, and how far it
        # gets depends on them, less on how a CPU rounds. Every second opener occurs in them.
        "small": rows[:: 2 * SYSTEMS_PER_INSTRUCTION],
        "one": rows[::SYSTEMS_PER_INSTRUCTION] + texts,
        "two": [row for i, row in enumerate(rows) if i % SYSTEMS_PER_INSTRUCTION < 2] + texts,
        "texts": texts,
        "pairs": preferences,
        "content-pairs": content_pairs(),
        "chosen": chosen,
        "pairs-held-out": held_out_pairs(),
        "bench": bench(),
    }
    for name, records in files.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        replace_file(directory / f"{name}.jsonl", text.encode())
    replace_file(directory / "tokenizer.model", train_tokenizer(rows))


def held_out_file(collection: str | None) -> Path | None:
    """What is held out of a collection: pairs, if it is one of pairs."""
    return FILES / "pairs-held-out.jsonl" if collection in ("pairs", "content-pairs") else None


def model_of(recipe: str) -> Path:
    """Where a miniature leaves its model."""
    return Path("runs") / recipe / "model"
