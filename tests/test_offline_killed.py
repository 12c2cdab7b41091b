"""Runs over a file of prompts that die, in one process or several, and go on to the same output."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import generate
from janus_min import cli, outputs
from janus_min.parallel import run_rank
from tests.kill import survives
from tests.programs import ROOT, Program, environment
from tests.ranks import on_ranks
from tests.runs import write_rows
from tests.test_offline import flags, save_models

PROMPTS = [{"prompt": f"What is {name}?"} for name in ("rain", "tea", "snow", "a kettle", "wind")]
PROMPTS.insert(3, {"prompt": "word " * 70})  # no room for a response
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def models(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, world)
    return folder


@pytest.fixture
def folder(tmp_path, models, monkeypatch):
    """The folder that a run works in, with the models and the prompts."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_rows(tmp_path / "in.jsonl", PROMPTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(monkeypatch, capsys, folder):
    return Program(generate.main, monkeypatch, capsys)


@pytest.fixture
def undisturbed(program, folder):
    """The bytes that a run with these flags writes."""

    def run(*arguments):
        program(*arguments, "--output", "whole.jsonl")
        return (folder / "whole.jsonl").read_bytes()

    return run


def run_with(arguments):
    """`generate.py ARGUMENTS`, as work of a process of its own."""

    def work():
        sys.argv = ["generate.py", *map(str, arguments)]
        cli.run(lambda: run_rank(generate.main))

    return work


def main_with(arguments):
    """The same, but for its messages and its end."""

    def work():
        sys.argv = ["generate.py", *map(str, arguments)]
        generate.main()

    return work


def slow(work, seconds=0.02):
    """The same with pauses behind every line of a partial file."""

    def paced():
        sound = outputs.Partial._write

        def write(partial, record):
            sound(partial, record)
            time.sleep(seconds)

        outputs.Partial._write = write
        work()

    return paced


def dying(work, rank, lines):
    """The same; that rank dies within the writing of a line, behind so many whole ones."""

    def doomed():
        sound, left = outputs.Partial._write, [lines]

        def write(partial, record):
            if partial.path.name.endswith(f"-{rank}") and left[0] == 0:
                os.write(partial.file.fileno(), outputs.as_line(record)[:-9])
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            sound(partial, record)

        outputs.Partial._write = write
        work()

    return doomed


