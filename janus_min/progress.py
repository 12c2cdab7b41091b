"""One line that a person watches: rewritten in a terminal, printed now and then anywhere else."""

import sys
import time


class Progress:
    """How many of `total` are done, `done` of them earlier; rate, and time that is left."""

    def __init__(self, total: int, unit: str, done: int = 0, noun: str = "step"):
        self.total, self.unit, self.first, self.noun = total, unit, done, noun
        self.live = sys.stdout.isatty()
        self.start, self.amount, self.printed = time.monotonic(), 0, 0.0
        self.open = False  # whether the cursor stands behind an unfinished line

    def update(self, done: int, amount: int, text: str) -> None:
        """`done` of `total` are finished; `amount` is what the rate counts, since the last call."""
        self.amount += amount
        now = time.monotonic()
        interval = 0.1 if self.live else 10.0  # seconds
        if now - self.printed < interval and done < self.total:
            return
        self.printed = now
        seconds = max(now - self.start, 1e-9)
        left = seconds / max(1, done - self.first) * (self.total - done)
        rate = self.amount / seconds
        rate = f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s"
        line = f"{self.noun} {done}/{self.total}  {text}  {rate}  ETA {clock(left)}"
        self.open = self.live
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", flush=True)

    def close(self) -> None:
        """Ends the line, so that whatever is printed next begins on its own."""
        if self.open:
            print(flush=True)
        self.open = False


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
