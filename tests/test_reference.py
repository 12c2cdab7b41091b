"""The reference's log-probabilities: equal to the policy's at step 0, kept, reused, refused."""

import json
import math
import shutil

import numpy as np
import pytest

import train
from janus_min import chat, reference
from janus_min.checkpoint import load_model, save_model
from janus_min.losses import sequence_logps
from janus_min.mini_data import collection, train_tokenizer
from janus_min.model import Policy
from janus_min.parallel import ALONE
from janus_min.row import build_row
from tests.conftest import save_tiny, tiny_policy
from tests.runs import assert_same_run, metrics, rows_in, write_pairs


@pytest.fixture
def flags(tmp_path, world):
    start = save_tiny(tmp_path / "start", world)
    data = write_pairs(tmp_path / "data.jsonl")
    sizes = ("--row-tokens", 128, "--max-tokens", 64, "--pairs-per-step", 2, "--epochs", 1)
    return ("janus-dpo-7b", "--model", start, "--data", data, *sizes, "--learning-rate", 1e-2)


@pytest.fixture
def loaded(monkeypatch):
    """Counts how often a reference model is loaded."""
    calls = []
    sound = reference.load_model

    def counted(*arguments, **settings):
        calls.append(arguments)
        return sound(*arguments, **settings)

    monkeypatch.setattr(reference, "load_model", counted)
    return calls


def test_the_first_step_is_exactly_ln_2(program, flags, tmp_path):
    """The reference is computed by the same code on the same rows, before training."""
    program(*flags, "--out", "o")
    first = metrics(tmp_path / "o")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == first["rewards/chosen"] == 0
    assert first["grad_norm"] > 1e-3


def test_the_file_holds_each_pairs_log_probabilities(program, flags, tmp_path):
    program(*flags, "--out", "o")
    about, *found = rows_in(tmp_path / "o/reference/data.jsonl")
    assert set(about) >= {"weights of the reference", "data", "tokenizer", "template", "lengths"}
    assert sorted(entry["example"] for entry in found) == list(range(6))
    policy = load_model(Policy, tmp_path / "start", impl="torch")
    run = captured_run(program, flags)
    for entry in found:
        example = run.data.examples[entry["example"]]
        row = build_row([example], None)
        logps = sequence_logps(policy(row), row.response, 2).tolist()
        assert [entry["chosen"], entry["rejected"]] == pytest.approx(logps, rel=1e-5)
        assert entry["source"] == example.source


def captured_run(program, flags):
    """What train.py prepares for these arguments."""
    name, recipe, options = train.command_line([*map(str, flags), "--dry-run"])
    return train.prepare(name, recipe, options, ALONE)


def test_it_is_not_loaded_again_for_another_beta_seed_or_resume(program, flags, tmp_path, loaded):
    """Shuffled otherwise, and by another β, the numbers of each pair are the same ones."""
    program(*flags, "--out", "o", "--save-every", 1, "--steps", 2)
    program(*flags, "--out", "o", "--resume", "--steps", 2)
    assert len(loaded) == 1
    program(*flags, "--out", "o", "--resume")  # the third step's pairs are new
    assert len(loaded) == 2
    shared = ("--reference-logps", tmp_path / "o/reference")
    out = program(*flags, "--out", "p", "--beta", 0.5, "--seed", 1, *shared)
    assert len(loaded) == 2 and "reference: " in out
    assert not (tmp_path / "p/reference").exists()
    first = metrics(tmp_path / "p")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_the_reference_does_not_drift(program, flags, tmp_path):
    """It is not the model that is trained."""
    before = (tmp_path / "start/model.safetensors").read_bytes()
    program(*flags, "--out", "o")
    again = tmp_path / "again"
    program(*flags, "--out", "p", "--reference-logps", again)
    assert rows_in(again / "data.jsonl") == rows_in(tmp_path / "o/reference/data.jsonl")
    assert (tmp_path / "start/model.safetensors").read_bytes() == before


def test_another_reference_may_be_chosen(program, flags, tmp_path, world):
    other = save_tiny(tmp_path / "other", world, scale=1.5)
    program(*flags, "--out", "o", "--reference", other)
    first = metrics(tmp_path / "o")[0]
    assert abs(first["loss"] - math.log(2)) > 1e-3 and first["rewards/chosen"] != 0


def test_held_out_pairs_have_their_own_file(program, flags, tmp_path):
    held_out = write_pairs(tmp_path / "held-out.jsonl", 3)
    program(*flags, "--out", "o", "--eval-data", held_out, "--eval-every", 1)
    assert len(rows_in(tmp_path / "o/reference/held-out.jsonl")) == 1 + 3
    for line in metrics(tmp_path / "o"):
        assert {"eval_loss", "eval_rewards/accuracies"} <= line.keys()


