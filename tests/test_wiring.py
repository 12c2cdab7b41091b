"""What a recipe says reaches the row, the loss and the optimizer of a run."""

import gc
import weakref

import pytest
import torch

import train
from janus_min import checkpoint, parallel, reference, resume
from janus_min import run as run_module
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.parallel import ALONE, local
from janus_min.row import build_row
from janus_min.tokenizer import EOS
from tests.conftest import save_tiny, tiny_policy
from tests.ranks import train_on
from tests.runs import RECIPES, metrics, write_data, write_pairs


@pytest.fixture
def arguments(tmp_path, world):
    """The arguments of a run of one step over all data, at a rate of 0."""
    save_tiny(tmp_path / "start", world)

    def arguments(objective):
        write = write_data if objective == "sft" else write_pairs
        size = ("--rows-per-step", 9) if objective == "sft" else ("--pairs-per-step", 6)
        data = write(tmp_path / "data.jsonl")
        flags = ("--row-tokens", 128, "--max-tokens", 64, "--epochs", 1, "--learning-rate", 0)
        return (RECIPES[objective], "--model", tmp_path / "start", "--data", data, *flags, *size)

    return arguments


@pytest.fixture
def calls(monkeypatch):
    """What every objective is called with: (model, row, counts, recipe), and if it has a graph."""
    calls = []
    for name, sound in dict(OBJECTIVES).items():

        def spy(model, row, counts, recipe, sound=sound):
            loss, metrics = sound(model, row, counts, recipe)
            calls.append((row, counts, recipe, loss.requires_grad))
            return loss, metrics

        monkeypatch.setitem(OBJECTIVES, name, spy)
    return calls


def test_the_prompt_is_scored_when_asked_for(program, arguments, calls):
    program(*arguments("orpo"), "--out", "a")
    program(*arguments("orpo"), "--out", "b", "--nll-on-prompt")
    (without, counts, *_), (scored, more, *_) = calls[0], calls[-1]
    own = (without.targets[without.response < 0] >= 0).sum()
    assert own == 0 and (scored.targets[scored.response < 0] >= 0).sum() > 0
    in_nll = sum(
        ((row.targets >= 0) & ((row.response < 0) | (row.response % 2 == 0))).sum().item()
        for row, count, *_ in calls
        if count == more
    )
    assert in_nll == more.targets > counts.targets


def test_the_prompt_is_shared_unless_told_otherwise(program, arguments, calls):
    program(*arguments("dpo"), "--out", "a")
    shared = sum(len(row.inputs) for row, *_ in calls)
    calls.clear()
    program(*arguments("dpo"), "--out", "b", "--no-share-prompt")
    assert sum(len(row.inputs) for row, *_ in calls) > 1.3 * shared


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_long_responses_are_cut_when_asked_for(program, arguments, calls, objective):
    """A reward is read at EOS, so only there a cut response keeps it."""
    program(*arguments(objective), "--out", "a", "--max-tokens", 32, "--cut")
    ends = torch.cat([row.inputs[row.ends] for row, *_ in calls])
    assert len(ends) == 12  # none was dropped
    assert (ends == EOS).all() == (objective == "reward")
    assert max(row.positions.max() for row, *_ in calls) == 31


