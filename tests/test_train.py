"""train.py as a user runs it: the main job, resuming, and every mistake's one line."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import train
from janus_min import checkpoint, mini_data
from janus_min.mini_data import collection, plain_texts
from janus_min.objectives import OBJECTIVES
from janus_min.recipes import JANUS, JANUS_DPO, JANUS_ORPO, JANUS_RM, RECIPES
from janus_min.state import states
from janus_min.tokenizer import Tokenizer
from tests.conftest import tiny_policy
from tests.peers import transformers
from tests.runs import metrics, write_data


@pytest.fixture
def world_at_hand(world, monkeypatch):
    """The files of the world are copied, instead of made anew by every run."""
    copy = partial(shutil.copytree, world, dirs_exist_ok=True)
    monkeypatch.setattr(mini_data, "write_world", copy)


def test_recipes_are_the_papers():
    assert JANUS.learning_rate == 5e-6 and JANUS.epochs == 4 and JANUS.warmup_steps == 10
    assert JANUS.row_tokens * JANUS.rows_per_step == 262_144 and JANUS.weight_decay == 0
    assert RECIPES["janus-7b"] == RECIPES["janus-7b-65k"] == JANUS
    assert RECIPES["janus-7b-epoch1"].epochs == 1
    assert (JANUS_DPO.epochs, JANUS_DPO.learning_rate, JANUS_DPO.beta) == (2, 5e-7, 0.1)
    assert (JANUS_DPO.max_tokens, JANUS_DPO.pairs_per_step) == (2048, 16)
    assert JANUS_DPO.warmup_steps == JANUS_ORPO.warmup_steps == 10
    assert (JANUS_ORPO.epochs, JANUS_ORPO.learning_rate, JANUS_ORPO.lambda_or) == (2, 5e-6, 0.1)
    assert (JANUS_ORPO.max_tokens, JANUS_ORPO.pairs_per_step) == (4096, 16)
    assert (JANUS_RM.epochs, JANUS_RM.learning_rate, JANUS_RM.warmup_ratio) == (1, 9e-6, 0.03)
    assert (JANUS_RM.max_tokens, JANUS_RM.pairs_per_step, JANUS_RM.beta2) == (2048, 128, 0.95)
    assert RECIPES["janus-dpo-7b"] == JANUS_DPO and RECIPES["janus-orpo-7b"] == JANUS_ORPO
    assert RECIPES["janus-rm-7b"] == JANUS_RM and JANUS_RM.restart_head
    helpful = RECIPES["janus-rm-7b-helpful"]
    assert helpful.probabilities == (0.72, 0.14, 0.14) and helpful.max_examples == 66_000
    assert helpful.restart_head and helpful.learning_rate == JANUS_RM.learning_rate


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
    assert sum(line["tokens"] for line in lines) == 3 * int(
        re.search(r" (\d+) tokens in rows", out)[1]
    )
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
    assert (
        len(re.findall(r" tokens, \d+ of them trained\n", out)) == 3
        and "<s> [INST] " in out
        and "</s>»" in out
    )
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


def test_the_miniatures_have_the_same_budget_of_steps(program, world_at_hand):
    steps = {}
    for name in ("mini-sft", "mini-uniform"):
        plan = re.search(
            r"plan: ([\d,]+) steps, ([\d,]+) rows of 1,024", program(name, "--dry-run")
        )
        steps[name] = int(plan[1].replace(",", ""))
    assert steps["mini-uniform"] == pytest.approx(steps["mini-sft"], rel=0.02)


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
        ("--row-tokens", 4096, "at most the model's context, 2048"),
        ("--max-tokens", 2048, "at most 1024, --row-tokens"),
        ("--max-examples", 0, "at least 1"),
        ("--probabilities", 0.9999999, "above 0 and sum to 1"),
        ("--warmup-ratio", 2, "in [0, 1]"),
        ("--keep", 0, "at least 1"),
        ("--beta", 0.1, "left out: sft has none"),
        ("--pairs-per-step", 4, "left out: sft has none"),
        ("--reference", "x", "left out: only DPO has one"),
    ]:
        assert f", must be {needed}" in program.fails(flag, value)
    for flag in ("--objective", "--miniature", "--start"):  # they are what a recipe is
        assert f"unrecognized arguments: {flag} " in program.fails("mini-sft", flag, "x")


def test_a_miniature_is_not_trained_for_a_start_before_the_rest_is_known_to_be_right(
    program, world, world_at_hand, tmp_path, monkeypatch
):
    """mini-dpo would train mini-base and mini-sft-small first, for minutes."""
    for path in ("taken/recipe.json", "left/state"):
        (tmp_path / path).mkdir(parents=True)
    write_data(tmp_path / "data.jsonl")
    policy = tiny_policy(vocab_size=Tokenizer(world).vocab_size, max_position_embeddings=2048)
    checkpoint.save_model(policy, tmp_path / "weightless", world)
    (tmp_path / "weightless/model.safetensors").unlink()
    monkeypatch.setattr(train, "begin", lambda *arguments: pytest.fail("something is trained"))
    for more, message in [
        (("--data", "nothing.jsonl"), "nothing.jsonl not found"),
        (("--eval-data", "nothing.jsonl"), "nothing.jsonl not found"),
        (("--resume",), "runs/mini-dpo holds no run to resume"),
        (("--data", "data.jsonl"), "data.jsonl:1: this is no preference pair"),
        (("--eval-data", "data.jsonl"), "data.jsonl:1: this is no preference pair"),
        (("--reference", "nowhere"), "nowhere/config.json not found"),
        (("--reference", "weightless"), "neither model.safetensors nor"),
        (("--out", "taken"), "taken already holds a run"),
        (("--out", "left"), "left holds what a run has left, without recipe.json: move it"),
        (("--out", "runs/mini-sft-small"), "would write over its own start, runs/mini-sft-small"),
        (("--row-tokens", 8192), "--max-tokens is 4096, must be at most the model's context, 2048"),
        (("--impl", "triton"), "--impl is triton, which needs heads of 64 or 128"),
    ]:
        assert message in program.fails("mini-dpo", *more)


def test_resume_goes_on_with_the_training_of_a_start(program, world_at_hand, tmp_path, monkeypatch):
    """Three miniatures in a row; the training of the first one was interrupted."""
    starts = {"mini-base": None, "mini-sft": "mini-base", "mini-sft-chosen": "mini-sft"}
    few = {
        name: replace(RECIPES[name], start=start, epochs=1, max_examples=20)
        for name, start in starts.items()
    }
    monkeypatch.setattr(train, "RECIPES", few)
    monkeypatch.setattr(train, "score_model", lambda *arguments: [])
    program("mini-base", "--steps", 1)
    shutil.rmtree(tmp_path / "runs/mini-base/model")
    out = program("mini-sft-chosen", "--resume")
    first, *others = (len(metrics(tmp_path / "runs" / name)) for name in starts)
    assert first > 1 and re.findall(r"trained (\d) steps in .* in runs/(.*)/model", out) == [
        (str(count), name) for count, name in zip([first - 1, *others], starts)
    ]
    assert "runs/mini-sft-chosen already holds a run" in program.fails("mini-sft-chosen")
    program("mini-sft-chosen", "--resume")  # finds nothing to do
    shutil.rmtree(tmp_path / "runs/mini-sft-chosen")
    assert "mini-sft-chosen holds no run to resume" in program.fails("mini-sft-chosen", "--resume")
    shutil.rmtree(tmp_path / "runs/mini-sft/model")
    few["mini-sft"] = replace(few["mini-sft"], seed=7)
    message = program.fails("mini-sft-chosen")
    assert message.startswith("error: mini-sft is trained first, as --model gives none: runs/mini-")
    assert "is of another run: --seed was 42 and is 7" in message


def test_a_miniature_can_be_looked_at_without_its_start(program, world_at_hand, tmp_path):
    out = program("mini-dpo", "--dry-run")
    assert "960 examples (dropped: none)" in out and "plan: 120 steps" in out
    assert "]" in program("mini-rm", "--show-rows", 1)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["miniature"]


def test_missing_files(program, start, tmp_path):
    assert "janus-7b needs --model DIR" in program.fails("janus-7b")
    assert "janus-7b needs --data FILE" in program.fails("janus-7b", "--model", start)
    nothing = tmp_path / "nothing.jsonl"
    flags = ("janus-7b", "--row-tokens", 64, "--model")
    assert "nothing.jsonl not found" in program.fails(*flags, start, "--data", nothing)
    (tmp_path / "empty").mkdir()
    data = write_data(tmp_path / "data.jsonl")
    message = program.fails(*flags, tmp_path / "empty", "--data", data)
    assert "tokenizer.model not found" in message
    (start / "model.safetensors").unlink()
    message = program.fails(*flags, start, "--data", data)
    assert "neither model.safetensors nor" in message


def test_tokenizer_of_another_model(program, small, start, tmp_path):
    policy = tiny_policy(vocab_size=31999, max_position_embeddings=64)
    checkpoint.save_model(policy, start, tmp_path / "tokenizer", torch.float32)
    assert "has 32000 pieces, the model only 31999" in program.fails(*small)


def test_data_without_a_usable_example(program, start, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "output": ""}\n')
    message = program.fails("janus-7b", "--model", start, "--data", data, "--row-tokens", 64)
    assert "no usable example left (1 empty response)" in message


def test_a_run_does_not_write_over_its_start_model_or_on_a_file(program, small, start, tmp_path):
    (tmp_path / "project").mkdir()
    start.rename(tmp_path / "project" / "model")
    moved = ["project/model" if part == start else part for part in small]
    message = program.fails(*moved, "--out", "project")
    assert "--out project would write over --model project/model" in message
    (tmp_path / "file").write_text("")
    assert "File exists" in program.fails(*moved, "--out", "file")
    assert "Not a directory" in program.fails(*moved, "--out", "file/below")


def test_a_gradient_that_is_not_finite_stops_too(program, small, monkeypatch):
    monkeypatch.setattr(
        train.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf"))
    )
    message = program.fails(*small, "--out", "o")
    assert "the gradient's norm is inf in step 1; no state had been saved yet" in message


def poison_step(monkeypatch, number, damage):
    """Calls `damage(model, loss)` on the row number `number`, from 1, that is trained; it returns
    the loss."""
    sound, calls = OBJECTIVES["sft"], []

    def poisoned(model, row, counts, recipe):
        loss, shares = sound(model, row, counts, recipe)
        calls.append(row)
        return (damage(model, loss) if len(calls) == number else loss), shares

    monkeypatch.setitem(OBJECTIVES, "sft", poisoned)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    program, small, tmp_path, monkeypatch, poison
):
    poison_step(monkeypatch, 4, lambda model, loss: loss * poison)
    message = program.fails(*small, "--out", "o")
    found = re.search(rf"loss is {poison} in step 4, row 1 \((.*)\)", message)
    plan = re.findall(r"data\.jsonl:(\d+)", found[1])
    assert plan and all(1 <= int(line) <= 6 for line in plan)
    assert message.endswith("the last good state is o/state/step-00000002\n")
    assert [path.name for path in states(tmp_path / "o" / "state")] == ["step-00000002"]
    assert [line["step"] for line in metrics(tmp_path / "o")] == [1, 2, 3]


def test_a_damaged_state_is_not_called_the_last_good_one(program, small, tmp_path, monkeypatch):
    def damage(model, loss):
        (tmp_path / "o/state/step-00000004/shard-00000/model.safetensors").write_bytes(b"")
        return loss * float("nan")

    poison_step(monkeypatch, 6, damage)
    message = program.fails(*small, "--out", "o")
    assert message.endswith("the last good state is o/state/step-00000002\n")


def test_ruined_weights_do_not_replace_the_last_state(program, small, tmp_path, monkeypatch):
    def ruin(model, loss):
        loss.backward(retain_graph=True)  # an honest gradient, and then a weight that is none
        model.lm_head.weight.data[0] = float("nan")
        return loss.detach() + 0 * model.model.norm.weight.sum()

    poison_step(monkeypatch, 4, ruin)
    message = program.fails(*small, "--out", "o")
    assert "lm_head.weight is not finite after step 4; the last good state is" in message
    assert [path.name for path in states(tmp_path / "o/state")] == ["step-00000002"]
