"""One line that a person watches: rewritten in a terminal, printed now and then anywhere else."""

import sys
import time


class Progress:
    """Progress of `total` units of work, with its rate and the time that is left."""

    def __init__(self, total: int, unit: str, done: int = 0):
        self.total, self.unit = total, unit
        self.live = sys.stdout.isatty()
        self.first, self.start, self.amount, self.printed = done, time.monotonic(), 0, 0.0

    def update(self, done: int, amount: int, text: str) -> None:
        """`done` of `total` are finished; `amount` is what the rate counts, since the last call."""
        self.amount += amount
        now = time.monotonic()
        interval = 0.1 if self.live else 10.0
        if now - self.printed < interval and done < self.total:
            return
        self.printed = now
        seconds = max(now - self.start, 1e-9)
        left = seconds / max(1, done - self.first) * (self.total - done)
        rate = f"{self.amount / seconds:,.0f} {self.unit}/s"
        line = f"step {done}/{self.total}  {text}  {rate}  ETA {clock(left)}"
        if self.live:
            print(f"\r\x1b[K{line}", end="" if done < self.total else "\n", flush=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leaves the line as it stands, so that what is printed next begins on its own."""
        if self.live:
            print(flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
