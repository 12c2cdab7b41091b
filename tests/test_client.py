"""Many requests against a server that misbehaves: nothing is lost, paid twice or made up."""

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from janus_min import cli
from janus_min import client as client_module
from janus_min.client import Client, Connection, Request
from janus_min.errors import UserError
from janus_min.journal import Journal
from janus_min.limits import wait_before
from tests.programs import environment
from tests.servers import (
    FAULTS,
    HTML,
    KEY,
    ChatServer,
    Reply,
    chat,
    error,
    http_date,
    question,
    too_many,
)

QUICK = 0.02  # how much shorter than real the waits before another try are


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def quick(monkeypatch):
    """Waits of seconds become waits of milliseconds."""
    monkeypatch.setattr(
        client_module, "wait_before", lambda attempt, asked: QUICK * wait_before(attempt, asked)
    )


def request_of(number, **more):
    message = {"role": "user", "content": f"question {number}"}
    return Request({"model": "m", "messages": [message], "max_tokens": 16} | more)


def jobs(journal, requests):
    """One job for each request; None for one that was answered before."""
    for request in requests:
        if journal.get(request.key()):
            yield None
        else:
            yield lambda request=request: None if journal.get(request.key()) else request


class Run:
    """A run of a client in a folder."""

    def __init__(self, folder):
        self.path = folder / "replies.jsonl"

    def __call__(self, server, count, **settings):
        """Asks questions 0 to `count` - 1, and returns the client, when it is done."""
        requests = [request_of(number) for number in range(count)]
        settings = {"base_url": getattr(server, "url", server), "workers": 8} | settings
        with Journal(self.path) as journal:
            self.client = Client(Connection(key_variable="TEST_KEY", **settings), journal)
            self.client.run(jobs(journal, requests), count, "record")
        return self.client

    def fails(self, server, count, **settings):
        """The same for a run that must end with one line for the user, which is returned."""
        with pytest.raises(UserError) as caught:
            self(server, count, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def lines(self):
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def texts(self):
        """What was answered: key -> text."""
        lines = [line for line in self.lines() if line["key"]]
        assert len({line["key"] for line in lines}) == len(lines), "paid for twice"
        return {line["key"]: line["reply"]["text"] for line in lines}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def answers(numbers):
    """What all these questions must have brought."""
    return {request_of(number).key(): f"answer to question {number}" for number in numbers}


def numbers_of(server):
    return [int(question(seen.body).split()[-1]) for seen in server.requests]


# Statuses


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(run, quick, status):
    bad = [Reply(status, error("later"), (("Retry-After", "0"),))] * 3
    with ChatServer(script=bad) as server:
        client = run(server, 2, workers=1)
    assert numbers_of(server) == [0, 0, 0, 0, 1] and run.texts() == answers(range(2))
    assert client.calls == 5 and client.failures == {} and (client.done, client.failed) == (2, 0)


@pytest.mark.parametrize(("worked", "tries"), [(False, 4), (True, 8)])
def test_tries_are_bounded(run, quick, worked, tries):
    """Fewer if nothing has worked so far."""
    bad = request_of(1)

    def script(seen):
        return Reply(500, error("never")) if seen.body == bad.body else None

    with ChatServer(script=script) as server:
        if worked:
            run(server, 1)
        with Journal(run.path) as journal:
            client = Client(Connection(server.url, "TEST_KEY", workers=1), journal)
            client.run(jobs(journal, [request_of(2)] * worked + [bad, request_of(3)]), 3, "record")
    assert numbers_of(server).count(1) == tries
    assert client.failures == {bad.key(): "HTTP 500: never"} and client.failed == 1
    kept = [line for line in run.lines() if line.get("failed")]
    assert kept == [{"key": "", "tokens": [0, 0], "failed": bad.key(), "reason": "HTTP 500: never"}]


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("first", [0, 3])
def test_what_cannot_pass_ends_one_record(run, status, first):
    """And not the others, even if it is the first."""

    def script(seen):
        return Reply(status, error("bad")) if f"n {first}" in str(seen.body) else None

    with ChatServer(script=script) as server:
        client = run(server, 6, workers=2)
        assert sorted(numbers_of(server)) == list(range(6))
        assert run.texts() == answers(set(range(6)) - {first})
        assert client.failures == {request_of(first).key(): f"HTTP {status}: bad"}
        assert (client.done, client.failed) == (5, 1)
        run(server, 6)  # a failure is tried again by the next run, an answer is not
        assert numbers_of(server)[6:] == [first]


FATAL = [
    (Reply(401, error("wrong key")), "HTTP 401: wrong key"),
    (Reply(402, error("pay first")), "HTTP 402: pay first"),
    (Reply(404, error("no such page")), "HTTP 404: no such page"),
    (
        Reply(302, b"", (("Location", "http://127.0.0.1:9/x"),)),
        "a redirect to http://127.0.0.1:9/x",
    ),
    (Reply(429, error("no money", code="insufficient_quota")), "HTTP 429: no money"),
    (Reply(429, error("no money", type="insufficient_quota")), "HTTP 429: no money"),
    (Reply(400, error("no model m", code="model_not_found")), "HTTP 400: no model m"),
]


@pytest.mark.parametrize(("reply", "said"), FATAL)
def test_what_no_request_will_pass_ends_the_run(run, reply, said):
    """At once, all workers, with what the server says; answers are kept."""
    with ChatServer(script=[None, reply]) as server:
        line = run.fails(server, 50, workers=1)
    assert said in line and line.startswith(f"{server.url}: ")
    assert len(server.requests) == 2 and run.texts() == answers(range(1))


def test_a_wrong_key_costs_one_call_per_worker(run):

    def script(seen):
        return Reply(401, error("wrong key"), wait=0.05)

    with ChatServer(script=script) as server:
        began = time.monotonic()
        assert "HTTP 401: wrong key" in run.fails(server, 500)
        assert time.monotonic() - began < 5
        time.sleep(0.2)
    assert 1 <= len(server.requests) <= 8 and run.lines() == []


def test_the_other_workers_hear_of_it_at_once(run):
    """Although all goes well with them, and there is more to do."""

    def script(seen):
        if seen is server.requests[0]:
            return Reply(401, error("wrong key"), wait=0.05)
        return Reply(200, chat("x"), wait=0.2)

    def slow_jobs():
        yield from jobs(journal, map(request_of, range(5)))
        time.sleep(1)

    with ChatServer(script=script) as server, Journal(run.path) as journal:
        client = Client(Connection(server.url, "TEST_KEY", workers=2), journal)
        with pytest.raises(UserError, match="wrong key"):
            client.run(slow_jobs(), 5, "record")
    assert len(server.requests) == 2 and client.successes == 1


def test_what_was_on_its_way_when_the_run_ended_is_kept(run):
    """It is paid for, and would be asked for once more."""
    broke = Reply(429, error("no money", code="insufficient_quota"))
    late = Reply(200, chat("late, but paid for"), wait=1.0)
    with ChatServer(script=[late, late, broke]) as server:
        run.fails(server, 3, workers=3)
    assert list(run.texts().values()) == ["late, but paid for"] * 2


def test_a_server_that_dies_on_the_way_ends_the_run(run, quick):
    """Not thousands of requests that each fail for themselves."""
    with ChatServer(
        script=lambda seen: Reply(503, error("gone")) if len(server.requests) > 20 else None
    ) as server:
        line = run.fails(server, 500, workers=4)
    assert "the last 8 requests all failed: HTTP 503: gone" in line
    assert len(server.requests) < 20 + 12 * 8 + 8


def test_some_requests_that_always_fail_do_not_keep_a_folder_from_going_on(run):
    """The first ones of a resumed run may be just these."""
    refused = Reply(400, error("filtered"))

    def script(seen):
        return refused if question(seen.body) in {f"question {n}" for n in range(6, 10)} else None

    with ChatServer(script=script) as server:
        for _ in range(2):
            client = run(server, 10, workers=1)
            assert client.failed == 4 and client.done == 6
    assert server.paid == 6


def test_two_jobs_with_the_same_request_pay_once(run):
    with ChatServer() as server, Journal(run.path) as journal:
        client = Client(Connection(server.url, "TEST_KEY", workers=8), journal)
        client.run(jobs(journal, [request_of(n % 3) for n in range(60)]), 60, "record")
    assert server.paid == 3 and client.done == 60


def test_a_client_may_run_again_after_a_failure(run):
    with ChatServer(script=[Reply(401, error("wrong key"))]) as server:
        with Journal(run.path) as journal:
            client = Client(Connection(server.url, "TEST_KEY", workers=2), journal)
            with pytest.raises(UserError, match="wrong key"):
                client.run(jobs(journal, [request_of(0)]), 1, "record")
            client.run(jobs(journal, [request_of(1)]), 1, "record")
    assert client.done == 1


def test_nothing_stays_reserved_for_requests_that_never_started(run):
    """They wait for their turn when the run ends; the budget of the next run is whole."""
    settings = dict(workers=3, requests_per_minute=1.0, price_in=1.0, max_cost=1.0)
    with ChatServer(script=[Reply(401, error("wrong key"), wait=0.3)]) as server:
        with Journal(run.path) as journal:
            client = Client(Connection(server.url, "TEST_KEY", **settings), journal)
            with pytest.raises(UserError, match="wrong key"):
                client.run(jobs(journal, map(request_of, range(3))), 3, "record")
    assert len(server.requests) == 1
    assert client.budget.on_their_way == 0 and client.budget.reserved == 0.0


def test_requests_on_their_way_are_ended_with_the_run(run):
    """After their deadline, no thread of it is left, whatever its server does."""
    wrong = Reply(401, error("wrong key"), wait=0.2)
    with ChatServer(script=[Reply(how="hang"), Reply(how="drip"), wrong]) as server:
        began = time.monotonic()
        run.fails(server, 3, workers=3, deadline=0.8)
        assert time.monotonic() - began < 9
        assert [thread for thread in threading.enumerate() if "_work" in thread.name] == []


def test_workers_that_wait_for_work_do_not_hold_up_the_end(run):
    """The list of jobs may be slow."""
    with ChatServer(script=[Reply(401, error("wrong key"))]) as server:
        with Journal(run.path) as journal:
            client = Client(Connection(server.url, "TEST_KEY", workers=64), journal)

            def slow_jobs():
                yield from jobs(journal, [request_of(0)])
                time.sleep(0.5)
                yield None

            began = time.monotonic()
            with pytest.raises(UserError, match="wrong key"):
                client.run(slow_jobs(), 2, "record")
    assert time.monotonic() - began < 9


# Many faults


def test_nothing_is_lost_doubled_or_invented(run, quick, caplog):
    """One request in five goes wrong, in all ways."""
    caplog.set_level(logging.WARNING)
    count = 2000
    with ChatServer(faults=0.2, seed=1) as server:
        client = run(server, count, workers=32, deadline=1.0)
        assert run.texts() == answers(range(count))
        assert server.paid == count == client.successes and client.failures == {}
        failures = sum(server.failures.values())
        assert client.calls == len(server.requests) == count + failures
        assert 350 < failures < 700
        assert {fault().kind() for fault in FAULTS.values()} <= server.failures.keys()
        assert max(Counter(numbers_of(server)).values()) <= 4
        paid_for_nothing = [line for line in run.lines() if not line["key"]]
        assert paid_for_nothing and all(line["tokens"] == [12, 5] for line in paid_for_nothing)
        assert client.journal.tokens == [
            a + b * len(paid_for_nothing) for a, b in zip(server.paid_tokens, (12, 5))
        ]
        seen = len(server.requests)
        run(server, count, workers=32)
        assert len(server.requests) == seen  # all is there
    said = {record.getMessage()[:24] for record in caplog.records}
    assert said <= {"Failed to parse headers "}  # no word of a pool that is full


def test_one_worker_and_many_leave_the_same(tmp_path, quick):
    kept = []
    for workers in (1, 8):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with ChatServer(faults=0.1, seed=3) as server:
            own = Run(folder)
            own(server, 60, workers=workers, deadline=0.5)
            kept.append({line["key"]: line["reply"] for line in own.lines() if line["key"]})
    assert kept[0] == kept[1] and len(kept[0]) == 60
    assert kept[0][request_of(7).key()] == {
        "text": "answer to question 7", "finish": "stop", "model": "stub-1",
        "system_fingerprint": "fp_0",
    }  # fmt: skip


# What a request is known by


def test_only_what_is_the_same_in_all_is_not_asked_again(run):
    """A changed temperature is another request, and so is another sample."""
    first = request_of(0, temperature=0.5)
    others = [
        request_of(0, temperature=0.6),
        request_of(0),
        request_of(0, temperature=0.5, model="n"),
        request_of(1, temperature=0.5),
        Request(first.body, sample=1),
    ]
    same = Request(dict(reversed(first.body.items())))
    assert first.key() == same.key() and len({one.key() for one in [first, *others]}) == 6
    with ChatServer() as server, Journal(run.path) as journal:
        for number, one in enumerate([first, same, *others, *others]):
            client = Client(Connection(server.url, "TEST_KEY", workers=1), journal)
            client.run(jobs(journal, [one]), 1, "record")
            assert len(server.requests) == (1, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6)[number]


def test_any_text_goes_there_and_back(run):
    """Braces, Hangul, emoji, half of an emoji."""
    texts = ["{instruction} {0} %s", "비가 온다 🌧️", "half \ud83d of one", '"\\ \x00 \u2028']
    requests = [Request({"messages": [{"role": "user", "content": text}]}) for text in texts]
    with ChatServer() as server, Journal(run.path) as journal:
        client = Client(Connection(server.url, "TEST_KEY", workers=2), journal)
        client.run(jobs(journal, requests), len(texts), "record")
        for text, request in zip(texts, requests):
            reply = journal.get(request.key())["reply"]
            assert reply["text"].replace("?", "\ud83d") == f"answer to {text}"


def test_a_record_may_need_several_requests(run):
    """Each follows from the answer to the one before, and a failure ends the record."""
    with ChatServer(script=lambda s: Reply(400) if question(s.body) == "2a" else None) as server:
        with Journal(run.path) as journal:
            client = Client(Connection(server.url, "TEST_KEY", workers=4), journal)

            def job(number):
                for step in "ab":
                    message = {"role": "user", "content": f"{number}{step}"}
                    request = Request({"messages": [message]})
                    if not journal.get(request.key()):
                        return request
                return None

            client.run((lambda n=n: job(n) for n in range(5)), 5, "record")
    asked = [question(seen.body) for seen in server.requests]
    assert sorted(asked) == sorted(
        f"{n}{step}" for n in range(5) for step in "ab" if f"{n}{step}" != "2b"
    )
    assert all(asked.index(f"{n}a") < asked.index(f"{n}b") for n in range(5) if n != 2)
    assert (client.done, client.failed) == (4, 1)


# Pauses


PAUSES = [("1", 1.0, 5), ("2 seconds from now", 0.9, 6), ("99999", 1.4, 9), ("inf", 1.4, 9),
          ("soon", 0.2, 5), ("-7", 0.2, 5), ("nan", 0.2, 5), (None, 0.2, 5)]  # fmt: skip


def first_start_after(folder, asked):
    """Seconds from a 429 to the next start of a request of any worker."""
    folder.mkdir()
    number = iter(range(10**6))

    def script(seen):
        asks = http_date(2) if asked and "now" in asked else asked
        return too_many(asks) if next(number) == 20 else Reply(200, chat("x"), wait=0.05)

    with ChatServer(script=script) as server:
        Run(folder)(server, 80, workers=6)
    assert len(server.requests) == 81
    told = server.requests[20].time
    return min(seen.time for seen in server.requests if seen.time > told + 0.15) - told


def test_all_workers_wait_when_it_is_too_much(tmp_path, monkeypatch):
    """As long as the server asks, up to a cap, which is 120 seconds if not in a test."""
    monkeypatch.setattr("janus_min.limits.LONGEST_WAIT", 1.5)
    with ThreadPoolExecutor(len(PAUSES)) as pool:
        # Signals are for the main thread.
        no_signals = nullcontext(SimpleNamespace(received=None))
        monkeypatch.setattr(client_module, "Interruptible", lambda promise: no_signals)
        waits = list(
            pool.map(
                lambda n: first_start_after(tmp_path / str(n), PAUSES[n][0]), range(len(PAUSES))
            )
        )
    for (asked, least, most), seconds in zip(PAUSES, waits):
        assert least <= seconds <= most, asked


def test_many_refusals_in_a_row_are_waited_out_ever_longer(run, quick):
    """They are no tries, as they cost nothing; waits grow if the server names none."""
    with ChatServer(script=[too_many()] * 6) as server:
        run(server, 1, workers=1)
    starts = [seen.time for seen in server.requests]
    waits = [b - a for a, b in pairwise(starts)]
    assert len(starts) == 7 and run.texts() == answers(range(1))
    assert all(QUICK * 0.25 * 2**n <= wait for n, wait in enumerate(waits))


def test_patience_has_an_end(run, quick, monkeypatch):
    monkeypatch.setattr(client_module, "PATIENCE", 0.5)
    with ChatServer(script=lambda seen: too_many("1")) as server:
        client = run(server, 2, workers=2)
    assert set(client.failures.values()) == {"HTTP 429: slow down"} and len(client.failures) == 2


def test_starts_are_spread_over_time_and_stay_so_after_a_pause(run):
    """20 a second; those whose turn fell into a pause do not all start at its end."""
    number = iter(range(10**6))

    def script(seen):
        return too_many("1") if next(number) == 8 else Reply(200, chat("x"), wait=0.3)

    with ChatServer(script=script) as server:
        run(server, 35, workers=16, requests_per_minute=1200)
    starts = [seen.time for seen in server.requests]
    assert len(starts) == 36
    told = starts[8]
    assert not [seen for seen in starts if told + 0.1 < seen < told + 1]
    gaps = [b - a for a, b in zip(starts, starts[10:])]  # ten of 0.05 seconds
    assert min(gaps) > 0.1  # on a machine that is busy with other things


# Money


def test_the_budget_holds_and_a_later_run_goes_on(run, quick):
    """By the server's own count, over several runs, with failures that were paid for."""
    prices = dict(price_in=1000.0, price_out=20000.0)

    def spent(server):
        wasted = sum(1 for line in run.lines() if line.get("failed") and any(line["tokens"]))
        read, written = server.paid_tokens
        return (read + 12 * wasted) / 1000 + (written + 5 * wasted) / 50

    useless = Reply(200, chat("x") | {"choices": []})
    with ChatServer(script=[useless] * 5) as server:
        limits = (7.0, 7.0, 21.0)
        kept = []
        for limit in limits:
            line = run.fails(server, 400, workers=16, max_cost=limit, **prices)
            assert (
                line.startswith(f"--max-cost {limit:g}: $") and "higher --max-cost goes on" in line
            )
            assert limit - 0.4 < spent(server) <= limit
            assert cost_of(run, prices) == pytest.approx(spent(server))
            kept.append((len(server.requests), len(run.texts())))
        assert kept[0] == kept[1] and kept[2][1] > 2 * kept[0][1]
        run(server, 400, workers=16, max_cost=1000.0, **prices)
        assert run.texts() == answers(range(400)) and server.paid == 400
        assert run.client.budget.spent == pytest.approx(spent(server))


def cost_of(run, prices):
    lines = run.lines()
    read, written = (sum(line["tokens"][n] for line in lines) for n in (0, 1))
    return (read * prices["price_in"] + written * prices["price_out"]) / 1e6


def test_a_server_that_does_not_count_is_counted_by_length(run):
    plain = chat("four" * 10)
    del plain["usage"]
    with ChatServer(answer=lambda body, seen: Reply(200, plain)) as server:
        run(server, 3)
    assert [line["tokens"] for line in run.lines()] == [[2, 10]] * 3


# Servers that never answer


def test_nobody_there_ends_the_run(run, quick):
    with ChatServer() as server:
        pass
    line = run.fails(server, 500)
    assert line == f"{server.url}: the first requests all failed: Connection refused"
    assert 4 <= run.client.calls <= 5 * 8


def test_a_page_that_is_no_chat_server_ends_the_run(run, quick):
    with ChatServer(script=lambda seen: HTML._replace(status=200)) as server:
        line = run.fails(server, 500)
    assert "the first requests all failed: the answer is not JSON but text/html" in line
    assert len(server.requests) <= 5 * 8


def test_an_endless_answer_ends_one_record(run):
    with ChatServer(script=[Reply(how="endless")]) as server:
        client = run(server, 3, workers=1)
    assert list(client.failures.values()) == ["an answer of more than 32 MiB"]
    assert len(server.requests) == 3 and run.texts() == answers([1, 2])


# Errors of one's own


class OwnError(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 32])
def test_what_a_worker_raises_is_raised(run, workers):
    """It does not vanish, and nothing hangs."""
    with ChatServer() as server, Journal(run.path) as journal:
        client = Client(Connection(server.url, "TEST_KEY", workers=workers), journal)

        def broken():
            raise OwnError("in a job")

        many = [*jobs(journal, map(request_of, range(5))), broken, *([broken] * 300)]
        began = time.monotonic()
        with pytest.raises(OwnError, match="in a job"):
            client.run(iter(many), len(many), "record")
    assert time.monotonic() - began < 9


