"""What a side takes: milliseconds forward and backward, memory, and whether it computes the same.

All sides of a case take turns within one run, so that a machine that gets warmer or busier does so
for all. Before every pass the GPU's L2 cache is overwritten: nobody finds the inputs in it, and the
host has time to launch ahead of the GPU, as it does in training. A backward pass is that of the
forward pass just timed, so that no graph is kept for another one.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.bench.checks import Sizes, reason
from kernels.bench.peers import Case, Side

TOO_FAR = 0.05  # who is further off computes something else: two sides in bf16 differ by 0.01
FLUSHES = 8  # overwrites of the L2 cache, half a millisecond: longer than the host takes to launch
MIB = 1 << 20
WAYS = ("forward", "backward", "both")

Wanted = dict[bool, tuple[Tensor, Tensor]]  # output and first gradient, of sides with a mean or not


@dataclass
class Run:
    """What all of one run shares."""

    sizes: Sizes
    device: torch.device
    limit: float  # seconds, after which nothing more is begun
    out: Path | None
    report: dict
    started: float = field(default_factory=time.monotonic)
    cache: Tensor | None = None  # larger than an L2 cache

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def save(self) -> None:
        """Writes what is known so far, in case the end is not reached."""
        self.report["elapsed_s"] = round(self.elapsed(), 1)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.report, indent=1) + "\n")


# The clock


def mark(run: Run) -> "float | torch.cuda.Event":
    """Now: when the GPU gets there, or on a CPU at once."""
    if run.device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    """Between two marks that have been reached."""
    return (end - start) * 1e3 if isinstance(start, float) else start.elapsed_time(end)


def flush(run: Run) -> None:
    """Overwrites the GPU's L2 cache."""
    if run.device.type == "cuda":
        if run.cache is None:
            run.cache = torch.empty(256 * MIB, dtype=torch.int8, device=run.device)
        for _ in range(FLUSHES):
            run.cache.zero_()


def synchronize(run: Run) -> None:
    """Waits for the GPU."""
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Run, function: Callable[[], object]) -> tuple[tuple, object]:
    """Marks around a call, and what it returns."""
    flush(run)
    start = mark(run)
    result = function()
    return (start, mark(run)), result


def one_round(run: Run, side: Side) -> tuple[tuple, tuple]:
    """Marks around a forward pass, and around the backward pass of its graph."""
    forward, out = timed(run, side.forward)
    backward, _ = timed(run, lambda: torch.autograd.grad(out, side.inputs, side.upstream))
    return forward, backward


def in_turns(run: Run, sides: dict[str, Side]) -> dict[str, dict]:
    """Milliseconds of each side, whose turns come in changing order."""
    rounds: dict[str, list] = {name: [] for name in sides}
    for i in range(run.sizes.rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            rounds[name].append(one_round(run, sides[name]))
        synchronize(run)
    return {
        name: {
            "forward_ms": quartiles(forward for forward, _ in marks),
            "backward_ms": quartiles(backward for _, backward in marks),
        }
        for name, marks in rounds.items()
    }


def quartiles(marks: Iterable[tuple]) -> dict[str, float]:
    """The median of the milliseconds between marks, and the quartiles around it."""
    times = [milliseconds(*pair) for pair in marks]
    low, middle, high = np.percentile(times, (25, 50, 75)).tolist()
    return {"median": middle, "q1": low, "q3": high}


# A case


def passes(side: Side) -> tuple[Tensor, Tensor]:
    """What is returned, and the gradient of the first input."""
    out = side.forward()
    return out.detach(), torch.autograd.grad(out, side.inputs, side.upstream)[0]


def expected(side: Side, scored: int | None) -> Wanted:
    """What others should find, from ours."""
    out, gradient = passes(side)
    if scored is None:
        return {False: (out, gradient)}
    of_mean = passes(replace(side, upstream=torch.full_like(out, -1 / scored)))[1]
    return {False: (out, gradient), True: (-out.sum() / scored, of_mean)}


def try_out(run: Run, side: Side, wanted: Wanted) -> dict:
    """Compiles and tunes, then measures memory, and whether it computes what ours does."""
    found = {"executed": side.executed, "mean": side.mean}
    passes(side)
    synchronize(run)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    out, gradient = passes(side)
    if run.device.type == "cuda":
        found["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / MIB
    if wanted:
        pairs = zip((side.output(out), side.gradient(gradient)), wanted[side.mean])
        off = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]
        found["off"] = float(np.max(off))
    return found


def require_time(run: Run) -> None:
    """Raises TimeoutError after the limit."""
    if run.elapsed() > run.limit:
        raise TimeoutError(f"--limit of {run.limit:.0f} s has passed")


def measure(run: Run, case: Case) -> None:
    """Tries all sides, and times those that can do it."""
    sides, wanted = {}, {}
    for name, make in case.sides.items():
        try:
            require_time(run)
            side = make()
            case.found[name] = try_out(run, side, wanted)
            if name == "ours":
                wanted = expected(side, case.scored)
            sides[name] = side
        except Exception as error:  # whatever a peer raises is why it is not timed
            case.found[name] = {"skipped": reason(error)}
    for name, times in in_turns(run, sides).items():
        case.found[name] |= times
    ours = case.found["ours"]
    if case.tables and "ours" in sides:
        marks = [timed(run, case.tables)[0] for _ in range(run.sizes.rounds)]
        synchronize(run)
        ours["tables_ms"] = quartiles(marks)
    for name in sides:
        found = case.found[name]
        found["tflops"] = rates(found, case.flops)
        mine = both(ours) if "ours" in sides else {}
        found["x"] = {which: ms / mine[which] for which, ms in both(found).items() if mine}


def both(found: dict) -> dict[str, float]:
    """Milliseconds of a side forward, backward and together; only together if it mixes them."""
    forward, backward = found["forward_ms"]["median"], found["backward_ms"]["median"]
    split = {} if found["mean"] else {"forward": forward, "backward": backward}
    return split | {"both": forward + backward}


def rates(found: dict, flops: tuple[float, float]) -> dict[str, float]:
    """TFLOP/s, for what is needed and, as "all", for what is computed."""
    work = {"forward": flops[0], "backward": flops[1], "both": sum(flops)}
    tflops = {which: work[which] / ms / 1e9 for which, ms in both(found).items()}
    if found["executed"]:
        tflops["all"] = found["executed"] / both(found)["both"] / 1e9
    return tflops
