"""Pace, waits and budget, with a clock of their own."""

import bisect
import threading
import time
from email.utils import formatdate

import pytest

from janus_min.limits import LONGEST_WAIT, Budget, Pace, retry_after, wait_before

MINUTE = 60 - 1e-6  # seconds: a start at second 0 and one at 60 are not in one minute


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def busiest_minute(starts):
    """The most that begins within a minute, of (second, amount)."""
    starts = sorted(starts)
    seconds, most = [second for second, _ in starts], 0
    for first, second in enumerate(seconds):
        last = bisect.bisect_left(seconds, second + MINUTE)
        most = max(most, sum(amount for _, amount in starts[first:last]))
    return most


def run(pace, clock, requests, workers, seconds, tokens=1, pauses=()):
    """Starts of `requests` by so many workers, each of which takes `seconds`; what the client does
    with a Pace. Each of `pauses` is (number of the request that is told to wait, seconds).
    """
    free, starts, pauses = [clock.now] * workers, [], dict(pauses)
    while len(starts) < requests:
        clock.now = max(clock.now, min(free))
        worker = free.index(min(free))
        start = pace.turn(tokens)
        starts.append((start, tokens))
        free[worker] = start + seconds
        if len(starts) in pauses:
            pace.pause(pauses[len(starts)])
    return starts


@pytest.mark.parametrize("workers", [1, 7, 100])
@pytest.mark.parametrize("rate", [1, 50, 600])
def test_never_more_starts_in_a_minute_than_allowed(workers, rate):
    """By the clock, however many threads, after quiet times too."""
    clock = Clock()
    pace = Pace(rate, None, clock)
    starts = run(pace, clock, 3 * rate, workers, seconds=2.0)
    clock.now = starts[-1][0] + 500
    starts += run(pace, clock, 3 * rate, workers, seconds=0.0)
    assert busiest_minute((second, 1) for second, _ in starts) <= rate
    if workers == 100:  # and no slower than that
        assert starts[3 * rate - 1][0] - starts[0][0] == pytest.approx((3 * rate - 1) * 60 / rate)


def test_never_more_tokens_in_a_minute_than_allowed():
    """A request that is alone larger than the limit goes, and its time is waited for."""
    clock = Clock()
    pace = Pace(None, 1000, clock)
    starts = run(pace, clock, 200, 9, seconds=1.0, tokens=70)
    assert busiest_minute(starts) <= 1000 + 70
    starts = run(pace, clock, 3, 9, seconds=1.0, tokens=3000)
    assert starts[1][0] - starts[0][0] == starts[2][0] - starts[1][0] == pytest.approx(180)


def test_what_is_not_used_is_given_back_and_what_is_used_more_is_taken():
    clock = Clock()
    pace = Pace(None, 600, clock)  # ten tokens a second
    assert pace.turn(100) == 1000
    assert pace.turn(100) == 1010
    pace.settle(100, 30)
    assert pace.turn(1) == pytest.approx(1013)
    pace.settle(1, 51)
    assert pace.turn(1) == pytest.approx(1018.1)
    clock.now = 2000.0  # what was given back long ago does not add up
    for _ in range(50):
        pace.turn(10)
        pace.settle(10, 0)
    assert pace.turn(10) == 2000 and pace.turn(10) == pytest.approx(2001)


def test_no_limits_no_waits():
    clock = Clock()
    pace = Pace(None, None, clock)
    assert [pace.turn(10**9) for _ in range(5)] == [1000] * 5


def test_nobody_starts_in_a_pause_and_not_all_at_its_end():
    """Turns that were given out before are taken anew, as evenly as all others."""
    clock = Clock()
    pace = Pace(60, None, clock)
    first = [pace.turn(1) for _ in range(5)]
    pace.pause(30)
    pace.pause(10)  # does not end the longer one
    again = [pace.turn(1) for _ in range(5)]
    assert first == [1000, 1001, 1002, 1003, 1004] and again[0] == 1030
    starts = [(second, 1) for second in again] + [(pace.turn(1), 1) for _ in range(200)]
    assert busiest_minute(starts) <= 60


