"""Runs that are interrupted, killed and resumed are, in the end, the uninterrupted run."""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import train
from janus_min.state import states
from tests.conftest import save_tiny
from tests.kill import survives
from tests.programs import ROOT, environment
from tests.runs import RECIPES, assert_same_run, metrics, write_data, write_pairs


@pytest.fixture
def start(tmp_path, world):
    """A smaller vocabulary than that of other tests: steps of milliseconds."""
    return save_tiny(tmp_path / "start", world)


@pytest.fixture
def arguments(tmp_path, world):
    """The arguments of a short run of each objective, with held-out data."""
    save_tiny(tmp_path / "start", world)

    def arguments(objective):
        write = write_data if objective == "sft" else write_pairs
        data, held_out = write(tmp_path / "data.jsonl"), write(tmp_path / "held-out.jsonl", 3)
        flags = ("--row-tokens", 128, "--max-tokens", 64, "--pairs-per-step", 2, "--epochs", 2)
        if objective == "sft":
            flags = ("--row-tokens", 64, "--rows-per-step", 2, "--epochs", 3)
        flags += ("--learning-rate", 1e-2, "--eval-data", held_out, "--eval-every", 2)
        return (RECIPES[objective], "--model", tmp_path / "start", "--data", data, *flags)

    return arguments


@pytest.mark.parametrize("objective", RECIPES)
def test_six_steps_are_three_a_sudden_death_and_three_more(objective, arguments, program, tmp_path):
    """To the bit: weights, losses, held-out metrics, exported model. The death comes within
    the fourth step, whose line in metrics.jsonl is already there."""
    flags = (*arguments(objective), "--save-every", 3)
    program(*flags, "--out", "straight")
    assert [line["step"] for line in metrics(tmp_path / "straight")] == [1, 2, 3, 4, 5, 6]

    def dies_in_step_four():
        write = train.Records.write

        def write_and_die(records, values):
            write(records, values)
            if values["step"] == 4:
                signal.raise_signal(signal.SIGKILL)

        train.Records.write = write_and_die
        train.main([*map(str, flags), "--out", "broken"])

    assert not survives(dies_in_step_four, tmp_path / "nowhere", 0)
    assert len(metrics(tmp_path / "broken")) == 4
    assert [path.name for path in states(tmp_path / "broken/state")] == ["step-00000003"]
    program(*flags, "--out", "broken", "--resume")
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_a_run_that_is_killed_between_any_two_file_operations_is_resumed(
    arguments, program, tmp_path
):
    """From its first file to its last: DPO writes most, the reference's log-probabilities too."""
    flags = [*map(str, arguments("dpo")), "--save-every", "2", "--keep", "1"]
    program(*flags, "--out", "straight")
    for point in range(1, 400):
        out = tmp_path / "broken"
        done = survives(lambda: train.main([*flags, "--out", "broken"]), out, point)
        resume = ["--resume"] if (out / "recipe.json").exists() else []
        program(*flags, "--out", "broken", *resume)
        assert_same_run(tmp_path / "straight", out)
        left = {path.name for path in out.iterdir()}
        assert left == {"recipe.json", "metrics.jsonl", "state", "model", "reference"}, point
        assert states(out / "state")[-1].name == "step-00000006", point
        if done:
            break
        shutil.rmtree(out)
    assert done and point > 60


def test_a_resumed_run_that_is_killed_while_it_opens_its_records_is_resumed(
    arguments, program, tmp_path
):
    """Then there are earlier steps' metrics to lose."""
    flags = [*map(str, arguments("sft")), "--save-every", "2"]
    program(*flags, "--out", "straight")
    program(*flags, "--out", "half", "--steps", 2)
    out = tmp_path / "broken"
    resumed = [*flags, "--out", "broken", "--resume"]
    for point in range(1, 12):
        shutil.copytree(tmp_path / "half", out)
        assert not survives(lambda: train.main(resumed), out, point)
        program(*resumed)
        assert_same_run(tmp_path / "straight", out)
        shutil.rmtree(out)


def test_a_half_written_state_is_skipped(arguments, program, tmp_path):
    flags = (*arguments("sft"), "--save-every", 1)
    program(*flags, "--out", "straight")
    program(*flags, "--out", "broken", "--steps", 4)
    newest = tmp_path / "broken" / "state" / "step-00000004/shard-00000/model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    killed = tmp_path / "broken/state/step-00000005.tmp"
    shutil.copytree(newest.parent.parent, killed)
    out = program(*flags, "--out", "broken", "--resume")
    assert re.search(
        r"state skipped: .*step-00000004/shard-00000/model.safetensors is damaged", out
    )
    assert not killed.exists()
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def newest_state(out):
    return max((path.name for path in states(out / "state")), default=None)


