"""Answers to the general benchmarks, turn by turn, by a model on this machine."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from janus_min.answers import Answer, Dialogue, answer_file
from janus_min.chat import encode_conversations
from janus_min.decoder import Decoder
from janus_min.engine import generate
from janus_min.errors import UserError
from janus_min.files import replace_file
from janus_min.prompt_files import make_request
from janus_min.sampling import Sampling
from janus_min.tokenizer import Tokenizer


def answer_dialogues(
    dialogues: list[Dialogue],
    system: str | None,
    temperature: Callable[[Dialogue], float] | None,
    model: Decoder,
    tokenizer: Tokenizer,
    sampling: Sampling,
    seed: int,
    slots: int,
) -> None:
    """Adds the answers to all turns to each dialogue. `temperature` gives that of a dialogue, in
    place of the one for all.
    """
    groups: dict[float, list[Dialogue]] = {}
    for dialogue in dialogues:
        own = temperature(dialogue) if temperature else sampling.temperature
        groups.setdefault(own, []).append(dialogue)
    for own, group in groups.items():
        settings = replace(sampling, temperature=own)
        for _ in group[0].question["turns"]:
            answer_turn(group, system, model, tokenizer, settings, seed, slots)


def answer_turn(
    dialogues: list[Dialogue],
    system: str | None,
    model: Decoder,
    tokenizer: Tokenizer,
    sampling: Sampling,
    seed: int,
    slots: int,
) -> None:
    """Adds the next answer to each dialogue: an empty one where the prompt fills the context."""
    encoded = encode_turn(dialogues, system, tokenizer)
    requests = [make_request(seed, ids, each.sample) for ids, each in zip(encoded, dialogues)]
    for dialogue, completion in zip(dialogues, generate(model, requests, sampling, slots)):
        text, tokens = tokenizer.decode(completion.ids), len(completion.ids)
        dialogue.answers.append(Answer(text, completion.stop, tokens))


def encode_turn(
    dialogues: list[Dialogue], system: str | None, tokenizer: Tokenizer
) -> list[list[int]]:
    """The ids of what comes before each dialogue's next answer."""
    conversations = []
    for dialogue in dialogues:
        texts = [answer.text for answer in dialogue.answers]
        turns = dialogue.question["turns"][: len(texts) + 1]
        conversations.append((system, turns, texts))
    return encode_conversations(tokenizer, conversations)


def require_room(
    path: Path, dialogues: list[Dialogue], encoded: list[list[int]], context: int
) -> None:
    """Raises UserError for a first turn in that file after which the context has no room."""
    for dialogue, ids in zip(dialogues, encoded, strict=True):
        if len(ids) >= context:
            raise UserError(
                f"{path}, question {dialogue.question['id']!r}: the prompt has {len(ids)} tokens, "
                f"the model's context is {context}: shorten it"
            )


def write_answers(output: Path, benchmark: str, name: str, dialogues: list[Dialogue]) -> None:
    """Writes the file that a benchmark's judge reads, and says how the answers ended."""
    replace_file(output, answer_file(benchmark, dialogues, name, time.time()))
    stops = [answer.stop for dialogue in dialogues for answer in dialogue.answers]
    cut, refused = stops.count("length"), stops.count("context")
    print(f"{len(stops)} answers in {output}")
    print(f"{cut} of {len(stops)} cut at --max-tokens or by the context")
    if refused:
        print(f"{refused} of {len(stops)} empty, as their prompts fill the context")