def test_the_optimizer_is_the_recipes(program, arguments, monkeypatch):
    made = []
    sound = resume.make_optimizer

    def spy(*arguments, **settings):
        made.append(sound(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(resume, "make_optimizer", spy)
    program(*arguments("sft"), "--weight-decay", 0.3, "--beta2", 0.7, "--optimizer", "adamw")
    assert isinstance(made[0], torch.optim.AdamW)
    groups = made[0].param_groups
    assert max(group["weight_decay"] for group in groups) == 0.3
    assert all(group["betas"] == (0.9, 0.7) for group in groups)


@pytest.mark.parametrize("objective", ["sft", "dpo", "orpo", "reward"])
def test_held_out_metrics_are_those_of_the_held_out_data(
    program, arguments, calls, tmp_path, objective
):
    """Means over its own tokens and pairs, which are fewer than the training data's."""
    write = write_data if objective == "sft" else write_pairs
    held_out = write(tmp_path / "held-out.jsonl", 3)
    program(*arguments(objective), "--eval-data", held_out)
    [line] = metrics(tmp_path / "runs" / RECIPES[objective])
    name, recipe, options = train.command_line(
        [*map(str, arguments(objective)), "--eval-data", str(held_out), "--dry-run"]
    )
    examples = train.prepare(name, recipe, options, ALONE).held_out.examples
    assert len(examples) == 3
    for _, counts, _, graph in calls:
        assert graph == (counts != Counts.of(examples))  # only what is trained needs one
    if objective == "reward":
        return  # its head is random
    model = checkpoint.load_model(resume.Policy, tmp_path / "start", impl="torch")
    row = build_row(examples, None)
    if objective == "dpo":
        row = row._replace(reference_logps=torch.zeros(6))
    loss, _ = OBJECTIVES[objective](model, row, Counts.of(examples), recipe)
    wanted = loss.item() if objective != "dpo" else 0.693147  # the policy is the reference
    assert line["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    assert line["eval_loss"] != line["loss"] or objective == "dpo"


def test_the_limit_of_examples_is_not_that_of_held_out_pairs(program, arguments, calls, tmp_path):
    held_out = write_pairs(tmp_path / "held-out.jsonl", 3)
    program(*arguments("dpo"), "--eval-data", held_out, "--max-examples", 2)
    assert {counts.pairs for _, counts, *_ in calls} == {2, 3}


def test_heads_are_drawn_with_the_recipes_seed(program, arguments, tmp_path):
    for seed in (1, 1, 2):
        program(
            *arguments("reward"), "--seed", seed, "--out", f"{seed}{len(list(tmp_path.iterdir()))}"
        )
    heads = [
        checkpoint.load_model(resume.RewardModel, path / "model", impl="torch").value_head.weight
        for path in sorted(tmp_path.glob("[12]*"))
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# The reference


def test_the_reference_is_computed_in_the_precision_of_training(arguments, tmp_path, monkeypatch):
    """On a GPU, where training computes in bf16: margins of the first step are exactly 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "compute_dtype", lambda device: torch.bfloat16)
    train_on(2, *arguments("dpo"), "--out", "o")
    [line] = metrics(tmp_path / "o")
    assert line["rewards/margins"] == line["rewards/chosen"] == 0


def test_the_reference_is_not_in_memory_when_the_policy_gets_its_own(
    arguments, tmp_path, monkeypatch
):
    """Under FSDP, whose modules refer to each other, and without waiting for Python to notice."""
    monkeypatch.chdir(tmp_path)
    load, start, alive = reference.load_model, resume.starting_model, []

    def watched(*arguments, **settings):
        model = load(*arguments, **settings)
        alive.extend(weakref.ref(local(p).untyped_storage()) for p in model.parameters())
        return model

    def look(*arguments, **settings):
        assert alive and not any(storage() for storage in alive)
        return start(*arguments, **settings)

    monkeypatch.setattr(reference, "load_model", watched)
    monkeypatch.setattr(resume, "starting_model", look)
    gc.disable()
    try:
        train_on(1, *arguments("dpo"), "--out", "o")
    finally:
        gc.enable()
    assert len(metrics(tmp_path / "o")) == 1


def test_what_identifies_a_run(program, arguments, monkeypatch):
    """A changed id in a prompt, another config, another precision: each changes the header."""
    name, recipe, options = train.command_line([*map(str, arguments("dpo")), "--dry-run"])
    run = train.prepare(name, recipe, options, ALONE)
    about = reference.header(run, run.data, run.config, "w")
    other = reference.header(run, run.data, tiny_policy().config, "w")
    assert {key for key in about if about[key] != other[key]} == {"config of the reference"}
    monkeypatch.setattr(reference, "compute_dtype", lambda kind: torch.bfloat16)
    other = reference.header(run, run.data, run.config, "w")
    assert {key for key in about if about[key] != other[key]} == {"precision"}
    monkeypatch.undo()
    assert run.identity().keys() == {"recipe", "config", "data", "start model", "reference"}
    assert run.identity()["config"]["hidden_size"] == 16
    run.data.examples[0].prompt[3] += 1
    assert reference.header(run, run.data, run.config, "w")["data"] != about["data"]
    assert run_module.hash_weights(run.start) == run.identity()["start model"]
