"""Requests over HTTP, many at a time: chat completions, for data and for judgments.

Any OpenAI-compatible server will do, or another `Service`. What is paid for is in the journal
before anything else is done with it, and is never asked for again: a request is known by a hash of
all that is sent, and by its sample number, for those who want several answers to one request.

What may pass (`verdicts.py`) is tried again with growing pauses; if a server says "too many
requests", all threads wait. What cannot pass stops the run, with all answers kept.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from queue import Full, Queue

from janus_min.connection import Connection, Request
from janus_min.endpoint import Answer, Line, NoAnswerError
from janus_min.errors import UserError
from janus_min.interrupt import Interruptible, StoppedError
from janus_min.journal import Journal
from janus_min.limits import Budget, Pace, wait_before
from janus_min.progress import Progress
from janus_min.verdicts import Service, Verdict, read_chat

CHAT = "/chat/completions"
COMPLETIONS = Service(CHAT, read_chat, Request.expected)
TRIES, FIRST_TRIES = 8, 4  # of a request that fails for a reason that may pass
PATIENCE = 3600.0  # seconds of hearing "too many requests" before a request is given up
GRACE = 3.0  # seconds that requests on their way have, when a run is asked to end

# Gives the next request that a record needs, when the answers to the earlier ones are in the
# journal; None if it needs no more.
Job = Callable[[], Request | None]


class GivenUpError(Exception):
    """A request that brought nothing; the run goes on without it."""


class Client:
    """Sends requests to an endpoint and puts the answers into a journal."""

    def __init__(self, settings: Connection, journal: Journal, service: Service = COMPLETIONS):
        self.settings, self.journal, self.service = settings, journal, service
        self.endpoint = service.endpoint(settings.base_url, settings.key_variable)
        self.pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self.budget = Budget(settings.max_cost, settings.price_in, settings.price_out)
        self.budget.spent = self.budget.cost(tuple(journal.tokens))
        self.stopped = threading.Event()
        self.fatal: BaseException | None = None  # what ended the run
        self.failures: dict[str, str] = {}  # key of a request -> why it was given up
        self.calls = self.successes = self.in_vain = 0  # in_vain: since the last success
        self.done = self.failed = 0  # records
        self.count = threading.Lock()
        self.claims, self.claimed = threading.Condition(), set[str]()

    def run(self, jobs: Iterator[Job | None], total: int, name: str) -> None:
        """Does all jobs, with all workers; a None among them is one that was done before.

        Raises UserError if the whole run must stop, StoppedError if it was asked to.
        """
        self.done, self.failed, self.shown = 0, 0, self.calls
        self.stopped, self.fatal = threading.Event(), None
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
                        self._until(lambda: True, signals, show)
                    else:
                        self._until(lambda job=job: _put(queue, job), signals, show)
                for _ in threads:
                    self._until(lambda: _put(queue, None), signals, show)
                for thread in threads:
                    self._until(lambda thread=thread: _joined(thread), signals, show)
                self._raise()
                self._show(show, last=True)
            finally:
                self._end(queue, threads, signals)
                show.close()

    def _end(
        self, queue: "Queue[Job | None]", threads: list[threading.Thread], signals: Interruptible
    ) -> None:
        """Lets the workers finish what is on its way, for it is paid for; after Ctrl-C, only what
        comes within the grace.
        """
        self.stopped.set()
        for _ in threads:  # those that wait for work
            with suppress(Full):
                queue.put_nowait(None)
        start = time.monotonic()
        ends, told = start + self.settings.deadline, signals.received is not None
        while any(thread.is_alive() for thread in threads) and time.monotonic() < ends:
            if signals.received:
                ends, signals.received = min(ends, time.monotonic() + GRACE), None
            elif not told and time.monotonic() > start + 2.0:
                print("waiting for requests on their way; Ctrl-C ends it", file=sys.stderr)
                told = True
            time.sleep(0.02)
        self.endpoint.cut()
        for thread in threads:
            thread.join(0.5 / len(threads))

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
        text = f"{self.failed:,} failed"
        if self.service.shows_tokens:
            text += f"  {read:,} + {written:,} tokens"
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
                        with self._claimed(request.key()) as free:
                            if free:
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

    @contextmanager
    def _claimed(self, key: str) -> Iterator[bool]:
        """Keeps others from sending the same request. Says whether it is still to be sent.

        Raises GivenUpError if another thread has sent it in vain.
        """
        with self.claims:
            while key in self.claimed:
                self.claims.wait(0.1)
                if self.stopped.is_set():
                    raise _Ended
            if key in self.failures:
                raise GivenUpError(self.failures[key])
            self.claimed.add(key)
        try:
            yield self.journal.get(key) is None
        finally:
            with self.claims:
                self.claimed.remove(key)
                self.claims.notify_all()

    def ask(self, request: Request, line: Line) -> None:
        """Sends one request until it is answered, and keeps the answer in the journal.

        Raises GivenUpError, or UserError if no request will do better.
        """
        body = json.dumps(request.body, ensure_ascii=False).encode("utf-8", "replace")
        key, expected = request.key(), self.service.expected(request)
        patience, tries = None, 0
        for attempt in count():
            self._reserve(expected)
            used = (0, 0)
            try:
                self._wait_for_turn(sum(expected))
                self._count("calls")
                answer = line.send(self.service.path, self.settings.deadline, body)
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
            if verdict.slow_down:
                patience = patience or time.monotonic() + PATIENCE
            late = patience is not None and time.monotonic() > patience
            # Fewer tries as long as nothing has worked: it will be the address, then.
            enough = tries >= (TRIES if self.journal.answers else FIRST_TRIES)
            if not verdict.again or enough or late:
                self._give_up(key, verdict)
            seconds = wait_before(attempt, verdict.wait)
            if verdict.slow_down:  # all stop for as long as the server asks, or for a moment
                self.pace.pause(min(seconds, 1.0) if verdict.wait is None else seconds)
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

    def _give_up(self, key: str, verdict: Verdict) -> None:
        """Notes a request that brought nothing. Raises GivenUpError, or UserError if there is no
        hope for others: none has ever worked, or none works any more.
        """
        reason = verdict.reason
        self.journal.add("", (0, 0), failed=key, reason=reason)
        with self.count:
            self.failures[key] = reason
            self.in_vain += verdict.again  # what could have passed
            hopeless = not self.journal.answers and len(self.failures) >= 3
            lost = self.in_vain >= max(8, 2 * self.settings.workers)
        if hopeless:
            raise UserError(f"{self.endpoint.url}: the first requests all failed: {reason}")
        if lost:
            raise UserError(
                f"{self.endpoint.url}: the last {self.in_vain} requests all failed: {reason}; all "
                "answers are kept, and the same command goes on"
            )
        raise GivenUpError(reason)

    def _keep(self, request: Request, key: str, answer: Answer) -> tuple[Verdict | None, tuple]:
        """Puts an answer into the journal. Returns what is wrong with it, and its tokens."""
        reply, used = self.service.read(request, answer)
        if isinstance(reply, Verdict):
            reply = reply._replace(reason=self.endpoint.redact(reply.reason))
            if any(used):  # paid for all the same
                self.journal.add("", used, failed=key, reason=reply.reason)
            return reply, used
        self.journal.add(key, used, reply=reply)
        with self.count:
            self.successes += 1
            self.in_vain = 0
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
