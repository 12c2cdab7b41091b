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
from janus_min import checkpoint, cli
from janus_min.data import build_row
from janus_min.miniature import SPLITS, collection, plain_texts, showcase_sets
from janus_min.objectives import Counts
from janus_min.recipes import JANUS, RECIPES
from janus_min.world import judge, true_sentences
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


def newest_state(out):
    return max((path.name for path in checkpoint.states(out / "state")), default=None)


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
    assert sum(line["tokens"] for line in lines) == 3 * int(re.search(r" (\d+) tokens,", out)[1])
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
    flags = (*small, "--warmup-steps", 1)  # so that the cosine is on its way down
    program(*flags, "--steps", 4, "--out", "four")
    program(*flags, "--steps", 5, "--out", "five")
    assert metrics(tmp_path / "four") == metrics(tmp_path / "five")[:4]


def test_dry_run_and_show_rows_train_nothing(program, tmp_path):
    out = program("--dry-run")
    count = len(collection()) + len(plain_texts())
    assert f"multifaceted.jsonl\n      {count:,} examples (dropped: none)\n" in out
    assert re.search(r"plan: [\d,]+ steps, [\d,]+ rows of 1,024 tokens, 9\d% full", out)
    out = program("--show-rows", 3)
    assert out.count("of them trained\n") == 3 and "<s> [INST] " in out and "</s>»" in out
    assert not (tmp_path / "runs" / "mini-sft").exists()


def test_a_dry_run_needs_no_weights(program, start, tmp_path):
    """The paper's own shapes and row length, from `config.json` and the tokenizer alone."""
    config = json.loads((start / "config.json").read_text())
    config |= {"hidden_size": 4096, "num_hidden_layers": 32, "max_position_embeddings": 32768}
    (start / "config.json").write_text(json.dumps(config))
    (start / "model.safetensors").unlink()
    data = write_data(tmp_path / "data.jsonl", count=40)
    out = program("janus-7b", "--model", start, "--data", data, "--dry-run")
    assert "plan: 4 steps, 4 rows of 8,192 tokens" in out
    assert "neither model.safetensors" in program.fails(
        "janus-7b", "--model", start, "--data", data
    )


def test_dropped_rows_are_printed_for_held_out_data_too(program, small, start, tmp_path):
    data = write_data(tmp_path / "held-out.jsonl")
    with data.open("a") as file:
        file.write('{"prompt": "a", "output": ""}\n' * 2)
    out = program(*small, "--steps", 4, "--eval-data", data, "--eval-every", 3)
    assert "held-out.jsonl\n      6 examples (dropped: 2 empty response)" in out
    assert [
        line["step"] for line in metrics(tmp_path / "runs/janus-7b") if "eval_loss" in line
    ] == [
        3,
        4,
    ]


def test_the_miniatures_have_the_same_budget_of_steps(program):
    steps = {}
    for name in ("mini-sft", "mini-uniform"):
        plan = re.search(
            r"plan: ([\d,]+) steps, ([\d,]+) rows of 1,024", program(name, "--dry-run")
        )
        steps[name] = int(plan[1].replace(",", ""))
    assert steps["mini-uniform"] == pytest.approx(steps["mini-sft"], rel=0.02)


def test_bf16_rows_of_a_fixed_length_as_on_a_gpu(program, small, start, monkeypatch):
    """Autocast and padding, which a GPU run uses, through the real code on a CPU."""
    runs = []
    monkeypatch.setattr(train, "train", runs.append)
    program(*small)
    [run] = runs
    examples = run.examples[:2]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = train.starting_policy(run, empty=False)
        monkeypatch.setattr(train, "compute_dtype", lambda device, dtype=dtype: dtype)
        pad_to = 64 if dtype == torch.bfloat16 else None
        monkeypatch.setattr(
            train, "build_row", lambda e, window, _, pad_to=pad_to: build_row(e, window, pad_to)
        )
        loss = train.row_loss(run, policy, examples, Counts.of(examples))
        loss.backward()
        gradient = policy.lm_head.weight.grad
        assert loss.dtype == gradient.dtype == torch.float32
        results.append((loss.item(), gradient))
    (exact, gradient), (rounded, rough) = results
    assert rounded != exact and rounded == pytest.approx(exact, rel=1e-2)
    assert (rough - gradient).norm() < 0.05 * gradient.norm()


# Mistakes


def test_wrong_flags(program):
    assert "recipe 'janus-8b' is unknown; there are mini-sft," in program.fails("janus-8b")
    assert "unrecognized arguments: --learning-rat" in program.fails("--learning-rat", 1)
    assert "invalid int value: 'many'" in program.fails("--epochs", "many")
    for flag, value, needed in [
        ("--epochs", 0, "at least 1"),
        ("--steps", -1, "at least 1"),
        ("--learning-rate", "nan", "finite and at least 0"),
        ("--learning-rate", -1, "finite and at least 0"),
        ("--weight-decay", "inf", "finite and at least 0"),
        ("--beta2", 1, "in [0, 1)"),
        ("--max-grad-norm", -1, "above 0"),
        ("--warmup-steps", -1, "at least 0"),
        ("--seed", 2**70, "in [0, 2^63)"),
        ("--impl", "flash", "reference or torch"),
        ("--objective", "ppo", "sft"),
        ("--miniature", "x", "multifaceted or uniform"),
        ("--row-tokens", 4096, "at most the context, 2048"),
    ]:
        assert f", must be {needed}" in program.fails(flag, value)
    message = program.fails("janus-7b", "--miniature", "uniform")
    assert "--miniature is uniform, must be None" in message


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