def test_ctrl_c_sigterm_and_sudden_death_lose_nothing_that_was_saved(small, tmp_path):
    """Real processes: SIGINT and SIGTERM save the step in progress and leave with a line, SIGKILL
    does not. All are resumed, and the result is that of a run without any of it."""
    command = [sys.executable, ROOT / "train.py", *map(str, small), "--epochs", "60"]
    settings = dict(cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for kill, status, resume in [
        (signal.SIGINT, 130, []),
        (signal.SIGTERM, 143, ["--resume"]),
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
        if kill != signal.SIGKILL:
            first, second = err.decode().strip().splitlines()
            assert first == "finishing this step to save it; once more ends at once"
            line = r"interrupted after step (\d+), which is saved; --resume goes on from there"
            done = int(re.fullmatch(line, second)[1])
            assert newest_state(tmp_path / "broken") == f"step-{done:08d}"
            assert len(metrics(tmp_path / "broken")) == done
    subprocess.run([*command, "--out", "broken", "--resume"], check=True, **settings)
    subprocess.run([*command, "--out", "straight"], check=True, **settings)
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_a_run_that_ended_before_its_first_state_starts_again(arguments, program, tmp_path):
    flags = arguments("sft")
    program(*flags, "--out", "o")
    for name in ("state", "model"):
        shutil.rmtree(tmp_path / "o" / name)
    program(*flags, "--out", "o", "--resume")
    assert [line["step"] for line in metrics(tmp_path / "o")] == [1, 2, 3, 4, 5, 6]


def test_a_longer_run_goes_on_from_a_shorter_one(arguments, program, tmp_path):
    """With what it lacks of the reference's log-probabilities, too."""
    flags = arguments("dpo")
    program(*flags, "--out", "straight")
    program(*flags, "--out", "longer", "--steps", 2)
    assert len((tmp_path / "longer/reference/data.jsonl").read_text().splitlines()) == 1 + 4
    program(*flags, "--out", "longer", "--resume")
    assert_same_run(tmp_path / "straight", tmp_path / "longer")


# Mistakes


def test_a_directory_that_holds_a_run(program, small):
    program(*small, "--steps", 2)
    message = program.fails(*small, "--steps", 2)
    assert "runs/janus-7b already holds a run: --resume continues it, --out starts" in message
    assert "x holds no run to resume" in program.fails(*small, "--resume", "--out", "x")


def test_another_recipe_is_not_resumed_and_what_differs_is_named(program, small):
    program(*small, "--steps", 2)
    message = program.fails(*small, "--steps", 3, "--resume", "--seed", 7, "--weight-decay", 0.1)
    assert "step-00000002 is of another run: --weight-decay was 0.0 and is 0.1, " in message
    assert "--seed was 42 and is 7; choose another --out" in message


def test_other_data_of_the_same_lengths_is_not_resumed(program, small, tmp_path):
    program(*small, "--steps", 2)
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text().replace("one", "two"))
    message = program.fails(*small, "--resume")
    assert "step-00000002 is of another run: the data differs; choose" in message


def test_another_start_is_not_resumed(arguments, program, tmp_path):
    flags = arguments("sft")
    program(*flags, "--steps", 2, "--save-every", 1)
    save_tiny(tmp_path / "start", tmp_path / "start", scale=2)
    message = program.fails(*flags, "--resume")
    assert "is of another run: the start model differs; choose another --out" in message


def test_a_run_is_not_resumed_to_fewer_steps(arguments, program):
    program(*arguments("sft"), "--steps", 3)
    message = program.fails(*arguments("sft"), "--steps", 2, "--resume")
    assert "state/step-00000003 is further than --steps 2" in message


def test_a_run_that_died_while_its_reference_was_computed_is_resumed(arguments, program, tmp_path):
    flags = arguments("dpo")
    program(*flags, "--out", "straight")
    (tmp_path / "o").mkdir()
    shutil.copytree(tmp_path / "straight/reference", tmp_path / "o/reference")
    program(*flags, "--out", "o", "--resume")
    assert_same_run(tmp_path / "straight", tmp_path / "o")


def test_another_reference_is_not_resumed(arguments, program, tmp_path):
    flags = arguments("dpo")
    program(*flags, "--steps", 2, "--save-every", 1)
    other = save_tiny(tmp_path / "other", tmp_path / "start", scale=2)
    more = ("--resume", "--reference", other, "--reference-logps", tmp_path / "logps")
    message = program.fails(*flags, "--steps", 3, *more)
    assert "is of another run: the reference differs; choose another --out" in message
