"""Commands some at a time: their order, what is not run again, what is gone on with, and failures.

The commands are tiny programs that note in a file when they begin and end.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_min.errors import UserError
from janus_min.stages import JUDGE_URL, Runner, Stage, locked
from tests.programs import environment

# OUT [--seconds S] [--status N] [--resume] …: notes what it does in `journal`, then writes OUT.
PROGRAM = """
import pathlib, sys, time
out, *rest = sys.argv[1:]
flags = dict(zip(rest[::2], rest[1::2]))
note = lambda word: open("journal", "a").write(f"{word} {pathlib.Path(out).stem}\\n")
note("resume" if "--resume" in rest else "begin")
folder = pathlib.Path(out)
if "--recipe" in flags:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text("{}")
time.sleep(float(flags.get("--seconds", 0)) * ("--resume" not in rest))
print("what it says", rest)
if "--status" in flags:
    sys.exit("error: it is broken")
assert "--recipe" in flags or not folder.exists(), "it is not new"
folder.is_dir() or folder.write_text("made")
note("end")
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def stage(name: str, *flags: object, needs: tuple = (), **more: bool) -> Stage:
    """A stage that makes OUT/NAME."""
    out = f"out/{name}"
    return Stage(name, ("program.py", out, *map(str, flags)), Path(out), needs, **more)


def journal() -> list[str]:
    path = Path("journal")
    return path.read_text().splitlines() if path.exists() else []


def run(stages: list[Stage], jobs: int = 2, url: str = "") -> list[str]:
    """Runs them. Returns what was said."""
    said = []
    Runner(stages, Path("out"), url, jobs, said.append).run()
    return said


