"""Files of text -> examples: encoded once, too long or empty ones counted, sources mixed."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from janus_min.chat import encode_prompt_texts, encode_responses
from janus_min.errors import UserError
from janus_min.formats import Parse, Texts, read_jsonl
from janus_min.row import Example
from janus_min.tokenizer import EOS, Tokenizer

ENCODING_BATCH = 4096  # rows that exist as text and as Python integers at a time


def load_examples(
    path: Path | str,
    tokenizer: Tokenizer,
    parse: Parse,
    *,
    max_tokens: int,
    cut: bool = False,
    keep_eos: bool = False,
    legacy_space: bool = False,
) -> tuple[list[Example], Counter]:
    """Reads the rows of a file into examples: prompts with responses of `max_tokens` at most.

    An example with a longer response is dropped, or with `cut` loses the response's end; a prompt
    is never cut, so that both responses of a pair always answer the same one. A cut response has
    no EOS, unless `keep_eos` puts it in the place of the last token. `legacy_space` adds the space
    that the official reward model has before EOS.

    Returns the examples, and how many rows were dropped for each reason, with "cut" for those that
    were cut. Raises UserError for a broken row, or if no row is usable.
    """
    fate: Counter = Counter()
    examples: list[Example] = []
    rows = _usable_rows(path, parse, fate)
    while batch := list(islice(rows, ENCODING_BATCH)):
        for example in _encode(tokenizer, batch, " " if legacy_space else ""):
            room = max_tokens - len(example.prompt)
            if any(len(response) > room for response in example.responses):
                if not cut or room < 1:
                    fate[f"longer than {max_tokens} tokens"] += 1
                    continue
                fate["cut"] += 1
                example = _cut(example, room, keep_eos)
            if len(example.responses) > 1 and np.array_equal(*example.responses):
                fate["chosen equals rejected"] += 1
                continue
            examples.append(example)
    if not examples:
        raise UserError(f"{path}: no usable example left ({reasons(fate) or 'the file is empty'})")
    return examples, fate


def reasons(fate: Counter) -> str:
    """Why rows were dropped, as text."""
    return ", ".join(f"{count:,} {reason}" for reason, count in fate.items() if reason != "cut")


def _usable_rows(path: Path | str, parse: Parse, fate: Counter) -> Iterator[tuple[str, Texts]]:
    """Yields (file and line, texts) of each row, and counts the others."""
    for line, record in read_jsonl(path):
        source = f"{path}:{line}"
        texts = parse(record, source)
        if isinstance(texts, str):
            fate[texts] += 1
        elif not all(response.strip() for response in texts.responses):
            fate["empty response"] += 1
        else:
            yield source, texts


def _encode(tokenizer: Tokenizer, rows: list[tuple[str, Texts]], suffix: str) -> Iterator[Example]:
    prompts = encode_prompt_texts(tokenizer, [texts.prompt for _, texts in rows])
    responses = iter(
        encode_responses(tokenizer, [r + suffix for _, texts in rows for r in texts.responses])
    )
    for (source, texts), prompt in zip(rows, prompts, strict=True):
        own = (np.array(ids, np.int32) for ids in islice(responses, len(texts.responses)))
        yield Example(np.array(prompt, np.int32), tuple(own), source)


def _cut(example: Example, room: int, keep_eos: bool) -> Example:
    """The example with responses of at most `room` tokens."""
    responses = []
    for response in example.responses:
        if len(response) > room:
            response = response[:room].copy()
            if keep_eos:
                response[-1] = EOS
        responses.append(response)
    return Example(example.prompt, tuple(responses), example.source)