def test_waits_a_server_asks_for(monkeypatch):
    """Seconds, dates, and what is neither, wherever this machine is."""
    monkeypatch.setenv("TZ", "XYZ-7")
    time.tzset()
    assert retry_after(None) is None and retry_after("2") == 2 and retry_after(" 0.5 ") == 0.5
    for long in ("99999", "inf", "1e999", "Fri, 31 Dec 9999 23:59:59 GMT"):
        assert retry_after(long) == LONGEST_WAIT
    for past in ("-5", "0", "-inf", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00"):
        assert retry_after(past) == 0
    for garbage in ("soon", "", " ", "nan", "2, 2", "Fri, 99 Foo 2025", "\x00",
                    "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
                    "Mon, 01 Jan 2024 00:00:00 +99999999999999"):  # fmt: skip
        assert retry_after(garbage) is None, garbage
    assert 28 <= retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert 28 <= retry_after(formatdate(time.time() + 30)) <= 30  # the same, as -0000
    assert retry_after(formatdate(time.time() + 9999, usegmt=True)) == LONGEST_WAIT
    monkeypatch.undo()
    time.tzset()


def test_waits_grow_and_differ():
    """Exponential with jitter, capped; never less than what was asked for."""
    for attempt in range(8):
        waits = [wait_before(attempt, None) for _ in range(300)]
        full = min(60, 0.5 * 2**attempt)
        assert full / 2 <= min(waits) < 0.6 * full and 0.9 * full < max(waits) <= full
    assert 30 <= wait_before(5000, None) <= 60
    waits = [wait_before(3, 2.0) for _ in range(300)]
    assert 2 <= min(waits) < 2.2 and max(waits) <= 2.45 and len(set(waits)) > 250
    assert len({wait_before(0, 0.0) for _ in range(50)}) > 40


def test_a_budget_keeps_room_for_what_is_on_its_way():
    """1 dollar per 1,000 tokens read, 2 per 1,000 written."""
    budget = Budget(10.0, 1000, 2000)
    assert budget.cost((1000, 500)) == 2
    assert all(budget.reserve((2000, 1000), lambda: False) for _ in range(2))
    assert not budget.reserve((2001, 0), lambda: True)  # no room now, and the run ends
    budget.settle((2000, 1000), (500, 0))
    assert (budget.spent, budget.reserved) == (0.5, 4)
    assert budget.reserve((2000, 1750), lambda: False)  # to the last cent
    budget.settle((2000, 1750), (2000, 1750))
    budget.settle((2000, 1000), (2000, 1000))
    assert (budget.spent, budget.reserved) == (10, 0)
    assert not budget.reserve((1, 0), lambda: False)  # there never will be any


def test_nothing_stays_reserved_when_nothing_is_on_its_way():
    """A rest of many additions would be waited for without end."""
    budget = Budget(1e6, 0.1, 0.7)
    amounts = [(n, n * n) for n in range(1, 200)]
    for amount in amounts:
        assert budget.reserve(amount, lambda: False)
    for amount in reversed(amounts):
        budget.settle(amount, (0, 0))
    assert budget.reserved == 0.0


def test_a_budget_waits_until_there_is_room():
    budget = Budget(10.0, 1000, 0)
    budget.reserve((9000, 0), lambda: False)
    got = []
    thread = threading.Thread(target=lambda: got.append(budget.reserve((2000, 0), lambda: False)))
    thread.start()
    time.sleep(0.2)
    assert not got
    budget.settle((9000, 0), (8000, 0))
    thread.join(2)
    assert got == [True] and budget.spent == 8


def test_no_limit_is_no_limit():
    budget = Budget(None, 1000, 0)
    assert all(budget.reserve((10**9, 0), lambda: False) for _ in range(3))
