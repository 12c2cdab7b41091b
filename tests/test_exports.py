"""The files of a finished collection: their columns, their pairs, and that training reads them."""

import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from janus_min import exports
from janus_min.data import load_examples
from janus_min.exports import FILES, TEST_SHARE, export
from janus_min.formats import pair_row, reward_row, sft_row
from janus_min.mini_data import collection
from janus_min.tokenizer import Tokenizer
from tests.runs import rows_in

SFT = ["main_source", "original_source", "preference_set", "system", "prompt", "output"]
COLUMNS = {
    "sft": SFT,
    "sft-small": SFT,
    "dpo": ["main_source", "original_source", "system", "prompt", "chosen", "rejected"],
    "orpo": ["main_source", "original_source", "system", "prompt", "chosen", "rejected"],
    "rm": ["main_source", "original_source", "input", "chosen", "rejected"],
    "rm-test": ["main_source", "original_source", "input", "chosen", "rejected"],
}
MINIATURE = [
    {"id": n // 3, "set": n % 3, **row} for n, row in enumerate(collection())
]  # 960 instructions with three responses each


def group(number: int, *outputs: str) -> list[dict]:
    """The records of an instruction: a response for each of its system messages."""
    common = {"id": number, "main_source": "a", "original_source": "b", "prompt": f"Ask {number}."}
    return [
        common
        | {"set": n, "preference_set": [], "system": f"You are {number}-{n}.", "output": text}
        for n, text in enumerate(outputs)
    ]


def exported(folder: Path, records: list[dict], share: float = TEST_SHARE, seed: int = 0):
    """What `export` says of these records, and the rows of its files."""
    responses = folder / "responses.jsonl"
    responses.write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = export(responses, folder, share, seed)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["responses.jsonl", *(f"{name}.jsonl" for name in FILES)]
    )
    return counts, {name: rows_in(folder / f"{name}.jsonl") for name in FILES}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> tuple[Path, Counter, dict[str, list[dict]]]:
    folder = tmp_path_factory.mktemp("exports")
    return folder, *exported(folder, MINIATURE, share=0.1)


def test_rows_have_the_published_columns(miniature):
    _, counts, files = miniature
    assert tuple(files) == FILES == tuple(COLUMNS)
    for name, found in files.items():
        assert {tuple(row) for row in found} == {tuple(COLUMNS[name])}, name
        assert counts[name] == len(found)
    assert files["sft"] == collection()
    for row in files["orpo"]:
        for key in ("chosen", "rejected"):
            assert [turn["role"] for turn in row[key]] == ["user", "assistant"]
            assert [list(turn) for turn in row[key]] == [["content", "role"]] * 2
            assert row[key][0]["content"] == row["prompt"]


def test_chosen_is_aligned_and_rejected_answers_another_system_message(miniature):
    """Of the same instruction; each of the six ways to choose is as likely as any other."""
    places = Counter()
    for own, row in zip(groupby(MINIATURE, lambda record: record["id"]), miniature[2]["dpo"]):
        records = list(own[1])
        systems, outputs = ([r[key] for r in records] for key in ("system", "output"))
        assert row["prompt"] == records[0]["prompt"]
        place = systems.index(row["system"])
        assert row["chosen"] == outputs[place] != row["rejected"]
        places[place, outputs.index(row["rejected"])] += 1
    assert places.total() == 960
    assert len(places) == 6 and min(places.values()) > 115 and max(places.values()) < 205


def test_all_three_methods_have_the_same_pairs(miniature):
    files = miniature[2]
    pairs = {f"{row['system']}\n{row['prompt']}": row for row in files["dpo"]}
    assert len(pairs) == 960
    for row in files["rm"] + files["rm-test"]:
        pair = pairs.pop(row["input"])
        assert (row["chosen"], row["rejected"]) == (pair["chosen"], pair["rejected"])
        assert row["original_source"] == pair["original_source"]
    assert not pairs
    for pair, row in zip(files["dpo"], files["orpo"], strict=True):
        texts = {key: row[key][1]["content"] for key in ("chosen", "rejected")}
        assert row | texts == pair


def test_training_reads_every_file_as_the_same_prompts_and_responses(miniature, world):
    folder, _, files = miniature
    tokenizer = Tokenizer(world)

    def tokens(name, parse):
        path = folder / f"{name}.jsonl"
        examples, dropped = load_examples(path, tokenizer, parse, max_tokens=1024)
        assert len(examples) == len(files[name]) and not dropped, name
        return [(e.prompt.tobytes(), *(r.tobytes() for r in e.responses)) for e in examples]

    sft = tokens("sft", sft_row)
    assert set(tokens("sft-small", sft_row)) < set(sft)
    dpo = tokens("dpo", pair_row)
    assert tokens("orpo", pair_row) == dpo
    assert sorted(tokens("rm", reward_row) + tokens("rm-test", reward_row)) == sorted(dpo)
    for row in files["orpo"] + files["rm"]:
        assert reward_row(row, "") == pair_row(row, "")
    assert {(prompt, chosen) for prompt, chosen, _ in dpo} < set(sft)


