"""How fast requests may start, how long to wait before another try, and what a run may cost."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 120.0  # seconds, whatever a server asks for
MILLION = 1_000_000
CHARACTERS_PER_TOKEN = 4  # of English, for estimates


class Pace:
    """Starts of requests, evenly spread over time: at most so many requests and tokens a minute.

    All threads share it. `clock` gives seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.clock, self.lock = clock, threading.Lock()
        self.next_request = self.next_token = self.paused_until = clock()

    def turn(self, tokens: int) -> float:
        """Takes the next free turn for a request of so many tokens. Returns when it may start."""
        with self.lock:
            start = max(self.clock(), self.paused_until, self.next_request, self.next_token)
            self.next_request = start + self.per_request
            self.next_token = start + tokens * self.per_token
            return start

    def settle(self, expected: int, used: int) -> None:
        """A request that was expected to take so many tokens took another number of them."""
        with self.lock:
            self.next_token += (used - expected) * self.per_token

    def pause(self, seconds: float) -> None:
        """Nobody starts for so many seconds: the server has said that it is too much."""
        with self.lock:
            self.paused_until = max(self.paused_until, self.clock() + seconds)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, as a number or a date; None for neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        seconds = (date - datetime.now(timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def wait_before(attempt: int, asked: float | None) -> float:
    """Seconds before the next try: what the server asked for, else 0.5, 1, 2, … up to a minute;
    with jitter, so that threads which failed together do not come back together.
    """
    own = min(60.0, 0.5 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
    if asked is not None:
        return max(asked, own if asked < 1 else 0.0) * random.uniform(1.0, 1.1) + random.uniform(
            0.0, 0.25
        )
    return own


def dollars(tokens: Sequence[int], price_in: float, price_out: float) -> float:
    """The cost of tokens read and written, at prices per million."""
    return (tokens[0] * price_in + tokens[1] * price_out) / MILLION


class Budget:
    """What is spent, and what the requests on their way may cost at most, under one limit.

    Prices are in dollars per million tokens. A request starts only if the limit holds even if it,
    and all that are on their way, use all the tokens that they may. What a server asks for an
    answer that never arrived nobody tells; it counts as nothing.
    """

    def __init__(self, limit: float | None, price_in: float, price_out: float):
        self.limit, self.prices = limit, (price_in, price_out)
        self.condition = threading.Condition()
        self.spent = self.reserved = 0.0
        self.on_their_way = 0

    def cost(self, tokens: tuple[int, int]) -> float:
        """Dollars for so many tokens read and written."""
        return dollars(tokens, *self.prices)

    def reserve(self, tokens: tuple[int, int], stopped: Callable[[], bool]) -> bool:
        """Waits until there is room for a request. False if there never will be, or at the end."""
        cost = self.cost(tokens)
        with self.condition:
            while self.limit is not None and self.spent + self.reserved + cost > self.limit:
                if stopped() or not self.on_their_way:
                    return False
                self.condition.wait(0.1)
            self.reserved += cost
            self.on_their_way += 1
            return True

    def settle(self, expected: tuple[int, int], used: tuple[int, int]) -> None:
        """A request is over."""
        with self.condition:
            self.on_their_way -= 1
            self.reserved = self.reserved - self.cost(expected) if self.on_their_way else 0.0
            self.spent += self.cost(used)
            self.condition.notify_all()
