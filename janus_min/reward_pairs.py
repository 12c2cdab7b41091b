"""Pairs of responses that a reward model is tested on: files of them, and their ids.

    RewardBench     prompt (text, or messages), chosen, rejected, subset, id      (arXiv 2403.13787)
    pairs           as in training: system, prompt, chosen, rejected, …  (`formats.py`)
    domains         query, responses: {"academy": …, "business": …}               (arXiv 2309.03126)

Of domains, each response is the chosen one of as many pairs as there are others; the subset is its
domain. Nothing but a system message says which domain is wanted. The published file has none, so
the prompt has none, unless the record has a `system`: each pair is there in both orders, and at
most half of them can be right.

    Note: RewardBench's prior sets have conversations of several turns, too. They are refused, as no
    recipe trains on them.
"""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min.bench import read_records
from janus_min.chat import encode_prompt_texts, encode_responses, prompt_text
from janus_min.errors import UserError
from janus_min.formats import pair_row, text_field
from janus_min.row import Example, parts
from janus_min.tokenizer import EOS, Tokenizer

Key = tuple[str, str]  # a prompt and a response


class Pair(NamedTuple):
    """Two responses to one prompt."""

    id: str
    subset: str
    prompt: str  # all that stands between BOS and the response
    chosen: str
    rejected: str
    where: str  # file and line, or entry

    @property
    def keys(self) -> tuple[Key, Key]:
        """What stands for the chosen and the rejected response."""
        return (self.prompt, self.chosen), (self.prompt, self.rejected)


class Batch(NamedTuple):
    """The different responses of all pairs, each of them once."""

    examples: list[Example]  # each a prompt and as many of its responses as a row has room for
    keys: list[list[Key]]  # which responses these are
    cut: set[Key]  # those that lost their end


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file, in its order. Without a `subset` they are of one that has the file's
    name, without an `id` they have their number.

    Raises UserError that names the entry, the keys found and those needed.
    """
    pairs: list[Pair] = []
    for where, number, record in read_records(path):
        key = record.get("id", number)
        if type(key) not in (str, int):
            raise UserError(f"{where}: 'id' must be text or an integer, found {type(key).__name__}")
        if "query" in record and "responses" in record:
            pairs += _domains(record, str(key), where)
            continue
        texts = pair_row(_with_prompt(record), where)
        if isinstance(texts, str):
            raise UserError(f"{where}: {texts}")
        subset = text_field(record, ("subset",), where, optional=True) or path.stem
        pairs.append(Pair(str(key), subset, texts.prompt, *texts.responses, where))
    if not pairs:
        raise UserError(f"{path} has no pair")
    return pairs


def _domains(record: dict, key: str, where: str) -> list[Pair]:
    """Each domain's response before each of the others."""
    responses, system = record["responses"], text_field(record, ("system",), where, optional=True)
    if not isinstance(responses, dict) or len(responses) < 2:
        raise UserError(f"{where}: 'responses' must be an object of two domains or more")
    texts = {d: text_field(responses, (d,), f"{where}: 'responses'") for d in responses}
    prompt = prompt_text(system, text_field(record, ("query",), where))
    return [
        Pair(f"{key}: {domain}, {other}", domain, prompt, texts[domain], texts[other], where)
        for domain in texts
        for other in texts
        if other != domain
    ]


def _with_prompt(record: dict) -> dict:
    """The record; a prompt of messages stands before both responses instead."""
    prompt = record.get("prompt")
    if not isinstance(prompt, list):
        return record
    record = {key: value for key, value in record.items() if key != "prompt"}
    for key in ("chosen", "rejected"):
        if isinstance(record.get(key), str):
            record[key] = [*prompt, {"role": "assistant", "content": record[key]}]
    return record


def encode(
    pairs: list[Pair],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    row_tokens: int,
    window: int | None = None,
    legacy_space: bool = False,
) -> Batch:
    """All responses as ids, as in training (`data.py`): of prompt and response that have more than
    `max_tokens`, the response loses its end, and its last token becomes EOS. `window` is the
    model's sliding window, if it has one.

    Raises UserError for a prompt that leaves no room for a response: prompts are never cut.
    """
    answers: dict[str, dict[str, None]] = {}
    for pair in pairs:
        own = answers.setdefault(pair.prompt, {})
        own |= dict.fromkeys((pair.chosen, pair.rejected))
    space = " " if legacy_space else ""
    prompts = encode_prompt_texts(tokenizer, list(answers))
    texts = [text + space for own in answers.values() for text in own]
    responses = iter(encode_responses(tokenizer, texts))
    batch = Batch([], [], set())
    for (prompt, own), ids in zip(answers.items(), prompts, strict=True):
        room, cut = max_tokens - len(ids), []
        if room < 1:
            where = next(pair.where for pair in pairs if pair.prompt == prompt)
            raise UserError(
                f"{where}: the prompt has {len(ids):,} tokens, which leaves no room for a response "
                f"in {max_tokens:,}: raise --max-tokens"
            )
        for text, response in zip(own, responses):
            if len(response) > room:
                response = [*response[: room - 1], EOS]
                batch.cut.add((prompt, text))
            cut.append(np.array(response, np.int32))
        keys = iter([(prompt, text) for text in own])
        whole = Example(np.array(ids, np.int32), tuple(cut), source="")
        for example in parts(whole, row_tokens, window):
            batch.examples.append(example)
            batch.keys.append(list(islice(keys, len(example.responses))))
    return batch
