"""Chat completions by the Batch API: requests go as files, answers come within a day, for less.

    FOLDER/batches.json           which batches are on their way
    FOLDER/batch-KEY.jsonl        the requests of one, under the keys of the journal

The answers go into the same journal as those of `client.py`, so that a build may go on either way
when no batch is on its way. A batch is known to the server by a hash of its requests: a program
that was killed after it had sent one, but before it had noted so, finds it again there and does not
pay twice. Its requests stay in the folder until its answers are in the journal.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from janus_min.client import CHAT, TRIES, Client, Request
from janus_min.endpoint import Answer, NoAnswerError
from janus_min.errors import UserError
from janus_min.files import as_line, read_json, replace_file
from janus_min.limits import wait_before
from janus_min.verdicts import Verdict, json_body, judge_chat, judge_status

STATE = "batches.json"
MOST_REQUESTS, MOST_BYTES = 10_000, 50_000_000  # of one batch; servers allow 50,000 and 200 MB
LARGEST_OUTPUT = 1 << 30  # bytes
POLL_SECONDS = 30.0
OVER = ("completed", "failed", "expired", "cancelled")


class Batches:
    """The batches of one folder."""

    def __init__(self, client: Client, folder: Path, say: Callable[[str], None] = print):
        self.client, self.folder, self.say = client, folder, say
        self.line = client.endpoint.line()
        self.state = folder / STATE
        state = read_json(self.state) if self.state.is_file() else {}
        self.kept = 0  # answers
        self.ids: dict[str, str] = state.get("batches", {})  # hash of the requests -> id
        self.over: list[str] = state.get("over", [])  # ids, not to be taken for new ones
        self.said: dict[str, str] = {}  # id -> the last line about it
        self.expected: dict[str, tuple[int, int]] = {}  # hash -> tokens that are reserved

    def run(self, missing: Callable[[], Iterator[Request]], name: str) -> None:
        """Sends what is missing, and what the answers make necessary, until nothing new comes."""
        self._find()
        self._collect(name)  # what an earlier run has sent
        while True:
            before = self.kept
            for path in self._write(missing()):
                self._send(path)
            if not self.ids:
                return
            self._collect(name)
            if self.kept == before:
                return

    def _find(self) -> None:
        """Notes what a killed run has sent without noting it, before other requests join these."""
        for path in sorted(self.folder.glob("batch-*.jsonl")):
            if (name := _name(path)) in self.ids:
                continue
            if identity := self._listed(name):
                self.ids[name] = identity
                self._save()
            else:
                path.unlink()

    def _write(self, requests: Iterator[Request]) -> Iterator[Path]:
        """Writes requests into files that are no larger than a batch may be."""
        lines: list[bytes] = []
        size, seen = 0, set()
        for request in requests:
            if (key := request.key()) in seen:
                continue
            seen.add(key)
            line = {"custom_id": key, "method": "POST", "url": "/v1" + CHAT, "body": request.body}
            lines.append(as_line(line))
            size += len(lines[-1])
            if len(lines) >= MOST_REQUESTS or size >= MOST_BYTES:
                yield self._file(lines)
                lines, size = [], 0
        if lines:
            yield self._file(lines)

    def _file(self, lines: list[bytes]) -> Path:
        content = b"".join(lines)
        name = hashlib.sha256(content).hexdigest()[:32]
        path = self.folder / f"batch-{name}.jsonl"
        replace_file(path, content)
        return path

    def _send(self, path: Path) -> None:
        """Uploads a file of requests and starts its batch, unless the server has it already."""
        name = _name(path)
        if not (identity := self._listed(name)):
            self._reserve(path)
            content = (path.name, path.read_bytes(), "application/jsonl")
            upload = self._call("/files", files={"file": content}, data={"purpose": "batch"})
            order = {"input_file_id": upload["id"], "endpoint": "/v1" + CHAT}
            order |= {"completion_window": "24h", "metadata": {"janus_min": name}}
            body = json.dumps(order).encode()
            # Not simply once more if no answer comes: the batch may have been started.
            started = self._try("/batches", lambda: self._listed(name), body=body)
            if not isinstance(identity := started, str):
                identity = self._object("/batches", started)["id"]
        self.ids[name] = identity
        self._save()

    def _listed(self, name: str) -> str | None:
        """The batch of these requests, if the server has one."""
        path = "/batches?limit=100"
        while path:
            page = self._call(path, method="GET")
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get("janus_min") == name:
                    if batch["id"] not in self.over:
                        return batch["id"]
            more = page.get("has_more") and batches
            path = f"/batches?limit=100&after={batches[-1]['id']}" if more else None
        return None

    def _reserve(self, path: Path) -> None:
        """Raises UserError if a batch may cost more than is left beside those on their way."""
        expected = [0, 0]
        with path.open("rb") as file:
            for line in file:
                tokens = Request(json.loads(line)["body"]).expected()
                expected = [a + b for a, b in zip(expected, tokens)]
        budget, tokens = self.client.budget, tuple(expected)
        if not budget.reserve(tokens, lambda: True):
            raise UserError(
                f"--max-cost {budget.limit:g}: ${budget.spent:.4f} are spent, batches on their way "
                f"may cost ${budget.reserved:.4f}, the next one ${budget.cost(tokens):.4f}; all "
                "answers are kept, and the same command with a higher --max-cost goes on"
            )
        self.expected[_name(path)] = tokens

    def _collect(self, name: str) -> None:
        """Waits for all batches and keeps their answers."""
        alone = len(self.ids) == 1
        while self.ids:
            for key, identity in list(self.ids.items()):
                batch = self._call(f"/batches/{identity}", method="GET")
                status, counts = batch.get("status"), batch.get("request_counts") or {}
                line = f"{name}: batch {identity} {status} {counts or ''}".rstrip()
                if self.said.get(identity) != line:
                    self.say(line)
                self.said[identity] = line
                if status not in OVER:
                    continue
                if status == "failed":
                    self._forget(key)
                    self._require_transient(batch, alone)
                    continue
                for file in (batch.get("output_file_id"), batch.get("error_file_id")):
                    if file:
                        self._keep(self._download(file))
                self._forget(key)
            if self.ids:
                time.sleep(POLL_SECONDS)

    def _require_transient(self, batch: dict, alone: bool) -> None:
        """Raises UserError if a batch failed for good, and not because too much was sent before."""
        errors = (batch.get("errors") or {}).get("data") or [{}]
        if errors[0].get("code") == "token_limit_exceeded" and not alone:
            return  # it is sent again when the others are over
        said = self.client.endpoint.redact(str(errors[0].get("message")))
        raise UserError(f"batch {batch['id']} failed: {said}")

    def _keep(self, content: bytes) -> None:
        """Puts the answers of a batch into the journal, each once."""
        journal = self.client.journal
        for text in filter(bytes.strip, content.splitlines()):
            line = json_body(text)
            key = line.get("custom_id") if isinstance(line, dict) else None
            if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{32}", key):
                raise UserError("a batch came back with lines that are no answers")
            response = line.get("response") or {}
            if journal.get(key) is not None:
                continue
            body = json.dumps(response.get("body") or {"error": line.get("error")}).encode()
            answer = Answer(response.get("status_code") or 500, {}, body)
            reply, used = judge_chat(answer)
            if isinstance(reply, Verdict):
                reason = self.client.endpoint.redact(reply.reason)
                journal.add("", used, failed=key, reason=reason)
                self.client.failures[key] = reason
            else:
                journal.add(key, used, reply=reply)
                self.kept += 1
            self.client.budget.spent += self.client.budget.cost(used)

    def _forget(self, key: str) -> None:
        self.client.journal.sync()
        self.over.append(self.ids.pop(key))
        self._save()
        if tokens := self.expected.pop(key, None):
            self.client.budget.settle(tokens, (0, 0))
        (self.folder / f"batch-{key}.jsonl").unlink(missing_ok=True)

    def _save(self) -> None:
        state = {"batches": self.ids, "over": self.over}
        replace_file(self.state, (json.dumps(state, indent=2) + "\n").encode())

    # HTTP

    def _download(self, file: str) -> bytes:
        return self._try(f"/files/{file}/content", method="GET", largest=LARGEST_OUTPUT).body

    def _call(self, path: str, **more: object) -> dict:
        return self._object(path, self._try(path, **more))

    def _object(self, path: str, answer: Answer) -> dict:
        body = json_body(answer.body)
        if not isinstance(body, dict) or not body.keys() & {"id", "data"}:
            raise UserError(f"{self.client.endpoint.url}{path}: no file or batch came back")
        return body

    def _try(
        self, path: str, done: Callable[[], str | None] = lambda: None, **more: object
    ) -> Answer | str:
        """An answer of status 200, after as many tries as it takes, or what `done` says before one
        of the later ones. Raises UserError.
        """
        reason = ""
        for attempt in range(TRIES):
            if attempt and (found := done()):
                return found
            try:
                answer = self.line.send(path, self.client.settings.deadline, **more)
            except NoAnswerError as error:
                reason, again, wait = str(error), error.again, None
            else:
                if answer.status == 200:
                    return answer
                verdict = judge_status(answer)
                reason = self.client.endpoint.redact(verdict.reason)
                again, wait = verdict.again, verdict.wait
            if not again:
                break
            time.sleep(wait_before(attempt, wait))
        raise UserError(f"{self.client.endpoint.url}{path}: {reason}")


def batches_on_their_way(folder: Path) -> bool:
    """Whether a folder waits for batches."""
    state = folder / STATE
    return state.is_file() and bool(read_json(state).get("batches"))


def _name(path: Path) -> str:
    """What a batch is known by, from the name of its file."""
    return path.stem.removeprefix("batch-")
