"""Kills this process's work between any two of its file operations."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def survives(work: Callable[[], object], folder: Path, point: int) -> bool:
    """Does `work` in a process of its own, which dies by SIGKILL before the file operation number
    `point` that changes something in `folder`, counted from 1. Returns whether it got to its end.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wa"
            writes |= event == "open" and isinstance(arguments[2], int) and arguments[2] & 3 != 0
            if (event in CHANGES or writes) and str(folder) in os.path.abspath(str(arguments[0])):
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return not os.WIFSIGNALED(status)
