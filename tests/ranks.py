"""Several ranks on this machine: forked from this process, with the environment torchrun gives."""

import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import train
from janus_min import cli
from janus_min.parallel import run_rank


class Ended:
    """How one rank ended, and what it wrote."""

    def __init__(self, status: int, folder: Path, rank: int):
        self.status = os.waitstatus_to_exitcode(status)
        self.out, self.err = (self.read(folder / f"{rank}.{name}") for name in ("out", "err"))

    @staticmethod
    def read(path: Path) -> str:
        """What a rank wrote, but for what gloo itself says in torch 2.9."""
        lines = path.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def __repr__(self) -> str:
        return f"status {self.status}\n{self.out}\n{self.err}"


def on_ranks(size: int, work: Callable[[], object], seconds: float = 120) -> list[Ended]:
    """Does `work` on `size` ranks and returns how each ended; those that hang are killed, which is
    a failure."""
    with tempfile.TemporaryDirectory() as folder:
        folder, port = Path(folder), _free_port()
        children = [_fork(rank, size, port, folder, work) for rank in range(size)]
        ends, waiting = {}, dict(enumerate(children))
        deadline = time.monotonic() + seconds
        while waiting and time.monotonic() < deadline:
            for rank, child in list(waiting.items()):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    ends[rank] = Ended(status, folder, rank)
                    del waiting[rank]
            time.sleep(0.01)
        for child in waiting.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert not waiting, f"ranks {sorted(waiting)} hang; the others: {ends}"
        return [ends[rank] for rank in range(size)]


def train_on(size: int, *arguments: object, seconds: float = 120) -> Ended:
    """`torchrun --nproc-per-node SIZE train.py ARGUMENTS`, which must succeed. The first rank."""
    ends = on_ranks(size, program_on(*arguments), seconds)
    assert all(end.status == 0 for end in ends), ends
    return ends[0]


def program_on(*arguments: object) -> Callable[[], object]:
    """`train.py ARGUMENTS` as work for ranks."""
    words = [str(argument) for argument in arguments]
    return lambda: cli.run(lambda: run_rank(lambda: train.main(words)))


def _free_port() -> int:
    """A port that no server of another test gets before the ranks meet there: where the choice is
    left to the system, it takes one above 32,768."""
    while True:
        with socket.socket() as free:
            try:
                free.bind(("", random.SystemRandom().randrange(20_000, 32_000)))
            except OSError:
                continue
            return free.getsockname()[1]


def _fork(rank: int, size: int, port: int, folder: Path, work: Callable[[], object]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        work()
        status = 0
    except SystemExit as ending:
        status = ending.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
