"""Ctrl-C and SIGTERM as requests: finish what was begun, save, leave."""

import os
import signal
import sys
from types import FrameType


class StoppedError(Exception):
    """A run was asked to end, and ended in good order."""

    shared = True  # by all ranks

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number  # what a shell reports for a program ended by a signal


class Interruptible:
    """While it is entered, the first SIGINT or SIGTERM is kept in `received`, to be asked for.

    The second one acts as if this were not here.
    """

    def __init__(self, promise: str = "finishing this step to save it; once more ends at once"):
        self.received: int | None = None
        self.promise = promise  # what is said when the signal comes

    def __enter__(self) -> "Interruptible":
        self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\n{self.promise}", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
