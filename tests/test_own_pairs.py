"""Preference pairs with a model's own responses, from `generate.py` to `train.py`."""

import pytest
import torch

import datagen
import generate
import train
from janus_min.checkpoint import save_model
from janus_min.mini_data import collection
from tests.conftest import tiny_policy
from tests.programs import Program
from tests.runs import rows_in, write_rows

ROW = {"main_source": "hub", "system": "Be brief.", "prompt": "Why?", "output": "Because."}
PAIRS = ("pairs", "--responses", "own.jsonl", "--out", "pairs.jsonl")


@pytest.fixture
def paired(monkeypatch, capsys, tmp_path) -> Program:
    """datagen.py in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Program(datagen.main, monkeypatch, capsys)


def test_the_models_response_is_rejected_for_the_collections(paired, tmp_path):
    records = [
        ROW | {"response": "Because of tea.", "stop": "eos", "line": 1, "sampling": {}},
        ROW | {"response": " Because.\n", "stop": "eos"},  # nothing to learn from
        ROW | {"response": "Because of", "stop": "length"},
        ROW | {"response": " ", "stop": "eos"},
        ROW | {"response": "", "stop": "context"},
        ROW | {"output": "", "response": "Because."},
        ROW | {"prompt": " ", "response": "Because of tea."},
        {"instruction": "How?", "output": "So.", "response": "Like this."},  # of any program
        {
            "prompt": "Who?",
            "system": None,
            "chosen": "We.",
            "rejected": "They.",
            "response": "You.",
        },
    ]
    write_rows(tmp_path / "own.jsonl", records)
    said = paired(*PAIRS)
    left_out = "1 the same as the chosen one, 1 cut short, 4 with an empty text"
    assert said == f"pairs.jsonl: 3 pairs (left out: {left_out})\n"
    first, second, third = rows_in(tmp_path / "pairs.jsonl")
    about = {"main_source": "hub", "system": "Be brief.", "prompt": "Why?"}
    assert first == about | {"chosen": "Because.", "rejected": "Because of tea."}
    assert second == {"system": "", "prompt": "How?", "chosen": "So.", "rejected": "Like this."}
    assert third == {"system": "", "prompt": "Who?", "chosen": "We.", "rejected": "You."}
    write_rows(tmp_path / "own.jsonl", records[:1])
    assert paired(*PAIRS) == "pairs.jsonl: 1 pair (left out: none)\n"


def test_from_a_collection_through_a_models_answers_to_dpo(
    paired, tmp_path, world, monkeypatch, capsys
):
    """The programs as the README calls them one after another."""
    policy = tiny_policy(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=2048)
    save_model(policy, tmp_path / "model", world, torch.float32)
    write_rows(tmp_path / "sft.jsonl", collection()[:4])
    flags = ("--model", "model", "--input", "sft.jsonl", "--output", "own.jsonl")
    Program(generate.main, monkeypatch, capsys)(*flags, "--max-tokens", 20)
    answers = rows_in(tmp_path / "own.jsonl")
    for answer in answers:  # as if the model knew when to end
        answer["stop"] = "eos"
    write_rows(tmp_path / "own.jsonl", answers)
    assert paired(*PAIRS) == "pairs.jsonl: 4 pairs (left out: none)\n"
    pairs = rows_in(tmp_path / "pairs.jsonl")
    assert [pair["chosen"] for pair in pairs] == [row["output"] for row in collection()[:4]]
    assert [pair["rejected"] for pair in pairs] == [answer["response"] for answer in answers]
    flags = ("janus-dpo-7b", "--model", "model", "--data", "pairs.jsonl", "--steps", 1)
    said = Program(train.main, monkeypatch, capsys)(*flags, "--out", "run")
    assert "4 pairs" in said and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_what_cannot_be_paired(paired, tmp_path):
    assert "--responses FILE.jsonl is needed" in paired.fails("pairs", "--out", "pairs.jsonl")
    assert "--out FILE.jsonl is needed" in paired.fails("pairs", "--responses", "own.jsonl")
    assert "own.jsonl not found" in paired.fails(*PAIRS)
    own = write_rows(tmp_path / "own.jsonl", [ROW])
    assert "own.jsonl:1: key 'response' is needed, found ['main_source'" in paired.fails(*PAIRS)
    write_rows(own, [{"prompt": "Why?", "response": "So."}])
    needed = "own.jsonl:1: key 'chosen' or 'chosen_response' or 'output' is needed"
    assert needed in paired.fails(*PAIRS)
    write_rows(own, [ROW | {"response": None}])
    assert "own.jsonl:1: 'response' must be text, found NoneType" in paired.fails(*PAIRS)
    own.write_text("not JSON\n")
    assert "own.jsonl:1: not JSON" in paired.fails(*PAIRS)
    write_rows(own, [ROW | {"response": "Because."}] * 2)
    assert paired.fails(*PAIRS) == (
        "error: own.jsonl: no pair can be made of it (2 the same as the chosen one)\n"
    )
    own.write_text("")
    assert "no pair can be made of it (it is empty)" in paired.fails(*PAIRS)
    over = ("pairs", "--responses", "own.jsonl", "--out", "own.jsonl")
    assert "--out own.jsonl would write over --responses" in paired.fails(*over)
    folder = ("pairs", "--responses", "own.jsonl", "--out", ".")
    assert "--out . is a folder; a file is needed" in paired.fails(*folder)
    nowhere = ("pairs", "--responses", "own.jsonl", "--out", "no/pairs.jsonl")
    assert "there is no folder no" in paired.fails(*nowhere)
    assert not (tmp_path / "pairs.jsonl").exists()