def test_tokenizer_of_another_model(program, small, start, tmp_path):
    policy = tiny_policy(vocab_size=31999, max_position_embeddings=64)
    checkpoint.save_policy(policy, start, tmp_path / "tokenizer", torch.float32)
    assert "has 32000 pieces, the model only 31999" in program.fails(*small)


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
    assert "belongs to another recipe, model or data" in message
    assert "x holds no run to resume" in program.fails(*small, "--resume", "--out", "x")


def test_a_run_does_not_write_over_its_start_model_or_on_a_file(program, small, start, tmp_path):
    (tmp_path / "project").mkdir()
    start.rename(tmp_path / "project" / "model")
    moved = ["project/model" if part == start else part for part in small]
    message = program.fails(*moved, "--out", "project")
    assert "--out project would write over --model project/model" in message
    (tmp_path / "file").write_text("")
    assert "File exists" in program.fails(*moved, "--out", "file")
    assert "Not a directory" in program.fails(*moved, "--out", "file/below")


def test_other_data_of_the_same_lengths_is_not_resumed(program, small, tmp_path):
    program(*small, "--steps", 2)
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text().replace("one", "two"))
    assert "belongs to another recipe, model or data" in program.fails(*small, "--resume")


def test_a_run_that_ended_before_its_first_state_starts_again(
    program, small, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        patch.setattr(sys, "argv", ["train.py", *map(str, small)])
        with pytest.raises(SystemExit):
            cli.run(train.main)
    program(*small, "--steps", 3, "--resume")
    assert len(metrics(tmp_path / "runs" / "janus-7b")) == 3


def test_ruined_weights_do_not_replace_the_last_state(program, small, tmp_path, monkeypatch):
    sound = train.train_step

    def train_step(run, policy, optimizer, step):
        result = sound(run, policy, optimizer, step)
        if step == 3:
            policy.lm_head.weight.data[0] = float("nan")
        return result

    monkeypatch.setattr(train, "train_step", train_step)
    message = program.fails(*small, "--out", "o")
    assert "lm_head.weight is not finite after step 4; the last good state is" in message
    assert [path.name for path in checkpoint.states(tmp_path / "o/state")] == ["step-00000002"]


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
    assert message.endswith("the last good state is o/state/step-00000002\n")
    assert [path.name for path in checkpoint.states(tmp_path / "o" / "state")] == ["step-00000002"]
    assert [line["step"] for line in metrics(tmp_path / "o")] == [1, 2, 3]


def test_a_gradient_that_is_not_finite_stops_too(program, small, monkeypatch):
    monkeypatch.setattr(
        train.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf"))
    )
    message = program.fails(*small, "--out", "o")
    assert "the gradient's norm is inf in step 1; no state had been saved yet" in message


def test_ctrl_c_and_sudden_death_lose_nothing_that_was_saved(small, tmp_path):
    """A real process ends by SIGINT in one line, another by SIGKILL; both are resumed, and the
    result is that of a run without any of it."""
    command = [sys.executable, ROOT / "train.py", *map(str, small), "--epochs", "40"]
    settings = dict(cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for kill, status, resume in [
        (signal.SIGINT, 130, []),
        (signal.SIGKILL, -signal.SIGKILL, ["--resume"]),
    ]:
        before = newest_state(tmp_path / "broken")
        process = subprocess.Popen([*command, "--out", "broken", *resume], **settings)
        deadline = time.monotonic() + 120
        while newest_state(tmp_path / "broken") in (None, before):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(kill)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert err.strip() == (b"interrupted" if status == 130 else b"")
    subprocess.run([*command, "--out", "broken", "--resume"], check=True, **settings)
    subprocess.run([*command, "--out", "straight"], check=True, **settings)
    first, second = (
        load_file(tmp_path / name / "model" / "model.safetensors")
        for name in ("broken", "straight")
    )
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")


# The main job


def run_program(directory, name, *arguments):
    """Runs a program in a process of its own. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / name, *arguments],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(out):
    """Of each split: the mean grade, and the share of true sentences in per cent."""
    lines = re.findall(
        r"^([a-z ]+): (\d\.\d\d) of 5 .* ([\d.]+) % of their sentences true", out, re.M
    )
    return {split: (float(grade), float(share)) for split, grade, share in lines}


def test_the_main_job(tmp_path):
    """Training on many system messages makes a model follow ones that it never saw; training on
    one does not, although that model tells the truth."""
    assert "2,880 rows: 960 instructions" in run_program(tmp_path, "datagen.py")
    janus = scores(run_program(tmp_path, "train.py"))
    assert janus["trained combinations"][0] >= 4.5 and janus["unseen combinations"][0] >= 4.5
    assert janus["unseen wordings"][0] >= 4
    assert all(share >= 95 for _, share in janus.values())
    assert scores(run_program(tmp_path, "evaluate.py")) == janus

    answers = re.split(r"\nprompt: (.*)\n\n", run_program(tmp_path, "generate.py"))
    responses = [text.split("\nsystem: ")[0].strip() for text in answers[2::2]]
    assert len(set(responses)) == 3
    for response, preferences in zip(responses, showcase_sets(), strict=True):
        grades = [judge(preference, "volcanoes", response) for preference in preferences]
        right, total = true_sentences("volcanoes", response)
        assert sum(grades) >= 18 and right == total, response

    # Three quarters of its recipe show the same.
    uniform = scores(run_program(tmp_path, "train.py", "mini-uniform", "--epochs", "6"))
    for split in SPLITS:
        grade, share = uniform[split]
        assert grade <= 3.5 and share >= 90, split
    assert sum(uniform[split][1] for split in SPLITS) / 3 >= 95
    assert uniform["under its own system message"][1] >= 95