def test_files_are_a_function_of_responses_and_seed(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    records = MINIATURE[:300]
    first = exported(tmp_path / "a", records, 0.1)
    assert exported(tmp_path / "b", records, 0.1) == first
    _, other = exported(tmp_path / "c", records, 0.1, seed=1)
    assert other["sft"] == first[1]["sft"]
    for name in FILES[1:]:
        assert other[name] != first[1][name], name


def test_instructions_are_drawn_for_each_by_itself(tmp_path):
    """What is missing elsewhere moves no other instruction's pair."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    _, files = exported(whole, MINIATURE[:300])
    _, fewer = exported(part, MINIATURE[60:90] + MINIATURE[91:300])
    for name in ("sft-small", "dpo", "orpo"):
        assert fewer[name][:10] == files[name][20:30]
        assert fewer[name][11:] == files[name][31:]


@pytest.mark.parametrize("outputs", ["ab", "abc", "aab", "aba", "baa"])
def test_a_pair_needs_two_different_responses(outputs):
    """Responses are equal here and there: of all that differ, any may be in the pair."""
    found = Counter()
    for seed in range(200):
        chosen, rejected = exports.pair(group(3, *outputs), seed)
        assert chosen["output"] != rejected["output"] and chosen["set"] != rejected["set"]
        found[chosen["set"], rejected["set"]] += 1
    places = range(len(outputs))
    wanted = {(i, j) for i in places for j in places if outputs[i] != outputs[j]}
    assert found.keys() == wanted and min(found.values()) > 10


def test_a_pair_needs_two_different_system_messages():
    """Else the rejected response would be aligned as well."""
    for seed in range(50):
        records = group(3, "a", "b", "c")
        records[1]["system"] = records[0]["system"]
        chosen, rejected = exports.pair(records, seed)
        assert chosen["system"] != rejected["system"]
    assert exports.pair(records[:2], 0) == "system messages or responses are the same"


def test_instructions_without_a_pair_are_counted_and_stay_in_the_collection(tmp_path):
    records = group(0, "a") + group(1, "a", "a") + group(2, "a", "b") + group(3, "a", "a", "a")
    counts, files = exported(tmp_path, records + group(4, *"abc"), share=0)
    assert counts == {
        "no pair: only one response": 1,
        "no pair: system messages or responses are the same": 2,
        "sft": 11,
        "sft-small": 5,
        "dpo": 2,
        "orpo": 2,
        "rm": 2,
        "rm-test": 0,
    }
    assert [row["prompt"] for row in files["sft-small"]] == [f"Ask {n}." for n in range(5)]
    for name in ("dpo", "orpo"):
        assert [row["prompt"] for row in files[name]] == ["Ask 2.", "Ask 4."]
    assert files["rm-test"] == [] and len(files["rm"]) == 2


@pytest.mark.parametrize(
    ("share", "pairs", "kept_out"),
    [(TEST_SHARE, 300, 1), (0.1, 300, 30), (0.004, 99, 1), (0.0, 99, 0), (0.9, 1, 1), (0.5, 3, 2)],
)
def test_the_pairs_of_the_test_are_kept_out_of_training(tmp_path, share, pairs, kept_out):
    _, files = exported(tmp_path, MINIATURE[: 3 * pairs], share)
    assert (len(files["rm"]), len(files["rm-test"])) == (pairs - kept_out, kept_out)
    inputs = {name: {row["input"] for row in files[name]} for name in ("rm", "rm-test")}
    assert not inputs["rm"] & inputs["rm-test"]
    assert len(inputs["rm"] | inputs["rm-test"]) == pairs


def test_the_test_is_a_share_of_the_pairs_not_of_the_instructions(tmp_path):
    records = [record for n in range(40) for record in group(n, "a", "b" if n % 4 else "a")]
    _, files = exported(tmp_path, records, share=0.5)
    assert (len(files["rm"]), len(files["rm-test"])) == (15, 15)


def test_the_papers_pairs_give_the_papers_test():
    """315 of about 64,900."""
    ids = np.random.default_rng(0).permutation(70_000)[:64_900].tolist()
    kept_out = exports.test_instructions(ids, TEST_SHARE, 0)
    assert len(kept_out) == 315 and kept_out < set(ids)
    assert kept_out == exports.test_instructions(ids, TEST_SHARE, 0)
    assert kept_out != exports.test_instructions(ids, TEST_SHARE, 1)


def test_the_small_collection_takes_one_of_three_at_random(miniature):
    files, places = miniature[2], Counter()
    for number, row in enumerate(files["sft-small"]):
        places[files["sft"][3 * number : 3 * number + 3].index(row)] += 1
    assert places.total() == 960 and len(places) == 3
    assert min(places.values()) > 270 and max(places.values()) < 370
