"""An append-only file of what has been paid for: one JSON object per line, found again by its key.

A line is handed to the system in one piece before anything else happens with it, so that who is
killed at any moment loses nothing that was written. A line that a crash cut short at the end of the
file is taken away when the file is opened next. Each line begins with its key and the tokens that
it cost, so that opening a file of a million lines need not parse them:

    {"key": "0f3a…", "tokens": [812, 340], …}

An empty key stands for what was paid, but brought nothing.
"""

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from janus_min.errors import UserError
from janus_min.files import as_line

HEAD = re.compile(rb'\{"key": "([0-9a-f]{32}|)", "tokens": \[(\d+), (\d+)\], ')
START = b'{"key": "'
SYNC_SECONDS = 1.0  # what a power failure may take; a killed program loses nothing


class Journal:
    """The lines of one file. Any number of threads may use it, but only one program at a time."""

    def __init__(self, path: Path):
        self.path, self.lock, self.index = path, threading.Lock(), _Index()
        self.tokens = [0, 0]  # of all lines: read and written by the model
        self.lines = self.answers = 0  # answers: lines with a key
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.descriptor)
            raise UserError(f"{path} is in use: another program works in this folder") from None
        try:
            self.size = self._scan()
        except UserError:
            self.close()
            raise
        self.synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is written from here on, whatever threads still run."""
        with self.lock:
            if self.descriptor >= 0:
                os.fsync(self.descriptor)
                os.close(self.descriptor)
            self.descriptor = -1

    def add(self, key: str, tokens: tuple[int, int], **content: object) -> None:
        """Appends a line. It is in the file when this returns."""
        line = as_line({"key": key, "tokens": list(tokens), **content})
        with self.lock:
            if self.descriptor < 0:
                return  # a reply that came after the end
            try:
                rest = line
                while rest:
                    rest = rest[os.write(self.descriptor, rest) :]
            except OSError:  # such as a full disk: no half line stays behind
                os.ftruncate(self.descriptor, self.size)
                raise
            self._count(key, tokens, self.size)
            self.size += len(line)
            if time.monotonic() - self.synced > SYNC_SECONDS:
                os.fsync(self.descriptor)
                self.synced = time.monotonic()

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        with self.lock:
            if self.descriptor >= 0:
                os.fsync(self.descriptor)

    def get(self, key: str) -> dict | None:
        """The line with this key."""
        with self.lock:
            start = self.index.find(int(key[:16], 16))
        if start is None:
            return None
        line = b""
        while not line.endswith(b"\n"):
            block = os.pread(self.descriptor, 16384, start + len(line))
            end = block.find(b"\n") + 1
            line += block[:end] if end else block
            if not block:
                raise UserError(f"{self.path} was cut short while it was in use")
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self.path}, byte {start}: damaged line ({error})") from None
        return record if record["key"] == key else None

    def _count(self, key: str, tokens: tuple[int, int], start: int) -> None:
        self.lines += 1
        self.tokens = [a + b for a, b in zip(self.tokens, tokens)]
        if key:
            self.answers += 1
            self.index.add(int(key[:16], 16), start)

    def _scan(self) -> int:
        """Reads the heads of all lines, mends the end of the file. Returns its size."""
        start = 0
        for number, line in enumerate(self._lines(), start=1):
            head = HEAD.match(line)
            whole = line.endswith(b"}\n")
            if not line.endswith(b"\n"):  # the last one, cut short
                if not head or not _is_json(line):
                    start_of_ours = line.startswith(START[: len(line)]) or not line.strip(b"\0")
                    if not start_of_ours:
                        raise UserError(f"{self.path}:{number}: this is no journal of replies")
                    break
                os.write(self.descriptor, b"\n")
                line, whole = line + b"\n", True
            if not head or not whole:
                raise UserError(
                    f"{self.path}:{number}: damaged line; nothing is read beyond it, so mend or "
                    "remove this line"
                )
            self._count(head[1].decode(), (int(head[2]), int(head[3])), start)
            start += len(line)
        os.ftruncate(self.descriptor, start)
        return start

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for line in file:
                yield line
                if not line.endswith(b"\n"):
                    return  # what follows is what was mended


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class _Index:
    """Where lines begin, by the first 64 bits of their keys.

    Sorted arrays take 16 bytes per line, a dict seven times as much; the newest lines wait in a
    dict until they are worth sorting in.
    """

    def __init__(self):
        self.keys, self.starts = np.empty(0, np.uint64), np.empty(0, np.int64)
        self.recent: dict[int, int] = {}

    def add(self, key: int, start: int) -> None:
        """Notes where the line with this key begins."""
        self.recent[key] = start
        if len(self.recent) > 4096 + len(self.keys) // 16:
            self._sort_in()

    def find(self, key: int) -> int | None:
        """Where it begins; None if there is none."""
        if key in self.recent:
            return self.recent[key]
        place = int(self.keys.searchsorted(np.uint64(key), side="right")) - 1
        if place < 0 or int(self.keys[place]) != key:
            return None
        return int(self.starts[place])

    def _sort_in(self) -> None:
        keys = np.fromiter(self.recent.keys(), np.uint64, len(self.recent))
        starts = np.fromiter(self.recent.values(), np.int64, len(self.recent))
        keys, starts = np.concatenate([self.keys, keys]), np.concatenate([self.starts, starts])
        order = np.argsort(keys, kind="stable")
        self.keys, self.starts, self.recent = keys[order], starts[order], {}