@pytest.mark.parametrize("torn", [1, 5, 40])
def test_a_file_that_was_cut_short_is_continued(program, flags, tmp_path, loaded, torn):
    program(*flags, "--out", "straight")
    path = tmp_path / "kept/data.jsonl"
    shutil.copytree(tmp_path / "straight/reference", path.parent)
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    program(*flags, "--out", "o", "--reference-logps", path.parent)
    assert len(loaded) == 2  # once for each run: the last row is computed again
    found = {entry["example"]: entry for entry in rows_in(path)[1:]}
    assert found == {entry["example"]: entry for entry in map(json.loads, whole.splitlines()[1:])}
    assert_same_run(tmp_path / "straight", tmp_path / "o")


# Mistakes


def refused(program, flags, tmp_path, *changes):
    """The message when a run wants to reuse the log-probabilities of another one."""
    return program.fails(*flags, *changes, "--out", "p", "--reference-logps", tmp_path / "logps")


@pytest.fixture
def kept(program, flags, tmp_path):
    program(*flags, "--out", "o", "--reference-logps", tmp_path / "logps")


def test_log_probabilities_of_another_model_are_refused(program, flags, kept, tmp_path, world):
    other = save_tiny(tmp_path / "other", world, scale=1.5)
    message = refused(program, flags, tmp_path, "--reference", other)
    text = "logps/data.jsonl holds log-probabilities for other weights of the reference: remove it,"
    assert text in message
    assert message.endswith(" or name another --reference-logps\n")


def test_log_probabilities_of_edited_data_are_refused(program, flags, kept, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text().replace("a b c", "a b e"))
    assert "for other data: remove it" in refused(program, flags, tmp_path)


def test_log_probabilities_for_other_lengths_are_refused(program, flags, kept, tmp_path):
    assert "for other lengths: remove" in refused(program, flags, tmp_path, "--max-tokens", 63)


def test_log_probabilities_for_another_template_are_refused(
    program, flags, kept, tmp_path, monkeypatch
):
    """One character of the template, although the file of pairs is the same."""
    sound = chat.prompt_text
    monkeypatch.setattr(reference, "prompt_text", lambda s, i: sound(s, i) + "\n")
    assert "for other template: remove it" in refused(program, flags, tmp_path)


def test_a_tokenizer_of_other_pieces_is_refused(program, flags, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "hash_files", lambda paths: "other")
    assert "for other tokenizer: remove it" in refused(program, flags, tmp_path)


def test_a_damaged_file_is_refused(program, flags, kept, tmp_path):
    path = tmp_path / "logps/data.jsonl"
    good = path.read_text()
    for damage in ("[]\n", "{\n", good + "{}\n", good.replace('"example": 3', '"example": 99')):
        path.write_text(damage)
        message = refused(program, flags, tmp_path)
        assert "logps/data.jsonl is damaged (" in message and message.endswith("remove it\n")


def test_a_reference_of_another_shape_is_refused(program, flags, tmp_path, world):
    policy = tiny_policy(vocab_size=2048, sliding_window=8, max_position_embeddings=64)
    save_model(policy, tmp_path / "other", world)
    message = program.fails(*flags, "--reference", tmp_path / "other")
    assert "other: sliding_window is 8, needed is None as in --model" in message


def test_a_reference_that_reads_other_ids_or_less_text_is_refused(program, flags, tmp_path, world):
    """Before anything is trained, and by a dry run too."""
    other = save_tiny(tmp_path / "other", world)
    (other / "tokenizer.model").write_bytes(train_tokenizer(collection()[:100], 1900))
    for more in ((), ("--dry-run",)):
        message = program.fails(*flags, "--reference", other, *more)
        assert "other: its tokenizer.model is not that of --model" in message
        assert "nowhere/config.json not found: a Hugging Face" in program.fails(
            *flags, "--reference", "nowhere", *more
        )
    policy = tiny_policy(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=63)
    save_model(policy, tmp_path / "short", world)
    message = program.fails(*flags, "--reference", tmp_path / "short")
    assert "short: its context is 63 tokens, --max-tokens is 64" in message


def test_a_reference_that_is_not_finite_is_refused(program, flags, tmp_path, world):
    other = save_tiny(tmp_path / "other", world, scale=float("nan"))
    message = program.fails(*flags, "--reference", other)
    assert "the reference model's log-probabilities are not finite" in message


def test_only_rows_with_something_new_are_computed():
    known = np.array([True, True, False, False, False])
    rows = [[0, 1], [2, 0], [2, 3], [3, 2], [4]]
    assert reference.uncovered(rows, known) == [[2, 0], [2, 3], [4]]
    assert not known[2:].any()  # left alone
