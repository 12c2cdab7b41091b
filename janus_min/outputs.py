"""Responses on the disk while they are generated, and the file that they are in the end.

    OUTPUT.partial-R    what rank R has finished: the settings, then one line for each response, or
                        for the rewards of a prompt's responses
    OUTPUT              all responses in the order of the input; it has its name when it is whole

A run that was killed goes on from the partial files, with any number of ranks. As a response
depends on its prompt, its number and the settings alone, the file in the end is that of a run
that nobody disturbed.
"""

import json
from pathlib import Path
from typing import NamedTuple

from janus_min.errors import UserError
from janus_min.files import Writer, as_line

Reward = float | None  # None: too long for the reward model


class Response(NamedTuple):
    """What was generated for a prompt."""

    ids: list[int]  # without EOS
    stop: str  # as in `engine.Completion`


class Partial:
    """The unfinished output, seen from one rank."""

    def __init__(self, output: Path, settings: dict, rank: int = 0):
        """Reads what an earlier run has left. Raises UserError if it was made with other settings.

        No rank may write before all of them have read.
        """
        self.output, self.settings = output, settings
        self.path = _partial(output, rank)
        self.responses: dict[tuple[int, int], Response] = {}  # (prompt, sample), both from 0
        self.rewards: dict[int, list[Reward]] = {}  # by prompt
        self.file = None
        self.read()

    def read(self) -> None:
        """Reads what all ranks have finished."""
        for path in partials(self.output):
            try:
                before, *records = self._lines(path) or [self.settings]
                self._require_same(path, before)
                for record in records:
                    self._take(record)
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path} is damaged; remove it and start anew") from None

    def _lines(self, path: Path) -> list[dict]:
        """The records of a file, but for what a kill has left of the last one."""
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def _require_same(self, path: Path, before: dict) -> None:
        """Raises UserError unless a file was begun with this run's settings."""
        own = self.settings
        changes = "; ".join(
            f"{name} was {before.get(name)!r}, is {own.get(name)!r}"
            for name in {**before, **own}
            if before.get(name) != own.get(name)
        )
        if changes:
            raise UserError(
                f"{path} was begun with other settings ({changes}): give these, or another "
                "--output, or remove it"
            )

    def _take(self, record: dict) -> None:
        if "rewards" in record:
            self.rewards[record["prompt"]] = record["rewards"]
        else:
            key = record["prompt"], record["sample"]
            self.responses[key] = Response(record["ids"], record["stop"])

    def open(self) -> None:
        """Begins to write, behind the last whole line that is there."""
        self.file = self.path.open("ab")
        content = self.path.read_bytes()
        self.file.truncate(content.rfind(b"\n") + 1)
        if b"\n" not in content:
            self._write(self.settings)

    def _write(self, record: dict) -> None:
        self.file.write(as_line(record))
        self.file.flush()

    def add(self, prompt: int, sample: int, response: Response) -> None:
        """Keeps a response, before anything else is done with it."""
        self.responses[prompt, sample] = response
        self._write({"prompt": prompt, "sample": sample, **response._asdict()})

    def add_rewards(self, prompt: int, rewards: list[Reward]) -> None:
        """Keeps the rewards of all responses to a prompt."""
        self.rewards[prompt] = rewards
        self._write({"prompt": prompt, "rewards": rewards})

    def close(self) -> None:
        """Ends writing."""
        self.file.close()


def finish(output: Path, records: list[dict], ids: list[str]) -> None:
    """Writes the output, and removes what it was made of.

    JSONL, or where its name ends in .json the format of the official scripts, an object of the
    records by the ids of their prompts.
    """
    writer = Writer(output)
    if output.suffix == ".json":
        content = json.dumps(dict(zip(ids, records)), indent=2, ensure_ascii=False) + "\n"
        writer.file.write(content.encode("utf-8", "replace"))
    else:
        for record in records:
            writer.add(record)
    writer.close()
    for path in partials(output):
        path.unlink()


def _partial(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.partial-{rank}")


def partials(output: Path) -> list[Path]:
    """The files that all ranks have left, and a run that was killed at its very end."""
    found = output.parent.glob(f"{_literal(output.name)}.partial-*")
    return sorted(path for path in found if path.name.rpartition("-")[2].isdigit())


def _literal(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
