"""Commands that are run some at a time, each after those that it needs, and none twice.

A stage that has succeeded leaves a small file that says so and records its command. Before a stage
is begun such a file says that, too: what is found later and has none was not made here, and stays
untouched. Another command for the same stage, or another recipe, runs it anew, and so does another
one for what it needs.

    FOLDER/NAME.json   in the folder `done`: what is recorded
    FOLDER/NAME.log    in the folder `logs`: what the stage printed
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from janus_min.errors import UserError
from janus_min.files import as_line, read_json, replace_file, text_hash
from janus_min.interrupt import Interruptible, StoppedError
from janus_min.progress import clock

JUDGE_URL = "{judge}"  # in commands: where the judge is served, which may be elsewhere next time
UNFINISHED = r"\.(partial-\d+|(\d+\.)?tmp)"  # how names of a file's unfinished parts end
PAUSE = 0.1  # seconds between looks at what is running


@dataclass(frozen=True)
class Stage:
    """One command of Python, and what it makes."""

    name: str  # GROUP/NAME, or NAME alone
    command: tuple[str, ...]  # a program and its flags, as behind `python`
    makes: Path | None = None  # a file or a folder that the command wants to be new
    needs: tuple[str, ...] = ()  # names of the stages that must have ended before
    resumes: bool = False  # whether --resume goes on with what was interrupted
    last: str = ""  # a file in the folder that it makes, without which it has not ended
    about: str = ""  # what else than its command decides what it makes, such as a recipe

    def file(self, root: Path, kind: str) -> Path:
        """Where its record (kind "done") or its log ("logs") is."""
        group, _, name = self.name.rpartition("/")
        return root / group / kind / f"{name}.{'json' if kind == 'done' else 'log'}"


class Runner:
    """Runs stages: `jobs` at a time, those that come first in the list first."""

    def __init__(
        self,
        stages: list[Stage],
        root: Path,
        url: str = "",
        jobs: int = 2,
        say: Callable[[str], None] = print,
    ):
        self.stages, self.root, self.url, self.jobs, self.say = stages, root, url, jobs, say
        self.hashes: dict[str, str] = {}  # of what decides each stage, and of all that it needs
        for stage in stages:
            before = [self.hashes[name] for name in stage.needs]
            words = [re.sub(rf"^{re.escape(str(root))}/", "DIR/", w) for w in stage.command[1:]]
            own = [Path(stage.command[0]).name, *words, stage.about]
            self.hashes[stage.name] = text_hash(repr((own, before)))
        self.running: dict[str, tuple[Stage, subprocess.Popen, float]] = {}
        self.asked: set[subprocess.Popen] = set()  # to end

    def run(self) -> None:
        """Runs all that has not been done. Raises UserError if a stage fails, and StoppedError
        after a signal; what runs beside it is asked to end, and waited for.
        """
        done = {stage.name for stage in self.stages if self.is_done(stage)}
        waiting = [stage for stage in self.stages if stage.name not in done]
        if done:
            self.say(f"done before: {len(done)} of {len(self.stages)} stages")
        with locked(self.root) as lock, Ending(self) as interrupt:
            for stage in waiting:  # said before minutes of work
                self.require_own(stage)
            try:
                while waiting or self.running:
                    ready = [stage for stage in waiting if done.issuperset(stage.needs)]
                    for stage in ready[: self.jobs - len(self.running)]:
                        waiting.remove(stage)
                        self.start(stage, lock)
                    time.sleep(PAUSE)
                    if interrupt.received:
                        raise StoppedError("stopped: the same command goes on", interrupt.received)
                    done |= self.ended()
            finally:
                self.end()

    def shown(self, command: tuple[str, ...]) -> str:
        """A command as it can be copied."""
        return shlex.join(("python", *(word.replace(JUDGE_URL, self.url) for word in command)))

    def recorded(self, stage: Stage) -> dict:
        """What is recorded of a stage; nothing if it was of another command or recipe."""
        path = stage.file(self.root, "done")
        try:
            found = read_json(path) if path.is_file() else {}
        except UserError as error:
            raise UserError(f"{error}; remove it, and {stage.makes or 'nothing else'}") from None
        return found if found.get("hash") == self.hashes[stage.name] else {}

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage has succeeded, and what it made is still there."""
        there = stage.makes is None or (stage.makes / stage.last).exists()
        return there and bool(self.recorded(stage).get("done"))

    def require_own(self, stage: Stage) -> None:
        """Raises UserError if something is in the stage's place that was not made by it."""
        there = stage.makes and stage.makes.exists()
        if there and not stage.file(self.root, "done").is_file():
            raise UserError(
                f"{stage.makes} is in the way: {stage.name} makes it, and has not been run here; "
                "move it elsewhere, or give another --out"
            )

    def start(self, stage: Stage, lock: int) -> None:
        """Begins a stage, or goes on with it."""
        command, record = stage.command, stage.file(self.root, "done")
        goes_on = bool(self.recorded(stage))
        if goes_on and stage.resumes and (stage.makes / "recipe.json").is_file():
            command = (*command, "--resume")
        elif stage.makes:
            clear(stage.makes, parts=not goes_on)
        log = stage.file(self.root, "logs")
        for path in filter(None, (record, log, stage.makes)):
            path.parent.mkdir(parents=True, exist_ok=True)
        command = tuple(word.replace(JUDGE_URL, self.url) for word in command)
        text = self.shown(command)
        about = {"command": text, "hash": self.hashes[stage.name], "done": False}
        replace_file(record, as_line(about))
        self.say(f"{stage.name}: {text}")
        with log.open("ab" if goes_on else "wb") as file:
            file.write(f"$ {text}\n".encode())
            file.flush()
            process = subprocess.Popen(
                (sys.executable, *command),
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C comes to us alone
                pass_fds=(lock,),  # it holds while the stage runs, even if we are killed
            )
        self.running[stage.name] = (stage, process, time.monotonic())

    def ended(self) -> set[str]:
        """The names of the stages that have succeeded by now. Raises UserError if one failed."""
        found = set()
        for name, (stage, process, began) in list(self.running.items()):
            if process.poll() is None or (process.returncode and process in self.asked):
                continue  # it runs, or ended because it was asked to
            del self.running[name]
            if process.returncode:
                raise UserError(self.complaint(stage, process.returncode))
            record = stage.file(self.root, "done")
            seconds = time.monotonic() - began
            now = {"done": True, "seconds": round(seconds, 1)}
            replace_file(record, as_line(read_json(record) | now))
            found.add(name)
            self.say(f"{name}: done in {clock(seconds)}")
        return found

    def complaint(self, stage: Stage, status: int) -> str:
        """One line about a stage that failed."""
        log = stage.file(self.root, "logs")
        how = f"status {status}" if status > 0 else f"signal {-status}"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines[1:]) if line.strip()), "")
        said = f" ({last.strip().removeprefix('error: ')})" if last else ""
        command = self.shown(stage.command)
        return f"{stage.name} ended with {how}{said}; its log is {log}, its command: {command}"

    def ask_to_end(self) -> None:
        """Asks all that is running to end, once: train.py takes the second time for "at once"."""
        for _, process, _ in [*self.running.values()]:
            if process not in self.asked:
                self.asked.add(process)
                process.terminate()

    def end(self) -> None:
        """Ends all that is running."""
        self.ask_to_end()
        for _, process, _ in self.running.values():
            process.wait()
        self.running.clear()


class Ending(Interruptible):
    """The same for stages: they are asked to end the moment a signal comes, so that they do even if
    the second one ends us at once."""

    def __init__(self, runner: Runner):
        super().__init__("ending what is running; once more ends at once")
        self.runner = runner

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.runner.ask_to_end()  # first: behind the next line the second signal ends us
        super()._note(number, frame)


def clear(path: Path, parts: bool) -> None:
    """Removes what an earlier run of a stage left, with `parts` of unfinished files, too."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    for part in path.parent.glob("*") if parts else ():
        if re.fullmatch(re.escape(path.name) + UNFINISHED, part.name):
            part.unlink()


@contextmanager
def locked(root: Path) -> Iterator[int]:
    """Holds the folder for this run and the stages that it starts; gives the lock's descriptor.
    Raises UserError if another one holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(
            f"{root} is in use: another run, or a stage of one, goes on there"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
