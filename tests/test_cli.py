"""Flags out of dataclasses, and how programs end."""

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.errors import UserError, require
from janus_min.interrupt import StoppedError
from janus_min.progress import Progress, clock
from tests.programs import environment


@dataclass(frozen=True)
class Settings:
    """An example."""

    rate: float = 0.5  # how fast, in % of something
    steps: int | None = None  # how far
    where: Path | None = None  # a place
    loud: bool = False  # whether it makes a noise
    shares: tuple[float, ...] | None = None  # of several things


def parsed(*arguments):
    parser = Parser("An example.")
    add_fields(parser, Settings)
    return given_fields(parser.parse_args(arguments), Settings)


def test_a_flag_for_each_field_and_only_what_was_given():
    assert parsed() == {}
    assert parsed("--rate", "2", "--where", "x") == {"rate": 2.0, "where": Path("x")}
    assert parsed("--steps", "3", "--loud") == {"steps": 3, "loud": True}
    assert parsed("--shares", "0.5", "2") == {"shares": (0.5, 2.0)}
    assert parsed("--no-loud") == {"loud": False}  # unlike `type=bool`, for which "False" is true


def test_help_is_the_comment_behind_the_field(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--rate X how fast, in % of something (0.5)" in text
    assert "--loud, --no-loud whether it makes a noise" in text
    assert "--shares X [X ...] of several things" in text


@pytest.mark.parametrize("wrong", [("--rat", "1"), ("--rate", "x"), ("--steps",), ("more",)])
def test_wrong_flags_are_user_errors(wrong):
    with pytest.raises(UserError, match=r"\(see --help\)"):
        parsed(*wrong)


def test_require():
    require(True, Settings(), "rate", "anything")
    with pytest.raises(UserError, match="--rate is nan, must be at least 1"):
        require(False, Settings(rate=float("nan")), "rate", "at least 1")


@pytest.mark.parametrize(
    ("ending", "status", "line"),
    [
        (None, 0, ""),
        (UserError("a.jsonl:3: no"), 2, "error: a.jsonl:3: no\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (StoppedError("stopped after step 3", 15), 143, "stopped after step 3\n"),
        (FileNotFoundError(2, "No such file", "a/b"), 2, "error: a/b: No such file\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
    ],
)
def test_how_programs_end(capsys, ending, status, line):
    def main():
        if ending:
            raise ending

    with pytest.raises(SystemExit) as exit:
        run(main)
    assert exit.value.code == status and capsys.readouterr().err == line


def test_a_reader_that_leaves_ends_the_program_but_not_as_a_success():
    """`python program.py | head -1`: the work was not done, and there is no traceback."""
    code = (
        "from janus_min.cli import run\n"
        "def main():\n"
        "    for _ in range(100000): print('a line that is read by nobody')\n"
        "run(main)\n"
    )
    command = f'{sys.executable} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], env=environment(CODE=code), capture_output=True, text=True
    )
    assert done.returncode == 141 and done.stderr == ""


def test_a_defect_is_not_dressed_up_as_a_users_mistake():
    def main():
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run(main)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_rewrites_one_line_in_a_terminal_and_prints_lines_elsewhere(monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stdout", stream)
        progress = Progress(3, "tokens")
        for done in (1, 2, 3):
            progress.printed = 0.0  # as if long ago
            progress.update(done, 100, f"loss {done}.0")
        progress.close()
        progress.close()  # which has nothing left to do
        text = stream.getvalue()
        assert text.endswith("\n") and "step 3/3  loss 3.0  " in text
        assert " tokens/s  ETA 0:00" in text
        assert text.count("\n") == (1 if stream.isatty() else 3)
        assert text.count("\r\x1b[K") == (3 if stream.isatty() else 0)


def test_progress_is_not_printed_for_every_step(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    progress = Progress(1000, "tokens")
    for done in range(1, 1001):
        progress.update(done, 1, "")
    assert 2 <= stream.getvalue().count("\n") <= 4  # the first, the last


def test_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