def start(work, folder):
    """Starts it in a process of its own, whose messages go to files. Returns its pid."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    status = 1
    try:
        work()
    except SystemExit as ending:
        status = ending.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end_after(lines, child, path, number):
    """Sends a signal when a file has so many more lines. Returns the exit status."""
    goal, deadline = lines_of(path) + lines, time.monotonic() + 60
    while lines_of(path) < goal and time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("scored", [False, True])
def test_killed_again_and_again_the_output_is_the_same(folder, undisturbed, scored):
    arguments = flags(n=3, scored=scored)
    wanted, deaths = undisturbed(*flags("whole.jsonl", n=3, scored=scored)), 0
    while not (folder / "out.jsonl").exists():
        child = start(slow(run_with(arguments)), folder)
        status = end_after(4, child, folder / "out.jsonl.partial-0", signal.SIGKILL)
        assert status in (0, -signal.SIGKILL), (folder / "stderr").read_text()
        deaths += status != 0
        assert deaths < 20
    assert deaths >= 3
    assert (folder / "out.jsonl").read_bytes() == wanted
    assert list(folder.glob("out.jsonl?*")) == []


@pytest.mark.parametrize(("name", "changes"), [("out.jsonl", {"scored": True}), ("out.json", {})])
def test_killed_between_any_two_changes_it_goes_on(folder, program, name, changes):
    """Two ranks that died have left a partial file each."""
    arguments = flags(name, n=1 if name == "out.json" else 2, **changes)
    program(*arguments)
    wanted, point = (folder / name).read_bytes(), 0
    (folder / name).unlink()
    on_ranks(2, dying(run_with(arguments), 1, 3))
    left = {path: path.read_bytes() for path in folder.glob(f"{name}.partial-*")}
    assert len(left) == 2
    while True:
        point += 1
        for path in folder.glob("out.json*"):
            path.unlink()
        for path, content in left.items():
            path.write_bytes(content)
        if survives(main_with(arguments), folder, point):
            break
        if not (folder / name).exists():
            program(*arguments)
            assert list(folder.glob(f"{name}?*")) == []
        assert (folder / name).read_bytes() == wanted
    assert point > 6
    assert (folder / name).read_bytes() == wanted
    assert list(folder.glob(f"{name}?*")) == []


@pytest.mark.parametrize("scored", [False, True])
def test_ranks_write_what_one_process_writes(folder, undisturbed, scored):
    arguments = flags(n=3, scored=scored)
    wanted = undisturbed(*flags("whole.jsonl", n=3, scored=scored))
    ends = on_ranks(2, run_with(arguments))
    assert [end.status for end in ends] == [0, 0], ends
    assert (folder / "out.jsonl").read_bytes() == wanted
    assert list(folder.glob("out.jsonl?*")) == []
    assert "18 responses to 6 prompts in out.jsonl" in ends[0].out and ends[1].out == ""


def test_ranks_that_have_nothing_to_do(folder, undisturbed):
    write_rows(folder / "in.jsonl", PROMPTS[:2])
    wanted = undisturbed(*flags("whole.jsonl", scored=True))
    ends = on_ranks(3, run_with(flags(scored=True)))
    assert [end.status for end in ends] == [0, 0, 0], ends
    assert (folder / "out.jsonl").read_bytes() == wanted


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_goes_on(folder, undisturbed, first, then):
    arguments = flags(n=3, scored=True)
    wanted = undisturbed(*flags("whole.jsonl", n=3, scored=True))
    for lines in (3, 4):
        on_ranks(first, dying(run_with(arguments), first - 1, lines))
    kept = sum(map(lines_of, folder.glob("out.jsonl.partial-*"))) - first
    assert kept >= 5
    ends = on_ranks(then, run_with(arguments))
    assert [end.status for end in ends] == [0] * then, ends
    assert re.search(r"\d+ of 18 responses are there already", ends[0].out)
    assert (folder / "out.jsonl").read_bytes() == wanted
    assert list(folder.glob("out.jsonl?*")) == []


def test_a_mistake_is_said_once_by_all_ranks(folder):
    ends = on_ranks(2, run_with(flags(input="nowhere.jsonl")))
    assert [end.status for end in ends] == [2, 2]
    assert ends[0].err.startswith("error: ") and ends[0].err.count("\n") == 1
    assert ends[1].err == ""


@pytest.mark.parametrize("scored", [False, True])
def test_after_ctrl_c_the_same_command_goes_on(folder, undisturbed, program, scored):
    arguments = flags(n=3, scored=scored)
    wanted = undisturbed(*flags("whole.jsonl", n=3, scored=scored))
    child = start(slow(run_with(arguments)), folder)
    lines = 22 if scored else 5  # among the rewards, or among the responses
    assert end_after(lines, child, folder / "out.jsonl.partial-0", signal.SIGINT) == 130
    line = "\ninterrupted; what is finished is kept: the same command goes on\n"
    assert (folder / "stderr").read_text() == line
    assert not (folder / "out.jsonl").exists()
    out = program(*arguments)
    assert "of 18 responses are there already" in out
    assert (folder / "out.jsonl").read_bytes() == wanted


def test_ctrl_c_ends_all_ranks_with_one_line(folder, undisturbed):
    arguments = flags(n=3)
    wanted = undisturbed(*flags("whole.jsonl", n=3))

    def work():
        """The terminal sends the signal to all of them."""
        sound, left = outputs.Partial._write, [3]

        def write(partial, record):
            sound(partial, record)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

        outputs.Partial._write = write
        run_with(arguments)()

    ends = on_ranks(2, work)
    assert [end.status for end in ends] == [130, 130], ends
    assert ends[0].err == "\ninterrupted; what is finished is kept: the same command goes on\n"
    assert ends[1].err == ""
    assert sum(map(lines_of, folder.glob("out.jsonl.partial-*"))) == 6
    assert on_ranks(2, run_with(arguments))[0].status == 0
    assert (folder / "out.jsonl").read_bytes() == wanted


def test_under_torchrun_itself(folder, undisturbed):
    """It takes --n for an abbreviation of a flag of its own, but for the two dashes."""
    wanted = undisturbed(*flags("whole.jsonl", n=3))
    command = [*TORCHRUN, "--", ROOT / "generate.py", *flags(n=3)]
    settings = dict(cwd=folder, env=environment(CUDA_VISIBLE_DEVICES=""), text=True)
    done = subprocess.run([*map(str, command)], capture_output=True, **settings)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.jsonl").read_bytes() == wanted
    assert done.stdout.count("18 responses to 6 prompts in out.jsonl") == 1
