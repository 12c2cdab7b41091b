"""Runs the programs as a user does: in this process for their messages, as processes of their own
where signals or a fresh interpreter matter."""

import os
import sys
from pathlib import Path

import pytest

from janus_min.cli import run

ROOT = Path(__file__).parent.parent


class Program:
    """Calls `python NAME.py ARGUMENTS` without the cost of a new interpreter."""

    def __init__(self, main, monkeypatch, capsys):
        self.main, self.monkeypatch, self.capsys = main, monkeypatch, capsys

    def __call__(self, *arguments) -> str:
        """Runs the program, which must succeed. Returns what it printed."""
        status, out, err = self._run(arguments)
        assert status == 0, err
        return out

    def fails(self, *arguments) -> str:
        """Runs the program, which must end in one line on stderr and status 2. Returns the line."""
        status, _, err = self._run(arguments)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (status, err)
        return err

    def _run(self, arguments) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run(self.main)
        return exit.value.code, *self.capsys.readouterr()


def environment(**more: str) -> dict[str, str]:
    """The environment of a program in a process of its own."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | more
