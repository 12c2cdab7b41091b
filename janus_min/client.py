"""Chat completions over HTTP, many at a time, for data and for judgments.

Any OpenAI-compatible server will do. What is paid for is in the journal before anything else is
done with it, and is never asked for again: a request is known by a hash of all that is sent, and by
its sample number, for those who want several answers to one request.

What may pass (`verdicts.py`) is tried again with growing pauses; if a server says "too many
requests", all threads wait. What cannot pass stops the run, with all answers kept.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import Full, Queue
from typing import NamedTuple

from janus_min.endpoint import Answer, Endpoint, Line, NoAnswerError
from janus_min.errors import UserError, require
from janus_min.interrupt import Interruptible, StoppedError
from janus_min.journal import Journal
from janus_min.limits import Budget, Pace, wait_before
from janus_min.progress import Progress
from janus_min.verdicts import Verdict, judge_chat

CHAT = "/chat/completions"
TRIES = 8  # of a request that fails for a reason that may pass
PATIENCE = 3600.0  # seconds of hearing "too many requests" before a request is given up
GRACE = 3.0  # seconds that requests on their way have, when a run is asked to end


@dataclass(frozen=True)
class Connection:
    """How to talk to a server."""

    base_url: str = "https://api.openai.com/v1"  # of any OpenAI-compatible server
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key
    workers: int = 16  # requests on their way at a time
    requests_per_minute: float | None = None  # limit, evenly spread
    tokens_per_minute: float | None = None  # limit for tokens read and written
    deadline: float = 300.0  # seconds for one request, from its start to the end of its answer
    price_in: float = 0.0  # dollars per million tokens read
    price_out: float = 0.0  # dollars per million tokens written
    max_cost: float | None = None  # dollars for all of a folder's requests, earlier runs included

    def __post_init__(self) -> None:
        require(1 <= self.workers <= 1024, self, "workers", "1 to 1024")
        require(0 < self.deadline < 86400, self, "deadline", "between 0 and 86,400 seconds")
        for name in ("requests_per_minute", "tokens_per_minute", "max_cost"):
            value = getattr(self, name)
            require(value is None or 0 < value < float("inf"), self, name, "greater than 0")
        for name in ("price_in", "price_out"):
            require(0 <= getattr(self, name) < float("inf"), self, name, "0 or more")
        if self.max_cost is not None and not self.price_in + self.price_out > 0:
            raise UserError("--max-cost needs prices: --price-in and --price-out")


_SORTED = json.JSONEncoder(sort_keys=True)  # made once: `json.dumps` makes one for each call


class Request(NamedTuple):
    """A chat completion to ask for."""

    body: dict  # as it is sent: model, messages, sampling parameters
    sample: int = 0  # which of several answers to the same body

    def key(self) -> str:
        """What the answer is kept under."""
        text = _SORTED.encode([self.body, self.sample])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def expected(self) -> tuple[int, int]:
        """At most so many tokens are read and written: one for 2 bytes is more than English has."""
        size = sum(
            len(message["content"].encode("utf-8", "replace")) + 16
            for message in self.body["messages"]
        )
        return size // 2, self.body.get("max_tokens", 4096)


# Gives the next request that a record needs, when the answers to the earlier ones are in the
# journal; None if it needs no more.
Job = Callable[[], Request | None]


class GivenUpError(Exception):
    """A request that brought nothing; the run goes on without it."""


class Client:
    """Sends requests to an endpoint and puts the answers into a journal."""

    def __init__(self, settings: Connection, journal: Journal):
        self.settings, self.journal = settings, journal
        self.endpoint = Endpoint(settings.base_url, settings.key_variable)
        self.pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self.budget = Budget(settings.max_cost, settings.price_in, settings.price_out)
        self.budget.spent = self.budget.cost(tuple(journal.tokens))
        self.stopped = threading.Event()
        self.fatal: BaseException | None = None  # what ended the run
        self.failures: dict[str, str] = {}  # key of a request -> why it was given up
        self.calls = self.successes = 0
        self.done = self.failed = 0  # records
        self.count = threading.Lock()

    def run(self, jobs: Iterator[Job | None], total: int, name: str) -> None:
        """Does all jobs, with all workers; a None among them is one that was done before.

        Raises UserError if the whole run must stop, StoppedError if it was asked to.
        """
        self.done, self.failed, self.shown = 0, 0, self.calls
        queue: Queue[Job | None] = Queue(2 * self.settings.workers)
        threads = [
            threading.Thread(target=self._work, args=(queue,), daemon=True)
            for _ in range(self.settings.workers)
        ]
        show = Progress(total, "requests", noun=name)
        with Interruptible("waiting for requests on their way; once more ends at once") as signals:
            for thread in threads:
                thread.start()
            try:
                for job in jobs:
                    if job is None:
                        self._count("done")
                        show.first += 1
                    else:
                        self._until(lambda job=job: _put(queue, job), signals, show)
                for _ in threads:
                    self._until(lambda: _put(queue, None), signals, show)
                for thread in threads:
                    self._until(lambda thread=thread: _joined(thread), signals, show)
                self._raise()
                self._show(show, last=True)
            finally:
                self.stopped.set()
                for _ in threads:  # those that wait for work
                    with suppress(Full):
                        queue.put_nowait(None)
                for seconds in (GRACE, 0.5):
                    ends = time.monotonic() + seconds
                    for thread in threads:
                        thread.join(max(0.0, ends - time.monotonic()))
                    self.endpoint.cut()
                show.close()
        self.stopped.clear()

    def _until(self, ready: Callable[[], bool], signals: Interruptible, show: Progress) -> None:
        """Waits for something, with an eye on signals and on what the workers met."""
        while True:
            self._raise()
            if signals.received:
                raise StoppedError(
                    f"stopped: {self.successes:,} answers of this run are kept; the same command "
                    "goes on",
                    signals.received,
                )
            self._show(show)
            if ready():
                return

    def _raise(self) -> None:
        if self.fatal is not None:
            raise self.fatal

    def _show(self, show: Progress, last: bool = False) -> None:
        if self.done + self.failed == show.total and not last:
            return  # the last line is shown once
        read, written = self.journal.tokens
        text = f"{self.failed:,} failed  {read:,} + {written:,} tokens"
        if self.settings.price_in + self.settings.price_out > 0:
            text += f"  ${self.budget.spent:,.2f}"
        calls = self.calls
        show.update(self.done + self.failed, calls - self.shown, text)
        self.shown = calls

    def _count(self, what: str) -> None:
        with self.count:
            setattr(self, what, getattr(self, what) + 1)

    # One worker

    def _work(self, queue: "Queue[Job | None]") -> None:
        line = self.endpoint.line()
        try:
            while not self.stopped.is_set() and (job := queue.get()) is not None:
                try:
                    while (request := job()) is not None:
                        self.ask(request, line)
                except GivenUpError:
                    self._count("failed")
                else:
                    self._count("done")
        except _Ended:
            pass
        except BaseException as error:  # whatever it is, the main thread must know
            with self.count:
                self.fatal = self.fatal or error
            self.stopped.set()
        finally:
            line.close()

    def ask(self, request: Request, line: Line) -> None:
        """Sends one request until it is answered, and keeps the answer in the journal.

        Raises GivenUpError, or UserError if no request will do better.
        """
        body = json.dumps(request.body, ensure_ascii=False).encode("utf-8", "replace")
        key, expected = request.key(), request.expected()
        patience, tries = time.monotonic() + PATIENCE, 0
        for attempt in count():
            self._reserve(expected)
            self._wait_for_turn(sum(expected))
            used = (0, 0)
            try:
                self._count("calls")
                answer = line.send(CHAT, self.settings.deadline, body)
                verdict, used = self._keep(request, key, answer)
            except NoAnswerError as error:
                verdict = Verdict(str(error), again=error.again)
            finally:
                self.budget.settle(expected, used)
                self.pace.settle(sum(expected), sum(used))
            if verdict is None:
                return
            if verdict.fatal:
                raise UserError(f"{self.endpoint.url}: {verdict.reason}")
            tries += not verdict.slow_down
            if not verdict.again or tries >= self._tries() or time.monotonic() > patience:
                self._give_up(key, verdict.reason)
            seconds = wait_before(attempt, verdict.wait)
            if verdict.slow_down:
                self.pace.pause(seconds)
            if self.stopped.wait(seconds):
                raise _Ended

    def _reserve(self, expected: tuple[int, int]) -> None:
        """Waits until the budget has room for a request."""
        if self.budget.reserve(expected, self.stopped.is_set):
            return
        if self.stopped.is_set():
            raise _Ended
        raise UserError(
            f"--max-cost {self.settings.max_cost:g}: ${self.budget.spent:.4f} are spent, and the "
            "next request may cost more than is left; all answers are kept, and the same command "
            "with a higher --max-cost goes on"
        )

    def _wait_for_turn(self, tokens: int) -> None:
        start = self.pace.turn(tokens)
        while (left := start - self.pace.clock()) > 0:
            if self.stopped.wait(left):
                raise _Ended
            if self.pace.paused_until > start:  # a turn within a pause is none
                self.pace.settle(tokens, 0)
                start = self.pace.turn(tokens)
        if self.stopped.is_set():
            raise _Ended

    def _tries(self) -> int:
        """Fewer as long as nothing has worked: it will be the address, then."""
        return TRIES if self.successes else 4

    def _give_up(self, key: str, reason: str) -> None:
        self.journal.add("", (0, 0), failed=key, reason=reason)
        with self.count:
            self.failures[key] = reason
            hopeless = not self.successes and len(self.failures) >= 3
        if hopeless:
            raise UserError(f"{self.endpoint.url}: the first requests all failed: {reason}")
        raise GivenUpError(reason)

    def _keep(self, request: Request, key: str, answer: Answer) -> tuple[Verdict | None, tuple]:
        """Puts an answer into the journal. Returns what is wrong with it, and its tokens."""
        reply, used = judge_chat(answer)
        if isinstance(reply, Verdict):
            reply = reply._replace(reason=self.endpoint.redact(reply.reason))
            if any(used):  # paid for all the same
                self.journal.add("", used, failed=key, reason=reply.reason)
            return reply, used
        if not any(used):  # a server that does not count
            size = sum(len(message["content"]) for message in request.body["messages"])
            used = size // 4, len(reply["text"]) // 4
        self.journal.add(key, used, reply=reply)
        self._count("successes")
        return None, used


class _Ended(Exception):  # noqa: N818
    """The run ends, this thread too."""


def _put(queue: "Queue[Job | None]", job: Job | None) -> bool:
    try:
        queue.put(job, timeout=0.1)
    except Full:
        return False
    return True


def _joined(thread: threading.Thread) -> bool:
    thread.join(0.1)
    return not thread.is_alive()
