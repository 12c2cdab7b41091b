"""Runs stages over files: each stage reads one JSONL file and leaves another, in the same order.

    FOLDER/build.json           what the folder was built with, and which stages are done
    FOLDER/calls.jsonl          the journal: every reply that was paid for (`journal.py`)
    FOLDER/STAGE.jsonl          the records of a stage
    FOLDER/STAGE.failed.jsonl   those that came to nothing, with the reason

A stage's file is a pure function of the file before it and of the journal: first all replies are
fetched, in any order, then the file is written in one pass and gets its name. So a build that is
killed anywhere and started again ends with the same files, and asks for nothing again that it
has a reply to.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from janus_min.batch import Batches, batches_on_their_way
from janus_min.client import Client, Connection, Job, Request
from janus_min.collection import Question, Stage
from janus_min.errors import UserError, require
from janus_min.files import Writer, hash_files, read_json, replace_file
from janus_min.formats import read_jsonl
from janus_min.journal import Journal
from janus_min.prompts import fill
from janus_min.replies import ReplyError, unusable

STATE, CALLS = "build.json", "calls.jsonl"
MOST_ATTEMPTS = 20  # replies to one question
PLACE = ("id", "set", "number", "run", "game", "turn")  # what a task is known by
# Tasks that may come to nothing before one succeeds, and how many records they are of; with
# batches, all are asked at once.
PATIENCE, RECORDS = 10, 3


@dataclass(frozen=True)
class Sampling:
    """What is asked of the model beside the messages."""

    model: str | None = None  # name of the model, as the server knows it
    temperature: float = 1.0  # of sampling
    top_p: float = 0.9  # of sampling
    json_mode: bool = True  # ask for JSON where JSON is needed, by response_format
    extra: str | None = None  # JSON object of more parameters; null takes one of ours away

    def __post_init__(self) -> None:
        require(0 <= self.temperature <= 2, self, "temperature", "between 0 and 2")
        require(0 < self.top_p <= 1, self, "top_p", "greater than 0, at most 1")
        try:
            valid = self.extra is None or isinstance(json.loads(self.extra), dict)
        except ValueError:
            valid = False
        require(valid, self, "extra", "a JSON object")
        ours = {"model", "messages", "n", "stream"} & {*json.loads(self.extra or "{}")}
        require(not ours, self, "extra", "without model, messages, n and stream")

    def body(self, messages: list[dict], question: Question) -> dict:
        """The body of a chat completion."""
        body = {"model": self.model, "messages": messages, "temperature": self.temperature}
        body |= {"top_p": self.top_p, "max_tokens": question.max_tokens}
        if question.json and self.json_mode:
            body["response_format"] = {"type": "json_object"}
        body |= question.extra or {}
        body |= json.loads(self.extra) if self.extra else {}
        return {key: value for key, value in body.items() if value is not None}


class Failed(NamedTuple):
    """A task that came to nothing."""

    reason: str
    reply: str | dict | None = None  # the last one that could not be read


class Folder:
    """A folder in which a collection grows."""

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings
        path.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(path / CALLS)
        state = read_json(path / STATE) if (path / STATE).is_file() else {}
        if not self.journal.lines and not batches_on_their_way(path):
            state = {}  # nothing was paid for: settings may change
        before = state.get("settings", settings)
        differ = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if differ:
            self.journal.close()
            changes = "; ".join(
                f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in differ
            )
            raise UserError(
                f"{path} was built with other settings: {changes}; give the same ones, or another "
                "--out"
            )
        self.stages: dict[str, dict] = state.get("stages", {})
        self._save()

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        self.journal.close()

    def file(self, name: str) -> Path:
        """The records of a stage."""
        return self.path / f"{name}.jsonl"

    def done(self, name: str, made_of: object) -> bool:
        """Whether a stage has been finished from just this."""
        return self.file(name).is_file() and self.stages.get(name, {}).get("made_of") == made_of

    def begin(self, name: str) -> None:
        """Notes that a stage's file is not to be believed."""
        self.stages.pop(name, None)
        self._save()

    def finish(self, name: str, made_of: object, counts: dict) -> None:
        """Notes that a stage's file is whole."""
        self.stages[name] = {"made_of": made_of, **counts}
        self._save()

    def _save(self) -> None:
        text = json.dumps({"settings": self.settings, "stages": self.stages}, indent=2)
        replace_file(self.path / STATE, (text + "\n").encode())


