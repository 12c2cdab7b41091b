"""Files to examples, examples to plan, plan to rows."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from janus_min.chat import encode_prompts
from janus_min.data import best_fit, build_row, load_examples, make_plan
from janus_min.errors import UserError
from janus_min.show import show_row
from tests.conftest import random_examples


def write(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    parts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


GOOD = {"system": "Be brief.", "prompt": "What is rain?", "output": "Water."}


def test_examples_are_prompt_and_response(tmp_path, mistral_tokenizer):
    path = write(tmp_path, GOOD, {"instruction": "What is rain?", "output": "Water.", "more": 1})
    examples, dropped = load_examples(path, mistral_tokenizer, 100)
    prompts = encode_prompts(
        mistral_tokenizer, [("Be brief.", "What is rain?"), (None, "What is rain?")]
    )
    assert [example.prompt.tolist() for example in examples] == prompts
    for example in examples:
        assert mistral_tokenizer.decode(example.response[:-1]) == "Water."
        assert example.response[-1] == 2 and example.response.tolist().count(2) == 1
    assert not dropped and [example.line for example in examples] == [1, 2]


def test_the_published_columns_are_read_as_they_are(tmp_path, mistral_tokenizer):
    row = {"main_source": "a", "original_source": "b", "preference_set": [{"dimension": "style"}]}
    examples, _ = load_examples(write(tmp_path, row | GOOD), mistral_tokenizer, 100)
    assert len(examples) == 1


def test_an_empty_system_message_is_no_system_message(tmp_path, mistral_tokenizer):
    path = write(tmp_path, GOOD | {"system": ""}, GOOD | {"system": None}, GOOD)
    first, second, third = load_examples(path, mistral_tokenizer, 100)[0]
    assert first.prompt.tolist() == second.prompt.tolist() != third.prompt.tolist()


def test_plain_text_is_trained_whole(tmp_path, mistral_tokenizer):
    [example], _ = load_examples(write(tmp_path, {"text": "Rain is water."}), mistral_tokenizer, 99)
    assert example.prompt.tolist() == [1]
    assert mistral_tokenizer.decode(example.response[:-1]) == "Rain is water."
    assert (build_row([example], None).targets >= 0).sum() == len(example.response)


def test_unusable_rows_are_dropped_and_counted(tmp_path, mistral_tokenizer):
    long = GOOD | {"prompt": "word " * 200}
    path = write(tmp_path, GOOD, GOOD | {"output": " \n"}, GOOD | {"prompt": ""}, long, long)
    examples, dropped = load_examples(path, mistral_tokenizer, 100)
    assert len(examples) == 1
    assert dropped == {"empty response": 1, "empty prompt": 1, "longer than 100 tokens": 2}


def test_an_example_may_fill_the_row_exactly_but_no_more(tmp_path, mistral_tokenizer):
    path = write(tmp_path, GOOD)
    [example], _ = load_examples(path, mistral_tokenizer, 100)
    assert len(load_examples(path, mistral_tokenizer, len(example))[0]) == 1
    with pytest.raises(UserError, match=r"no usable example left \(1 longer than \d+ tokens\)"):
        load_examples(path, mistral_tokenizer, len(example) - 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', r"data.jsonl:2: not JSON \(.* column 15"),
        (b"[" * 100_000, "data.jsonl:2: not JSON"),
        (b"1" * 10_000, "data.jsonl:2: not JSON"),
        (b'["a"]', "data.jsonl:2: a JSON object is needed, found list"),
        (b'{"prompt": "\xff"}', "data.jsonl:2: not UTF-8"),
        ({"prompt": "a"}, r"data.jsonl:2: key 'output' is needed, found \['prompt'\]"),
        ({"output": "a"}, r"data.jsonl:2: key 'prompt' or 'instruction' is needed"),
        (GOOD | {"output": 3}, "data.jsonl:2: 'output' must be text, found int"),
        (GOOD | {"prompt": None}, "data.jsonl:2: 'prompt' must be text, found NoneType"),
        (GOOD | {"system": "\ud800"}, "data.jsonl:2: 'system' holds a lone surrogate"),
    ],
)
def test_broken_rows_are_named_by_file_and_line(tmp_path, mistral_tokenizer, line, message):
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path, GOOD, line), mistral_tokenizer, 100)


def test_missing_empty_and_parquet_files(tmp_path, mistral_tokenizer):
    with pytest.raises(UserError, match=r"nothing.jsonl not found: a JSONL file is needed"):
        load_examples(tmp_path / "nothing.jsonl", mistral_tokenizer, 100)
    with pytest.raises(UserError, match=r"no usable example left \(the file is empty\)"):
        load_examples(write(tmp_path, b""), mistral_tokenizer, 100)
    with pytest.raises(UserError, match=r"Parquet is not read; convert it once: .*data.jsonl"):
        load_examples(tmp_path / "data.parquet", mistral_tokenizer, 100)


# Packing and the plan


def test_best_fit_keeps_every_item_whole_and_once():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, 500).tolist()
    rows = best_fit(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    assert len(rows) <= 1.02 * sum(lengths) / 100  # nearly no room is wasted


def test_best_fit_takes_the_fullest_row_that_fits():
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([7, 5, 3, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([5], 5) == [[0]]


def plan_of(lengths, **changes):
    settings = dict(row_tokens=64, rows_per_step=3, epochs=2, seed=1) | changes
    return make_plan(lengths, **settings)


def test_plan_holds_every_example_once_an_epoch():
    lengths = [len(example) for example in random_examples(100)]
    plan = plan_of(lengths)
    used = [i for step in plan for row in step for i in row]
    assert Counter(used) == {i: 2 for i in range(100)}
    assert sorted(used[:100]) == list(range(100))  # the first epoch ends where the second begins
    assert used[:100] != used[100:]
    assert all(1 <= len(step) <= 3 for step in plan)
    assert all(sum(lengths[i] for i in row) <= 64 for step in plan for row in step)


def test_plan_is_a_function_of_lengths_recipe_and_seed():
    lengths = [len(example) for example in random_examples(50)]
    assert plan_of(lengths) == plan_of(lengths)
    assert plan_of(lengths) != plan_of(lengths, seed=2)
    one_epoch = plan_of(lengths, epochs=1)
    assert plan_of(lengths)[: len(one_epoch)] == one_epoch


# Rows


def test_row_by_hand():
    first, second = random_examples(2, seed=4)
    first.prompt.resize(2, refcheck=False)
    first.response.resize(3, refcheck=False)
    second.prompt.resize(1, refcheck=False)
    second.response.resize(2, refcheck=False)
    first.prompt[:], first.response[:] = [1, 10], [11, 12, 2]
    second.prompt[:], second.response[:] = [1], [20, 2]
    row = build_row([first, second], window=None)
    assert row.inputs.tolist() == [1, 10, 11, 12, 2, 1, 20, 2]
    assert row.targets.tolist() == [-1, 11, 12, 2, -1, 20, 2, -1]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row.key_end.tolist() == [5, 5, 5, 5, 5, 8, 8, 8]
    assert row.response.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1]
    assert row.ends.tolist() == [4, 7]
    assert build_row([first, second], window=2).key_end.tolist() == [2, 3, 4, 5, 5, 7, 8, 8]


def test_row_invariants():
    examples = random_examples(20)
    row = build_row(examples, window=None)
    assert (row.targets >= 0).sum() == sum(len(example.response) for example in examples)
    scored = (row.targets >= 0).nonzero()[:, 0]
    assert torch.equal(row.targets[scored], row.inputs[scored + 1])
    assert torch.equal(row.inputs[row.ends], torch.full((20,), 2))
    assert (row.targets[row.ends] == -1).all()  # nothing predicts the next document
    assert torch.equal(row.response[row.ends], torch.arange(20))
    assert all(vector.dtype == torch.int64 for vector in row)


def test_a_row_moves_as_a_whole():
    row = build_row(random_examples(2), None).to("meta")
    assert all(vector.device.type == "meta" for vector in row)


def test_padding_is_a_last_document_without_targets():
    examples = random_examples(3)
    bare, full = build_row(examples, None), build_row(examples, None, pad_to=200)
    N = len(bare.inputs)
    for short, long in zip(bare[:5], full[:5], strict=True):
        assert len(long) == 200 and torch.equal(long[:N], short)
    assert (full.targets[N:] == -1).all() and (full.response[N:] == -1).all()
    assert (full.key_end[N:] == 200).all() and torch.equal(full.ends, bare.ends)


def test_show_row_marks_what_is_trained(tmp_path, mistral_tokenizer):
    lines = [GOOD, {"prompt": "Hi", "output": "Hello\nyou"}]
    examples, _ = load_examples(write(tmp_path, *lines), mistral_tokenizer, 100)
    text = show_row(build_row(examples, None), mistral_tokenizer, colour=False)
    assert "<s> [INST] Be brief.\nWhat is rain? [/INST]« Water.</s>»" in text
    assert "<s> [INST] Hi [/INST]« Hello\nyou</s>»" in text
    first, second = (len(example) for example in examples)
    assert f"── tokens 0 to {first - 1}, positions 0 to {first - 1}, seen by tokens up to" in text
    assert f"── tokens {first} to {first + second - 1}, positions 0 to {second - 1}" in text
    trained = sum(len(example.response) for example in examples)
    assert text.endswith(f"{first + second} tokens, {trained} of them trained")
    coloured = show_row(build_row(examples, None), mistral_tokenizer, colour=True)
    assert "\x1b[32m Water.</s>\x1b[0m" in coloured and "«" not in coloured
