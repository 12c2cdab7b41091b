"""Kills this process's work between any two of its file operations, and within a write."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from janus_min import directories

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def survives(work: Callable[[], object], folder: Path, point: int) -> bool:
    """Does `work` in a process of its own, which dies by SIGKILL at the point number `point`,
    counted from 1. Returns whether it got to its end.

    There is a point before every operation that changes something in `folder`, one behind the
    emptying of a file that is opened for writing, and one within and one behind the writing of
    safetensors.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            _watch(folder, point)
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return not os.WIFSIGNALED(status)


def _watch(folder: Path, point: int) -> None:
    """Makes this process die at the point."""
    count = 0

    def passes() -> bool:
        """Counts one more point. Returns whether it is the one to die at."""
        nonlocal count
        count += 1
        return count == point

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        flags = arguments[2] or 0 if event == "open" else 0
        if not (flags & (os.O_WRONLY | os.O_RDWR) or event in CHANGES):
            return
        # shutil.rmtree names files relative to an open directory.
        relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if not relative and str(folder) not in os.path.abspath(str(arguments[0])):
            return
        if passes():
            die()
        if flags & os.O_TRUNC and passes():
            Path(arguments[0]).write_bytes(b"")
            die()

    whole = directories.save_file

    def save_file(tensors: dict, path: Path, metadata: dict) -> None:
        if passes():
            die()
        whole(tensors, path, metadata=metadata)
        if passes():
            os.truncate(path, path.stat().st_size // 2)
            die()
        if passes():
            die()

    directories.save_file = save_file
    sys.addaudithook(hook)