class Pipeline:
    """Stages over the files of a folder. A server is contacted only if something is missing."""

    def __init__(
        self,
        folder: Folder,
        sampling: Sampling,
        connection: Connection,
        attempts: int,
        batch: bool = False,
    ):
        self.folder, self.sampling, self.connection = folder, sampling, connection
        self.attempts, self.batch = attempts, batch
        self._client: Client | None = None
        self.in_vain: list[int | str] = []  # ids of tasks that came to nothing
        self.fruitful = False  # whether a task did not

    @property
    def client(self) -> Client:
        """The one connection to the server."""
        if self._client is None:
            self._client = Client(self.connection, self.folder.journal)
        return self._client

    def run(self, stage: Stage, source: Path) -> Path:
        """Does one stage for all records of `source`. Returns the file with its records."""
        made_of = [hash_files([source]), stage.fan_out, self.attempts]
        target = self.folder.file(stage.name)
        if self.folder.done(stage.name, made_of):
            return target
        self.folder.begin(stage.name)
        records, failed = Writer(target), Writer(self.folder.file(f"{stage.name}.failed"))
        unanswered: list[int] = []

        def tasks() -> Iterator[dict]:
            """All of them, in order."""
            for _, record in read_jsonl(source):
                yield from stage.tasks(record)

        def write(task: dict, outcome: "dict | Failed | Request") -> None:
            """Puts what has become of a task into its file."""
            if isinstance(outcome, dict):
                records.add(outcome)
                return
            about = {key: task[key] for key in PLACE if key in task}
            if isinstance(outcome, Request):  # it was given up
                unanswered.append(task["id"])
                about |= {"unanswered": True}
                outcome = Failed(self.client.failures.get(outcome.key(), "no answer"))
            last = {} if outcome.reply is None else {"reply": outcome.reply}
            failed.add(about | {"reason": outcome.reason} | last)

        def written() -> int:
            """How many tasks are in the files."""
            return records.count + failed.count

        outcomes = ((task, self.outcome(stage, task)) for task in tasks())
        for task, outcome in outcomes:
            if isinstance(outcome, Request):  # from here on, the server is needed
                self.in_vain, self.fruitful = [], records.count > 0
                self._fetch(stage, chain([(task, outcome)], outcomes), source, written())
                for task in islice(tasks(), written(), None):
                    write(task, self.outcome(stage, task))
                break
            write(task, outcome)
        records.close()
        failed.close()
        counts = {"records": records.count, "failed": failed.count - len(unanswered)}
        counts["unanswered"] = len(unanswered)
        # What no answer came to is asked for again next time.
        self.folder.finish(stage.name, None if unanswered else made_of, counts)
        return target

    def _fetch(
        self, stage: Stage, rest: Iterator[tuple[dict, object]], source: Path, before: int
    ) -> None:
        """Fetches all replies that are missing. `before` tasks have theirs."""
        if not self.batch and batches_on_their_way(self.folder.path):
            raise UserError(
                f"{self.folder.path}: batches are on their way, which are paid for; go on with "
                "--batch until they are over"
            )
        if self.batch:

            def missing() -> Iterator[Request]:
                """All requests whose replies are not there yet."""
                records = (record for _, record in read_jsonl(source))
                tasks = (task for record in records for task in stage.tasks(record))
                outcomes = (self.outcome(stage, task) for task in islice(tasks, before, None))
                return (outcome for outcome in outcomes if isinstance(outcome, Request))

            Batches(self.client, self.folder.path).run(missing, stage.name)
            return

        def jobs() -> Iterator[Job | None]:
            """What is left to do; None for what is done."""
            for task, outcome in rest:
                self.fruitful |= isinstance(outcome, dict)
                yield self._job(stage, task) if isinstance(outcome, Request) else None

        with source.open("rb") as file:
            total = stage.fan_out * sum(1 for _ in file)
        self.client.run(chain([None] * before, jobs()), total, stage.name)

    def _job(self, stage: Stage, task: dict) -> Job:
        def missing() -> Request | None:
            """The request whose reply is not there yet."""
            outcome = self.outcome(stage, task)
            if isinstance(outcome, Request):
                return outcome
            if isinstance(outcome, dict):
                self.fruitful = True
            else:
                self._lose_patience(task, outcome)
            return None

        return missing

    def _lose_patience(self, task: dict, failed: Failed) -> None:
        """Ends the run if the model does not do anything that it is asked for."""
        self.in_vain.append(task["id"])
        many = len(self.in_vain) >= PATIENCE and len({*self.in_vain}) >= RECORDS
        last = failed.reply["text"] if isinstance(failed.reply, dict) else failed.reply
        if many and not self.fruitful:
            raise UserError(
                f"nothing came of {len(self.in_vain)} questions to {self.sampling.model}, so no "
                f"more are asked: {failed.reason}"
                + (f"; the last reply ends in {last[-80:]!r}" if last else "")
                + "; all replies are kept, and with more --attempts the same command goes on"
            )

    def outcome(self, stage: Stage, task: dict) -> "dict | Failed | Request":
        """What has become of a task: its record, the reason why there is none, or the request
        whose reply is not there yet.

        A reply that cannot be read is shown to the model with the reason, if the stage says so; in
        the place of one that is empty, cut short or refused, another one is asked for.
        """
        question = stage.ask(task)
        first = [{"role": "user", "content": question.user}]
        if question.system:
            first.insert(0, {"role": "system", "content": question.system})
        messages, said, reason, unreadable = first, "", "", None
        for attempt in range(self.attempts):
            sample = question.sample * MOST_ATTEMPTS + attempt
            request = Request(self.sampling.body(messages, question), sample)
            line = self.folder.journal.get(request.key())
            if line is None:
                return request
            reply = line["reply"]
            if (bad := unusable(reply)) and not stage.whole:
                messages, said, reason = first, "", bad
                continue
            text = f"{said}\n{reply['text']}" if said else reply["text"]
            try:
                return stage.read(task, reply if stage.whole else text)
            except ReplyError as error:
                reason, unreadable = str(error), reply if stage.whole else text
            if stage.again is not None:
                said = text if stage.joined else ""
                messages = [
                    *(messages if stage.joined else first),
                    {"role": "assistant", "content": reply["text"]},
                    {"role": "user", "content": fill(stage.again, reason=reason)},
                ]
        return Failed(f"after {self.attempts} attempts: {reason}", unreadable)
