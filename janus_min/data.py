"""JSONL -> examples -> plan -> rows.

`load_examples` reads and encodes a file, `make_plan` decides which examples stand in which row of
which optimizer step, `build_row` lays the examples of one row end to end. The plan is made before
training starts and is a pure function of (lengths, recipe, seed), so the number of steps is known,
a resumed run continues it exactly, and no split of the work can change what a step contains.

A document is prompt + response. Its tokens predict each other by one shift, which happens in
`build_row` and nowhere else: inputs and targets leave aligned.
"""

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from janus_min.chat import encode_prompts, encode_responses
from janus_min.errors import UserError
from janus_min.row import Row
from janus_min.tokenizer import BOS, Tokenizer

# Examples that are packed together: enough for full rows, few enough to stay shuffled.
PACKING_WINDOW = 4096
ENCODING_BATCH = 4096  # rows that exist as text and as Python integers at a time
INSTRUCTION_KEYS = ("prompt", "instruction")  # the hub's column, and its older name

Plan = list[list[list[int]]]  # steps -> rows -> indices of examples


@dataclass(frozen=True)
class Example:
    """One document, encoded: a prompt that starts with BOS and a response that ends with EOS."""

    prompt: np.ndarray  # (P,) int32
    response: np.ndarray  # (R,) int32
    line: int  # where it stands in its file, from 1

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict]]:
    """Yields (line number, object) of a JSONL file. Raises UserError that names file and line."""
    path = Path(path)
    if path.suffix == ".parquet":
        raise UserError(
            f'{path}: Parquet is not read; convert it once: python -c "import pandas; '
            f"pandas.read_parquet('{path}').to_json('{path.with_suffix('.jsonl')}', "
            "orient='records', lines=True, force_ascii=False)\""
        )
    if not path.is_file():
        raise UserError(f"{path} not found: a JSONL file is needed, one JSON object per line")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8").rstrip())
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})"
                ) from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}:{number}: a JSON object is needed, found {type(record).__name__}"
                )
            yield number, record


def text_field(record: dict, keys: tuple[str, ...], where: str, optional: bool = False) -> str:
    """The first of `keys` that the record has, as text; "" for an optional one absent or null."""
    key = next((key for key in keys if key in record), None)
    if optional and (key is None or record[key] is None):
        return ""
    if key is None:
        wanted = " or ".join(map(repr, keys))
        raise UserError(f"{where}: key {wanted} is needed, found {sorted(record)}")
    if not isinstance(record[key], str):
        raise UserError(f"{where}: {key!r} must be text, found {type(record[key]).__name__}")
    return unicode_text(record[key], f"{where}: {key!r}")


def unicode_text(text: str, where: str) -> str:
    """The text itself, unless half of a surrogate pair in it has no encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} holds a lone surrogate, which is no Unicode text") from None
    return text


def load_examples(
    path: Path | str, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Example], Counter]:
    """Reads (system, prompt, output) rows into examples of at most `max_tokens` tokens.

    A row that has `text` instead is plain text, all of it trained: its prompt is BOS alone.
    Returns the examples and how many rows were dropped for each reason. Raises UserError for a
    broken row, or if no row is usable.
    """
    dropped: Counter = Counter()
    examples: list[Example] = []
    rows = _usable_rows(path, dropped)
    while batch := list(islice(rows, ENCODING_BATCH)):
        for example in _encode(tokenizer, batch):
            if len(example) > max_tokens:
                dropped[f"longer than {max_tokens} tokens"] += 1
            else:
                examples.append(example)
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(f"{path}: no usable example left ({reasons or 'the file is empty'})")
    return examples, dropped


Chat = tuple[str, str]  # system message and instruction


def _usable_rows(path: Path | str, dropped: Counter) -> Iterator[tuple[int, Chat | None, str]]:
    """Yields (line, chat, output) of each row, chat None for plain text; counts the others."""
    for number, record in read_jsonl(path):
        where = f"{path}:{number}"
        if "text" in record and not record.keys() & {"output", *INSTRUCTION_KEYS}:
            chat, output = None, text_field(record, ("text",), where)
        else:
            system = text_field(record, ("system",), where, optional=True)
            chat = (system, text_field(record, INSTRUCTION_KEYS, where))
            output = text_field(record, ("output",), where)
        if chat is not None and not chat[1].strip():
            dropped["empty prompt"] += 1
        elif not output.strip():
            dropped["empty response"] += 1
        else:
            yield number, chat, output


def _encode(tokenizer: Tokenizer, rows: list[tuple[int, Chat | None, str]]) -> Iterator[Example]:
    prompts = iter(encode_prompts(tokenizer, [chat for _, chat, _ in rows if chat is not None]))
    responses = encode_responses(tokenizer, [output for _, _, output in rows])
    for (line, chat, _), response in zip(rows, responses, strict=True):
        prompt = [BOS] if chat is None else next(prompts)
        yield Example(np.array(prompt, np.int32), np.array(response, np.int32), line)


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Packs whole items into rows: longest first, each into the fullest row with room for it.

    Returns the indices of the items in each row. No item is cut and none is left out.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[index] <= capacity, f"item {index} has {lengths[index]} of {capacity} tokens"
        fit = bisect_left(room, (lengths[index], -1))
        if fit == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(fit)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


def make_plan(
    lengths: list[int], *, row_tokens: int, rows_per_step: int, epochs: int, seed: int
) -> Plan:
    """Every optimizer step of a run. Each epoch holds each example once, in an order of its own."""
    plan: Plan = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        rows = []
        for start in range(0, len(order), PACKING_WINDOW):
            window = order[start : start + PACKING_WINDOW].tolist()
            packed = best_fit([lengths[i] for i in window], row_tokens)
            rows += [[window[i] for i in row] for row in packed]
        rows = [rows[i] for i in random.permutation(len(rows))]
        plan += [
            rows[start : start + rows_per_step] for start in range(0, len(rows), rows_per_step)
        ]
    return plan


def build_row(examples: list[Example], window: int | None, pad_to: int | None = None) -> Row:
    """Lays examples end to end, under a sliding window of `window` tokens unless that is None.

    In a window of W tokens query q sees key k only if q − k < W. With `pad_to`, a last document
    without any target fills the row to that many tokens (static shapes for a GPU).
    """
    inputs, targets, positions, key_end, response, ends = [], [], [], [], [], []
    start = 0
    for index, example in enumerate(examples):
        P, L = len(example.prompt), len(example)
        ids = np.concatenate([example.prompt, example.response])
        inputs.append(ids)
        # The shift: position i is scored on token i + 1, if that token belongs to the response.
        targets.append(np.concatenate([np.full(P - 1, -1), example.response, [-1]]))
        positions.append(np.arange(L))
        key_end.append(np.full(L, start + L))
        response.append(np.concatenate([np.full(P - 1, -1), np.full(L - P + 1, index)]))
        start += L
        ends.append(start - 1)
    if pad_to is not None and pad_to > start:
        tail = pad_to - start
        inputs.append(np.zeros(tail, np.int32))
        targets.append(np.full(tail, -1))
        positions.append(np.arange(tail))
        key_end.append(np.full(tail, pad_to))
        response.append(np.full(tail, -1))
    vectors = [
        np.concatenate(v).astype(np.int64) for v in (inputs, targets, positions, key_end, response)
    ]
    if window is not None:
        vectors[3] = np.minimum(vectors[3], np.arange(len(vectors[3])) + window)
    return Row(*map(torch.from_numpy, vectors), torch.tensor(ends))