def test_what_the_list_of_jobs_raises_is_raised(run):
    """And no thread and no connection stays."""
    with ChatServer() as server, Journal(run.path) as journal:
        before = threading.active_count()
        client = Client(Connection(server.url, "TEST_KEY", workers=8), journal)

        def broken():
            yield from jobs(journal, map(request_of, range(30)))
            wait_for(lambda: client.successes == 30)
            raise OwnError("in the list")

        with pytest.raises(OwnError, match="in the list"):
            client.run(broken(), 10, "record")
        wait_for(lambda: threading.active_count() <= before + 1, seconds=2)  # the watchdog


def test_a_full_disk_ends_the_run(run, monkeypatch):
    """With what is whole in the file."""
    write, left = os.write, [2000]

    def no_space(descriptor, data):
        if os.readlink(f"/proc/self/fd/{descriptor}") != str(run.path):
            return write(descriptor, data)
        if left[0] <= 0:
            raise OSError(28, os.strerror(28))
        written = write(descriptor, bytes(data[: left[0]]))
        left[0] -= written
        return written

    with ChatServer() as server:
        monkeypatch.setattr(os, "write", no_space)
        with pytest.raises(OSError, match="No space left"):
            run(server, 100)
        monkeypatch.undo()
        kept = run.texts()
        assert 5 < len(kept) < 20 and kept.items() <= answers(range(100)).items()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "--workers is 0, must be 1 to 1024"),
        ({"workers": 2000}, "--workers is 2000, must be 1 to 1024"),
        ({"deadline": 0.0}, "--deadline is 0.0, must be between 0 and 86,400 seconds"),
        ({"deadline": float("nan")}, "--deadline is nan, must be between"),
        ({"requests_per_minute": 0.0}, "--requests-per-minute is 0.0, must be greater than 0"),
        ({"tokens_per_minute": float("inf")}, "--tokens-per-minute is inf, must be greater"),
        ({"price_in": -1.0}, "--price-in is -1.0, must be 0 or more"),
        ({"price_out": float("nan")}, "--price-out is nan, must be 0 or more"),
        ({"max_cost": -1.0}, "--max-cost is -1.0, must be greater than 0"),
        ({"max_cost": 5.0}, "--max-cost needs prices: --price-in and --price-out"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        Connection(**settings)


# Secrets


def echo(seen):
    return error(f"you sent {seen.headers['authorization']}\n\n{KEY}")


LEAKS = {
    "401": lambda seen: Reply(401, echo(seen)),
    "400": lambda seen: Reply(400, echo(seen)),
    "500": lambda seen: Reply(500, echo(seen)),
    "429": lambda seen: Reply(429, error(KEY, code="insufficient_quota")),
    "redirect": lambda seen: Reply(302, KEY, (("Location", f"http://{KEY}@127.0.0.1:9/{KEY}"),)),
    "bad JSON": lambda seen: Reply(200, f'{{"key": "{KEY}'),
    "no chat": lambda seen: Reply(200, echo(seen) | {KEY: 1}),
    "HTML": lambda seen: HTML._replace(status=200, headers=(("Content-Type", f"text/{KEY}"),)),
    "page": lambda seen: Reply(500, " " * 970 + KEY),
    "half": lambda seen: Reply(200, echo(seen), how="half"),
    "bad header": lambda seen: Reply(200, b"", ((f"{KEY}\x00", KEY), ("Content-Length", KEY))),
    "encoding": lambda seen: Reply(200, KEY, (("Content-Encoding", "gzip"),)),
    "hang": lambda seen: Reply(how="hang"),
}


@pytest.mark.parametrize("path", LEAKS)
def test_the_key_is_never_shown(run, quick, capfd, tmp_path, path):
    """On the screen, in files, in what is raised, with the whole chain of causes."""
    with ChatServer(script=LEAKS[path]) as server:
        with pytest.raises(UserError) as caught:
            run(server, 30, deadline=0.3)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = [*capfd.readouterr(), "".join(traceback.format_exception(caught.value))]
    shown += [repr(run.client), repr(run.client.endpoint), repr(run.client.settings)]
    shown += [str(run.client.failures), str(caught.value)]
    shown += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert all("SECRET" not in text for text in shown)
    assert "127.0.0.1" in str(caught.value)


# Processes

PROGRAM = """
import sys
from pathlib import Path
from janus_min.cli import run
from tests.test_client import ask_all
run(lambda: ask_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
"""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_client"])  # which takes longer than what is tested


def ask_all(url, path, count):
    """What a program does; with a count of -1 it has an error nobody thought of."""
    with Journal(path) as journal:
        client = Client(Connection(url, "TEST_KEY", workers=8), journal)
        requests = [Request({"messages": None})] if count < 0 else map(request_of, range(count))
        client.run(jobs(journal, requests), count, "record")


def child(url, path, count):
    """The same in a process of its own, whose output is in a file."""
    os.environ["TEST_KEY"] = KEY
    for stream in (1, 2):
        os.dup2(os.open(f"{path}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    cli.run(lambda: ask_all(url, path, count))


def start(server, run, count):
    process = FORKS.Process(target=child, args=(server.url, run.path, count), daemon=True)
    process.start()
    return process


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_signal_ends_a_run_that_hangs(tmp_path):
    """Within 5 seconds, with what a shell reports; the next run asks for what is missing."""
    signals, hang = {signal.SIGINT: 130, signal.SIGTERM: 143}, [Reply(how="hang")] * 100
    runs, servers, processes = {}, {}, {}
    for number in signals:
        folder = tmp_path / str(int(number))
        folder.mkdir()
        runs[number] = Run(folder)
        servers[number] = ChatServer(script=[None] * 20 + hang).__enter__()
        processes[number] = start(servers[number], runs[number], 50)
    for number in signals:
        wait_for(lambda number=number: len(servers[number].requests) == 28)
        time.sleep(0.1)
        os.kill(processes[number].pid, number)
    began = time.monotonic()
    for number, status in signals.items():
        processes[number].join(20)
        out, err = (Path(f"{runs[number].path}.{stream}").read_text() for stream in (1, 2))
        assert time.monotonic() - began < 5 and processes[number].exitcode == status, err
        assert "stopped: 20 answers of this run are kept; the same command goes on" in err
        assert "Traceback" not in err and KEY not in out + err
        kept = runs[number].texts()
        assert len(kept) == 20
        servers[number].__exit__()
        with ChatServer() as server:
            runs[number](server, 50)
        assert runs[number].texts() == answers(range(50))
        assert not kept.keys() & {request_of(n).key() for n in numbers_of(server)}
        assert len(server.requests) == 30


def test_who_is_killed_loses_nothing_and_pays_for_nothing_twice(run):
    """kill -9 at five moments; what was in the file is not asked for again."""
    chance, count, kept = random.Random(5), 300, {}
    with ChatServer(
        answer=lambda body, seen: time.sleep(0.005) or f"answer to {question(body)}"
    ) as server:
        for _ in range(5):
            seen = len(server.requests)
            process = start(server, run, count)
            goal = seen + chance.randrange(20, 60)
            wait_for(lambda goal=goal: len(server.requests) >= goal)
            process.kill()
            process.join()
            time.sleep(0.05)  # requests on their way reach the server
            asked = {request_of(n).key() for n in numbers_of(server)[seen:]}
            assert not asked & kept.keys() and len(asked) == len(server.requests) - seen
            lines = run.path.read_bytes().split(b"\n")
            kept = {json.loads(line)["key"]: 1 for line in lines[:-1]}
        seen = len(server.requests)
        process = start(server, run, count)
        process.join(30)
        assert process.exitcode == 0
        assert not kept.keys() & {request_of(n).key() for n in numbers_of(server)[seen:]}
    assert run.texts() == answers(range(count)) and len(kept) > 60


def test_programs_end_with_a_status_and_without_the_key(run, tmp_path):
    """A wrong key, and an error nobody thought of."""

    def script(seen):
        return Reply(401, echo(seen), wait=1.0)

    with ChatServer(script=script) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(run.path), "5"]
        process = subprocess.Popen(command, env=environment(), stdout=-1, stderr=-1, text=True)
        (tmp_path / "other").mkdir()
        other = Run(tmp_path / "other")
        broken = start(server, other, -1)
        broken.join(20)
        out, err = (Path(f"{other.path}.{stream}").read_text() for stream in (1, 2))
        assert broken.exitcode == 1 and "TypeError" in err and "SECRET" not in out + err
        wait_for(lambda: server.requests)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 2 and err.count("\n") == 1
        assert err.startswith("error: ") and "HTTP 401: you sent Bearer [key] [key]" in err
        assert "SECRET" not in out + err