def test_each_comes_after_what_it_needs_and_the_first_ones_first(home):
    chain = [stage("c", needs=("b",)), stage("d")]
    run([stage("a"), stage("b", needs=("a",)), *chain], jobs=1)
    assert journal() == [f"{word} {name}" for name in "abcd" for word in ("begin", "end")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_at_a_time(home, jobs):
    run([stage(name, "--seconds", 0.3 * jobs**3) for name in "abc"], jobs)
    running = most = 0
    for line in journal():
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == jobs and running == 0


def test_every_command_is_said_in_full_with_the_time_it_took(home):
    one = Stage("one/a", ("program.py", "out/a b", "--url", JUDGE_URL), Path("out/a b"))
    first, last = run([one], url="http://here")
    assert first == "one/a: python program.py 'out/a b' --url http://here"
    assert re.fullmatch(r"one/a: done in 0:0\d", last)
    log = Path("out/one/logs/a.log").read_text().splitlines()
    assert log == [
        "$ python program.py 'out/a b' --url http://here",
        "what it says ['--url', 'http://here']",
    ]
    record = json.loads(Path("out/one/done/a.json").read_text())
    assert record["command"] == first.removeprefix("one/a: ") and record["done"]


def test_what_is_done_is_not_run_again_wherever_the_judge_is(home):
    stages = [stage("a", "--url", JUDGE_URL), stage("b", needs=("a",))]
    run(stages, url="http://here")
    before = journal()
    assert run(stages, url="http://there") == ["done before: 2 of 2 stages"]
    assert journal() == before


def test_the_same_folder_by_another_name_is_the_same(home):
    run([stage("a")])
    whole = home / "out"
    again = Stage("a", ("program.py", str(whole / "a")), whole / "a")
    Runner([again], whole, say=lambda line: None).run()
    assert journal() == ["begin a", "end a"]


def test_another_command_runs_again_with_all_that_needs_it(home):
    def stages(flag: int) -> list[Stage]:
        return [stage("a", "--x", flag), stage("b", needs=("a",)), stage("c")]

    run(stages(1), jobs=1)
    assert run(stages(2), jobs=1)[0] == "done before: 1 of 3 stages"
    assert journal()[6:] == ["begin a", "end a", "begin b", "end b"]
    assert run(stages(2)) == ["done before: 3 of 3 stages"]


def test_another_recipe_under_the_same_command_runs_again(home):
    run([stage("a", about="ten epochs")])
    assert run([stage("a", about="ten epochs")]) == ["done before: 1 of 1 stages"]
    assert "done before" not in "".join(run([stage("a", about="five epochs")]))


def test_what_was_removed_is_made_again(home):
    run([stage("a"), stage("b")], jobs=1)
    Path("out/a").unlink()
    run([stage("a"), stage("b")])
    assert journal()[4:] == ["begin a", "end a"]


def test_a_damaged_record_says_what_to_remove(home):
    run([stage("a")])
    record = Path("out/done/a.json")
    record.write_text("{")
    with pytest.raises(UserError, match=r"a.json is damaged: .*; remove it, and out/a$"):
        run([stage("a")])
    record.unlink()
    Path("out/a").unlink()
    run([stage("a")])


def test_what_was_not_made_here_stays(home):
    Path("out").mkdir()
    Path("out/b").write_text("mine")
    with pytest.raises(UserError) as error:
        run([stage("a"), stage("b")])
    assert str(error.value) == (
        "out/b is in the way: b makes it, and has not been run here; move it elsewhere, or give "
        "another --out"
    )
    assert Path("out/b").read_text() == "mine" and journal() == []


def test_a_failure_is_one_line_and_ends_what_runs_beside_it(home):
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run([stage("slow", "--seconds", 30), stage("bad", "--seconds", 0.3, "--status", 1)])
    assert str(error.value) == (
        "bad ended with status 1 (it is broken); its log is out/logs/bad.log, its command: "
        "python program.py out/bad --seconds 0.3 --status 1"
    )
    assert time.monotonic() - began < 25 and "end slow" not in journal()
    with pytest.raises(UserError, match="bad ended"):  # not taken for done
        run([stage("bad", "--status", 1)])


def test_a_killed_stage_says_its_signal(home):
    Path("program.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(UserError, match=r"^a ended with signal 9; its log is out/logs/a.log"):
        run([stage("a")])


def test_parts_of_a_file_stay_for_the_same_command_only(home):
    """generate.py goes on with its unfinished file by itself."""
    parts = [Path("out", name) for name in ("a.partial-0", "a.tmp", "a.12.tmp")]
    foreign = Path("out/a.txt")
    with pytest.raises(UserError):
        run([stage("a", "--status", 1)])
    for part in parts:
        part.write_text("half")
    foreign.write_text("mine")
    with pytest.raises(UserError):
        run([stage("a", "--status", 1)])
    assert all(part.exists() for part in parts)
    run([stage("a")])
    assert not any(part.exists() for part in parts) and foreign.read_text() == "mine"


STAGES = """
from pathlib import Path
from janus_min.cli import run
from janus_min.stages import Runner, Stage
def stage(name, *flags, needs=()):
    command = ("program.py", f"out/{name}", "--recipe", "yes", *flags)
    return Stage(name, command, Path(f"out/{name}"), needs, resumes=True)
stages = [stage("a"), stage("b", "--seconds", "60", needs=("a",)), stage("c", needs=("b",))]
run(Runner(stages, Path("out"), say=lambda line: print(line, flush=True)).run)
"""


def begun(name: str = "stages.py") -> subprocess.Popen:
    """The stages in a process of their own, in the middle of the second one."""
    Path(name).write_text(STAGES)
    process = subprocess.Popen(
        [sys.executable, name],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while "begin b" not in journal() or not Path("out/b/recipe.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_the_same_command_goes_on(home, number):
    process = begun()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err.strip().splitlines() == [
        "ending what is running; once more ends at once",
        "stopped: the same command goes on",
    ]
    with locked(Path("out")):
        pass  # nothing runs there any more
    done = subprocess.run([sys.executable, "stages.py"], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"done before: 1 of 3 stages" in done.stdout
    assert b"b: python program.py out/b --recipe yes --seconds 60 --resume\n" in done.stdout
    assert journal()[2:] == ["begin b", "resume b", "end b", "begin c", "end c"]


def test_two_signals_at_once_end_the_children_too(home):
    process = begun()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    deadline = time.monotonic() + 30
    while True:
        try:
            with locked(Path("out")):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "end b" not in journal()


def test_a_stage_that_outlives_its_killed_runner_keeps_the_folder(home):
    process = begun()
    process.kill()
    process.communicate()
    [child] = (
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _command(path) == "out/b" and _folder(path) == home
    )
    try:
        with pytest.raises(UserError) as error:
            run([stage("a")])
        assert str(error.value) == "out is in use: another run, or a stage of one, goes on there"
    finally:
        os.kill(child, signal.SIGTERM)


def _command(path: Path) -> str | None:
    """The first argument of a running program.py."""
    try:
        words = (path / "cmdline").read_text().split("\0")
    except OSError:
        return None
    return words[2] if len(words) > 2 and words[1] == "program.py" else None


def _folder(path: Path) -> Path:
    return Path(os.readlink(path / "cwd"))
