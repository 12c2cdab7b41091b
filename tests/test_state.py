"""Training states: exact, whole or not there, whatever kills their writer."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from janus_min import directories
from janus_min.errors import UserError
from janus_min.objectives import Counts, sft
from janus_min.optim import make_optimizer
from janus_min.row import build_row
from janus_min.state import (
    load_state,
    newest_state,
    read_state,
    remove_leftovers,
    save_state,
    states,
)
from tests.conftest import random_examples, tiny_policy, tiny_recipe
from tests.kill import survives


def few_steps(policy, optimizer, first, count):
    """Some optimizer steps on examples that depend on the step alone."""
    for step in range(first, first + count):
        examples = random_examples(4, seed=step)
        optimizer.zero_grad()
        loss, _ = sft(policy, build_row(examples, None), Counts.of(examples), tiny_recipe("sft"))
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()


def save(model, optimizer, step, out, about=None, keep=1):
    tokenizer = out / "no tokenizer"
    save_state(model, optimizer, step, out, about or {}, tokenizer, keep)


def test_six_steps_equal_three_and_a_resume_and_three_bitwise(tmp_path):
    straight = tiny_policy()
    few_steps(straight, make_optimizer("adamw", straight, weight_decay=0.1, beta2=0.99), 0, 6)

    first = tiny_policy()
    optimizer = make_optimizer("adamw", first, weight_decay=0.1, beta2=0.99)
    few_steps(first, optimizer, 0, 3)
    save(first, optimizer, 3, tmp_path, about={"note": "x"})
    second = tiny_policy(vocab_size=97)
    optimizer = make_optimizer("adamw", second, weight_decay=0.1, beta2=0.99)
    load_state(second, optimizer, states(tmp_path)[-1])
    assert read_state(states(tmp_path)[-1]) == {"step": 3, "shards": 1, "note": "x"}
    few_steps(second, optimizer, 3, 3)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_in_shards_is_the_same_state(tmp_path, monkeypatch):
    policy = tiny_policy()
    optimizer = make_optimizer("adamw", policy, weight_decay=0.0, beta2=0.99)
    few_steps(policy, optimizer, 0, 2)
    monkeypatch.setattr(directories.save_tensors, "__defaults__", (60_000,))
    save(policy, optimizer, 2, tmp_path)
    [state] = states(tmp_path)
    assert len(list(state.rglob("*.safetensors"))) > 3
    again = tiny_policy(vocab_size=97)
    restored = make_optimizer("adamw", again, weight_decay=0.0, beta2=0.99)
    load_state(again, restored, state)
    for a, b in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][moment], restored.state[b][moment])


def test_damaged_states_are_named(tmp_path):
    policy = tiny_policy()
    optimizer = make_optimizer("adamw", policy, weight_decay=0.0, beta2=0.99)
    few_steps(policy, optimizer, 0, 1)
    save(policy, optimizer, 1, tmp_path)
    [state] = states(tmp_path)
    (state / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json is damaged"):
        read_state(state)
    (state / "state.json").write_text('{"step": 1, "shards": 1}')
    (state / "shard-00000/model.safetensors").write_bytes(b"123")
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load_state(policy, optimizer, state)


def test_only_complete_states_count_and_older_ones_go(tmp_path):
    policy = tiny_policy()
    optimizer = make_optimizer("adamw", policy, weight_decay=0.0, beta2=0.99)
    few_steps(policy, optimizer, 0, 1)
    for step in (1, 2, 10):
        save(policy, optimizer, step, tmp_path)
    (tmp_path / "step-00000011.tmp").mkdir()  # as a killed program leaves it
    assert [path.name for path in states(tmp_path)] == ["step-00000010"]
    other = tiny_policy(num_hidden_layers=3)
    with pytest.raises(UserError, match=r"is the state of another model: model.layers.2"):
        optimizer = make_optimizer("adamw", other, weight_decay=0.0, beta2=0.99)
        load_state(other, optimizer, states(tmp_path)[-1])


# Damage and death


@pytest.fixture
def trained():
    """A model and its optimizer after a step."""
    policy = tiny_policy()
    optimizer = make_optimizer("adamw", policy, weight_decay=0.0, beta2=0.99)
    few_steps(policy, optimizer, 0, 1)
    return policy, optimizer


def test_as_many_states_are_kept_as_asked_for(trained, tmp_path):
    for step in (1, 2, 3, 4):
        save(*trained, step, tmp_path, keep=2)
    assert [path.name for path in states(tmp_path)] == ["step-00000003", "step-00000004"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda s: truncate(s / "shard-00000/model.safetensors"), "model.safetensors is damaged"),
        (lambda s: (s / "shard-00000/model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda s: (s / "state.json").unlink(), "No such file or directory"),
        (lambda s: (s / "state.json").write_text("{"), "state.json is damaged"),
        (lambda s: (s / "state.json").write_text("{}"), "'step' must be a whole number"),
    ],
)
def test_a_damaged_state_is_skipped_with_a_line(trained, tmp_path, capsys, damage, line):
    """The one before it is used."""
    for step in (1, 2):
        save(*trained, step, tmp_path, keep=2)
    assert newest_state(tmp_path).name == "step-00000002" and not capsys.readouterr().out
    damage(tmp_path / "step-00000002")
    assert newest_state(tmp_path).name == "step-00000001"
    out = capsys.readouterr().out
    assert out.startswith("state skipped: ") and line in out and "step-00000002" in out
    shutil.rmtree(tmp_path / "step-00000001")
    assert newest_state(tmp_path) is None


def test_a_damaged_state_of_a_later_step_does_not_displace_a_new_one(trained, tmp_path):
    """It was skipped, so that earlier steps are saved again."""
    for step in (2, 6):
        save(*trained, step, tmp_path, keep=2)
    truncate(tmp_path / "step-00000006/shard-00000/model.safetensors")
    for step in (3, 4):
        save(*trained, step, tmp_path, keep=1)
        assert newest_state(tmp_path).name == f"step-{step:08d}"
    save(*trained, 6, tmp_path, keep=1)
    assert [path.name for path in states(tmp_path)] == ["step-00000006"]


def test_what_a_killed_run_left_is_removed(trained, tmp_path):
    save(*trained, 1, tmp_path)
    for name in ("step-00000003.tmp", "step-00000001.old"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    remove_leftovers(tmp_path / "nothing here")


def test_a_full_disk_ends_in_a_line(trained, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise directories.SafetensorError("No space left on device")

    monkeypatch.setattr(directories, "save_file", full)
    with pytest.raises(UserError, match=r"model.safetensors could not be written: No space left"):
        save(*trained, 1, tmp_path)


def test_a_state_is_on_the_disk_before_it_gets_its_name(trained, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(directories, "sync", lambda path: events.append(path.name))
    rename = directories.os.replace
    monkeypatch.setattr(
        directories.os, "replace", lambda a, b: (events.append("rename"), rename(a, b))
    )
    save(*trained, 1, tmp_path)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    names = ["model.safetensors", "shard-00000", "state.json", "step-00000001.tmp"]
    assert sorted(set(before)) == names
    assert after == [tmp_path.name]


def weights(state):
    return load_file(state / "shard-00000/model.safetensors")["model.lm_head.weight"]


def test_a_save_that_is_killed_at_any_point_leaves_the_old_state_or_the_new_one(trained, tmp_path):
    policy, optimizer = trained
    before = policy.lm_head.weight.detach().clone()
    save(policy, optimizer, 1, tmp_path / "first")
    few_steps(policy, optimizer, 1, 1)
    after, found = policy.lm_head.weight.detach().clone(), []
    for point in range(1, 100):
        out = tmp_path / f"killed at {point}"
        shutil.copytree(tmp_path / "first", out)
        done = survives(lambda out=out: save(policy, optimizer, 2, out), out, point)
        state = newest_state(out)
        step = read_state(state)["step"]
        assert torch.equal(weights(state), before if step == 1 else after)
        found.append(step)
        save(policy, optimizer, 2, out)  # the next save clears up
        assert [path.name for path in out.iterdir()] == ["step-00000002"]
        if done:
            break
    assert done and found == sorted(found) and found.count(1) >= 4 and found.count(2) >= 2


def test_a_save_that_is_killed_within_a_file_leaves_the_old_state(trained, tmp_path, monkeypatch):
    policy, optimizer = trained
    save(policy, optimizer, 1, tmp_path)
    whole = directories.save_file

    def half(tensors, path, metadata):
        whole(tensors, path, metadata=metadata)
        truncate(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(directories, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save(policy, optimizer, 2, tmp_path)
    assert newest_state(tmp_path).name == "step-00000001"
