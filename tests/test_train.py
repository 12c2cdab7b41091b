"""train.py as a user runs it: the main job, resuming, and every mistake's one line."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import train
from janus_min import checkpoint
from janus_min.recipes import JANUS, RECIPES
from tests.conftest import tiny_policy
from tests.peers import transformers
from tests.programs import ROOT, Program, environment


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(train.main, monkeypatch, capsys)


@pytest.fixture
def start(tmp_path, mistral_tokenizer_file):
    """A random Mistral with the real tokenizer, in a Hugging Face directory."""
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(mistral_tokenizer_file, tmp_path / "tokenizer" / "tokenizer.model")
    policy = tiny_policy(vocab_size=32000, hidden_size=16, head_dim=4, max_position_embeddings=64)
    checkpoint.save_policy(policy, tmp_path / "start", tmp_path / "tokenizer", torch.float32)
    return tmp_path / "start"


def write_data(path, count=6):
    rows = [
        {"system": f"Answer in {n} words.", "prompt": "Count.", "output": "one two three"[: 3 + n]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small(start, tmp_path):
    """The arguments of a run of 12 short steps."""
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--row-tokens", 64, "--rows-per-step", 1, "--learning-rate", 1e-2, "--save-every", 2)
    return ("janus-7b", "--model", start, "--data", data, *flags)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_recipes_are_the_papers():
    assert JANUS.learning_rate == 5e-6 and JANUS.epochs == 4 and JANUS.warmup_steps == 10
    assert JANUS.row_tokens * JANUS.rows_per_step == 262_144 and JANUS.weight_decay == 0
    assert RECIPES["janus-7b"] == RECIPES["janus-7b-65k"] == JANUS
    assert RECIPES["janus-7b-epoch1"].epochs == 1


def test_a_run_from_a_checkpoint_leaves_what_it_promises(program, start, tmp_path):
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--row-tokens", 64, "--rows-per-step", 2, "--epochs", 3, "--learning-rate", 1e-2)
    out = program("janus-7b", "--model", start, "--data", data, *flags, "--eval-data", data)
    assert "dropped: none" in out and "the model is in runs/janus-7b/model" in out
    run = tmp_path / "runs" / "janus-7b"
    recipe = json.loads((run / "recipe.json").read_text())
    assert (
        recipe["epochs"] == 3 and recipe["learning_rate"] == 1e-2 and recipe["warmup_steps"] == 10
    )
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"loss", "lr", "grad_norm", "tokens", "targets"} <= lines[0].keys()
    assert sum(line["tokens"] for line in lines) == 3 * int(re.search(r"(\d+) tokens", out)[1])
    assert math.isfinite(lines[-1]["eval_loss"])
    for name in ("config.json", "generation_config.json", "tokenizer.model", "model.safetensors"):
        assert (run / "model" / name).exists()
    hf = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert hf.config.num_hidden_layers == 2
    before = load_file(start / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_the_loss_of_a_few_examples_goes_to_zero(program, start, tmp_path):
    data = write_data(tmp_path / "data.jsonl", count=3)
    flags = ("--row-tokens", 64, "--epochs", 30, "--learning-rate", 3e-2, "--warmup-steps", 3)
    program("janus-7b", "--model", start, "--data", data, *flags, "--out", "o")
    losses = [line["loss"] for line in metrics(tmp_path / "o")]
    assert losses[-1] < 0.1 * losses[0]


def test_held_out_loss_of_the_training_data_is_its_loss(program, start, tmp_path):
    """At a rate of 0 all steps see the same weights: step losses and held-out loss must agree."""
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--row-tokens", 64, "--rows-per-step", 100, "--epochs", 1, "--learning-rate", 0)
    program("janus-7b", "--model", start, "--data", data, *flags, "--eval-data", data)
    [line] = metrics(tmp_path / "runs" / "janus-7b")
    assert line["eval_loss"] == pytest.approx(line["loss"], rel=1e-6)


def test_resuming_gives_the_uninterrupted_run_bitwise(program, small, tmp_path):
    """Six steps straight; and four, killed in the fifth (its state is lost), resumed to six."""
    program(*small, "--steps", 6, "--out", "straight")
    program(*small, "--steps", 4, "--out", "broken")
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0}\n')  # written, but no state was saved after it
    program(*small, "--steps", 6, "--out", "broken", "--resume")
    first = load_file(tmp_path / "straight" / "model" / "model.safetensors")
    second = load_file(tmp_path / "broken" / "model" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "broken")


def test_steps_end_early_without_touching_the_schedule(program, small, tmp_path):
    program(*small, "--steps", 2, "--out", "two")
    program(*small, "--steps", 3, "--out", "three")
    assert metrics(tmp_path / "two") == metrics(tmp_path / "three")[:2]


def test_dry_run_and_show_rows_do_no_work(program, tmp_path):
    out = program("--dry-run")
    assert re.search(r"data: 4,680 examples \(dropped: none\), [\d,]+ tokens", out)
    assert re.search(r"plan: [\d,]+ steps, [\d,]+ rows of 2,048 tokens", out)
    out = program("--show-rows", 1)
    assert "<s> [INST] " in out and "</s>»" in out and "of them trained" in out
    assert not (tmp_path / "runs" / "mini-sft").exists()


# Mistakes


def test_wrong_flags(program):
    assert "recipe 'janus-8b' is unknown; there are mini-sft," in program.fails("janus-8b")
    assert "unrecognized arguments: --learning-rat" in program.fails("--learning-rat", 1)
    assert "invalid int value: 'many'" in program.fails("--epochs", "many")
    assert "--epochs is 0, must be at least 1" in program.fails("--epochs", 0)
    assert "--steps is -1, must be at least 1" in program.fails("--steps", -1)
    assert "--impl is 'flash'; there are reference, torch" in program.fails("--impl", "flash")
    assert "--objective is 'ppo'; there are sft" in program.fails("--objective", "ppo")
    assert "--miniature is 'x'; there are multi" in program.fails("--miniature", "x")
    assert "--row-tokens is 4096, the model's context" in program.fails("--row-tokens", 4096)


def test_missing_files(program, start, tmp_path):
    assert "janus-7b needs --model DIR" in program.fails("janus-7b")
    assert "janus-7b needs --data FILE" in program.fails("janus-7b", "--model", start)
    nothing = tmp_path / "nothing.jsonl"
    flags = ("janus-7b", "--row-tokens", 64, "--model")
    assert "nothing.jsonl not found" in program.fails(*flags, start, "--data", nothing)
    (tmp_path / "empty").mkdir()
    message = program.fails(*flags, tmp_path / "empty", "--data", nothing)
    assert "tokenizer.model not found" in message
    (start / "model.safetensors").unlink()
    message = program.fails(*flags, start, "--data", write_data(tmp_path / "data.jsonl"))
    assert "neither model.safetensors nor" in message


def test_tokenizer_of_another_model(program, start, tmp_path):
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"vocab_size": 31999}))
    data = write_data(tmp_path / "data.jsonl")
    message = program.fails("janus-7b", "--model", start, "--data", data, "--row-tokens", 64)
    assert "has 32000 pieces, the model only 31999" in message


def test_data_without_a_usable_example(program, start, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "output": ""}\n')
    message = program.fails("janus-7b", "--model", start, "--data", data, "--row-tokens", 64)
    assert "no usable example left (1 empty response)" in message


def test_a_directory_that_holds_a_run(program, small):
    program(*small, "--steps", 2)
    message = program.fails(*small, "--steps", 2)
    assert "runs/janus-7b already holds a run: --resume continues it, --out starts" in message
    message = program.fails(*small, "--steps", 3, "--resume", "--seed", 7)
    assert "belongs to another recipe or other data" in message
    assert "holds no training state" in program.fails(*small, "--resume", "--out", "x")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    program, small, tmp_path, monkeypatch, poison
):
    sound = train.row_loss

    def row_loss(run, policy, examples, counts):
        loss = sound(run, policy, examples, counts)
        return loss * poison if poisoned(examples) else loss

    calls = []

    def poisoned(examples):
        calls.append([example.line for example in examples])
        return len(calls) == 4

    monkeypatch.setattr(train, "row_loss", row_loss)
    message = program.fails(*small, "--out", "o")
    lines = ", ".join(map(str, calls[-1]))
    assert f"loss is {poison} in step 4, row 1 (data lines {lines})" in message
    assert "the weights were not changed by it" in message
    assert [path.name for path in checkpoint.states(tmp_path / "o" / "state")] == ["step-00000002"]
    assert [line["step"] for line in metrics(tmp_path / "o")] == [1, 2, 3]


def test_a_gradient_that_is_not_finite_stops_too(program, small, monkeypatch):
    monkeypatch.setattr(
        train.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf"))
    )
    assert "the gradient's norm is inf in step 1;" in program.fails(*small, "--out", "o")


def test_ctrl_c_is_one_line_and_status_130(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--save-every", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/mini-sft/state/step-????????")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == b"interrupted"
    assert checkpoint.states(tmp_path / "runs" / "mini-sft" / "state")


# The main job


def test_the_main_job(tmp_path):
    """Training on many system messages makes a model follow ones that it never saw."""
    for name in ("train.py", "generate.py"):
        done = subprocess.run(
            [sys.executable, ROOT / name],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        if name == "train.py":
            scores = dict(re.findall(r"^([a-z ]+): (\d\.\d\d) of 5", done.stdout, re.M))
    assert float(scores["trained combinations"]) >= 4.5
    assert float(scores["unseen combinations"]) >= 4.5
    assert "unseen wordings" in scores
    assert done.stdout.count("system: ") == 3
