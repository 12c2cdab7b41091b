"""How fast our kernels are beside those of others, once they are known to be right.

    python -m kernels.bench [--out kernels/results/FILE.json] [--only attention] [--quick]
    python -m kernels.bench --sweep     other sizes of blocks for attention, with ours alone
    python -m kernels.bench --tiny      all of it at toy sizes, without a GPU: measures nothing

First `checks.py`. One failure makes all times void, and the exit status 1. Then every side in
`peers.py` is timed, in turns within one run. A round of a side is its forward pass, timed, and the
backward pass of that very graph, timed apart; before either, the L2 cache is overwritten, which
also lets the host run ahead of the GPU as it does in training. What is compiled or tuned is so
before. Medians are shown, their quartiles are in the JSON file. In the tables

    x      how many times as fast ours is: their time over ours
    off    ‖theirs − ours‖ / ‖ours‖ of what is returned or of the first gradient, whichever is more
    MiB    the most memory that both passes take, results included, beyond the inputs

Rates are in TFLOP/s. Attention's forward pass has two products of 2 Dh FLOPs for every head, query
and key that it sees, its backward pass five. Logits, and the gradients of hidden states and of the
output head, take 2 M D V each for M tokens with a target. "all" is the rate of both passes with
what a side computes twice, or where nothing is scored. Where a mean is returned, gradients may be
made in the forward pass: only both passes together can be compared.
"""

import argparse
import os
import platform
import subprocess
import sys
import textwrap
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

if "--tiny" in sys.argv and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton asks when it is first imported

from kernels import launch
from kernels.bench import checks, timing
from kernels.bench.checks import QUICK, TINY, Row, Sizes, layouts, reason
from kernels.bench.peers import CASES, Case, ours_attention
from kernels.bench.timing import TOO_FAR, WAYS, Run, Wanted, both
from kernels.launch import Launch, Launches

# For --sweep: block_q, block_k, warps, stages. Forward and dQ share a table of tiles, so one of
# ALONG_KEYS is for both; what is not tried stays as it is in `launch.py`.
ALONG_KEYS = (
    (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3),
    (64, 128, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3),
)  # fmt: skip
ALONG_QUERIES = ((64, 128, 8, 2), (64, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (32, 128, 8, 3))


# Other launches


def try_launches(run: Run, row: Row, launches: Launches, wanted: Wanted) -> dict:
    """Our attention as launched otherwise: its times, or why there are none."""
    with checks.replaced(launch, LARGE=launches, SMALL=launches):
        try:
            timing.require_time(run)
            side = ours_attention(row)
            return timing.try_out(run, side, wanted) | timing.in_turns(run, {"ours": side})["ours"]
        except Exception as error:  # too much shared memory, say
            return {"skipped": reason(error)}


def sweep(run: Run) -> None:
    """Tables of other launches, the fastest first."""
    usual = launch.attention(run.sizes.dtypes[0], run.device)
    tried = {
        "forward and dQ": [
            usual._replace(forward=Launch(*x), backward_q=Launch(*x)) for x in ALONG_KEYS
        ],
        "dK and dV": [usual._replace(backward_kv=Launch(*x)) for x in ALONG_QUERIES],
    }
    two = [each for each in layouts(run.sizes.tokens) if each.name in QUICK.layouts]
    for layout, width in ((layout, width) for width in run.sizes.widths for layout in two):
        row = checks.random_row(layout, (*run.sizes.heads, width), run.sizes.dtypes[0], run.device)
        wanted = timing.expected(ours_attention(row), None)
        for title, candidates in tried.items():
            found = {
                each: try_launches(run, row, each, wanted)
                for each in dict.fromkeys([usual, *candidates])
            }
            show_sweep(run, f"{title}: {layout.name}, heads of {width}", found, usual)
        run.save()


# What is printed


def show_sweep(run: Run, title: str, found: dict[Launches, dict], usual: Launches) -> None:
    """Launches that can be compiled, the fastest first, then the others."""
    print(f"\n[{run.elapsed():.0f} s] {title}")
    print(f"{'(block_q, block_k, warps, stages) of forward, dQ, dK and dV':60}", end="")
    print("  forward backward     both     off")
    time_of = {each: both(times)["both"] for each, times in found.items() if "skipped" not in times}
    for launches in sorted(found, key=lambda each: time_of.get(each, np.inf)):
        times = found[launches]
        name = " ".join(str(tuple(each)) for each in launches) + " *" * (launches == usual)
        run.report["sweep"].append({"title": title, "launches": launches, **times})
        if "skipped" in times:
            print(f"{name}\n    {times['skipped']}")
        else:
            cells = "".join(f"{ms:9.3f}" for ms in both(times).values())
            wrong = not times["off"] <= TOO_FAR
            print(f"{name:60}{cells}{times['off']:8.4f}" + " WRONG" * wrong)
    print("* as in launch.py", flush=True)


def number(values: dict, key: str, width: int, digits: int) -> str:
    """A cell of a table, with a dash where there is no such number."""
    return f"{values[key]:{width}.{digits}f}" if key in values else f"{'-':>{width}}"


def show(run: Run, case: Case) -> None:
    """The table of a case."""
    void = "" if run.report["ok"] else "VOID, a check failed: "
    print(f"\n[{run.elapsed():.0f} s] {void}{case.operation}: {case.title}")
    print(f"{'':18}{'milliseconds':^27}{'TFLOP/s':^22}{'x':^18}")
    print(f"{'':18}{'forward':>9}{'backward':>9}{'both':>9}{'forw':>6}{'back':>5}{'both':>6}"
          f"{'all':>5}{'forw':>6}{'back':>6}{'both':>6}{'off':>7}{'MiB':>7}")  # fmt: skip
    for name, found in case.found.items():
        if "skipped" in found:
            print(f"{name:<18}not timed: {found['skipped']}"[:100])
            continue
        cells = [number(both(found), way, 9, 3) for way in WAYS]
        cells += [number(found["tflops"], way, 5 + (way != "backward"), 0) for way in WAYS]
        cells += [number(found["tflops"], "all", 5, 0)]
        cells += [number(found["x"], way, 6, 2) for way in WAYS]
        cells += [number(found, "off", 7, 4), number(found, "peak_mib", 7, 0)]
        wrong = not found.get("off", 0.0) <= TOO_FAR
        print(f"{name:<18}" + "".join(cells) + " WRONG" * wrong)
    if "tables_ms" in case.found["ours"]:
        print(f"tables of tiles, once a row: {case.found['ours']['tables_ms']['median']:.3f} ms")
    sys.stdout.flush()


def summary(run: Run) -> None:
    """Ours against the fastest way of each peer in either direction, and what a window saves."""
    print(f"\n{'x, against the fastest of a peer':<76}  forw  back  both")
    whole: dict[str, float] = {}
    for case in run.report["cases"]:
        fastest: dict[str, dict[str, float]] = {}
        for name, found in case["sides"].items():
            best = fastest.setdefault(name.split(",")[0], {})
            for way, x in found.get("x", {}).items():
                best[way] = min(x, best.get(way, x))
        case["fastest"] = fastest
        for peer, x in fastest.items():
            if x and peer != "ours":
                cells = "".join(number(x, way, 6, 2) for way in WAYS)
                print(f"{case['title'][:58]:<58}{peer:<18}{cells}")
        if fastest["ours"] and case["title"].startswith("1 document"):
            whole = both(case["sides"]["ours"])
        if fastest["ours"] and whole and case["title"].startswith("sliding window"):
            mine = both(case["sides"]["ours"])
            cells = "".join(f"{whole[way] / mine[way]:6.2f}" for way in WAYS)
            print(f"{'sliding window: as fast as our own 1 document':<76}{cells}")


# The program


def machine() -> dict:
    """What the numbers are measured on and with."""
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m kernels.bench", *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    for package in ("triton", "liger_kernel", "cut_cross_entropy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def state_of_gpu() -> str:
    """The driver, and clocks and what holds them back, as nvidia-smi knows them."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"
    # The last field's name has changed, and an unknown name is an error.
    for more in (",clocks_event_reasons.active", ",clocks_throttle_reasons.active", ""):
        command = ["nvidia-smi", f"--query-gpu={fields}{more}", "--format=csv"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no nvidia-smi, {reason(error)}"
        if done.returncode == 0:
            break
    return (done.stdout + done.stderr).strip()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write all numbers, as JSON")
    parser.add_argument("--only", choices=CASES, help="one of the two operations")
    parser.add_argument("--quick", action="store_true", help="fewer checks, cases and rounds")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it works")
    parser.add_argument("--sweep", action="store_true", help="other launches of attention, alone")
    parser.add_argument("--limit", type=float, default=450, help="seconds to begin things in")
    return parser.parse_args()


def main() -> int:
    """The exit status: 1 if a check failed."""
    given = parsed()
    on_gpu = torch.cuda.is_available() and not launch.INTERPRETED
    if not on_gpu and not given.tiny:
        sys.exit("kernels.bench needs a GPU, and no TRITON_INTERPRET: --tiny is for trying it out")
    sizes = TINY if given.tiny else QUICK if given.quick else Sizes()
    about = machine()
    report = about | {"tiny": given.tiny, "ok": True, "checks": [], "cases": [], "sweep": []}
    run = Run(sizes, torch.device("cuda" if on_gpu else "cpu"), given.limit, given.out, report)
    print(textwrap.fill(", ".join(f"{name} {value}" for name, value in about.items()), 100))
    report |= {"gpu_before": state_of_gpu(), "sizes": asdict(sizes) | {"dtypes": str(sizes.dtypes)}}
    print(report["gpu_before"], flush=True)
    operations = [given.only] if given.only else list(CASES)
    torch.set_float32_matmul_precision("highest")  # images exist in which tf32 is on
    if given.sweep:
        sweep(run)
        operations = []
    for operation in operations:
        report["checks"] += checks.run_checks(operation, sizes, run.device)
    report["ok"] = all(check["ok"] for check in report["checks"])
    run.save()
    for case in (case for each in operations for case in CASES[each](sizes, run.device)):
        timing.measure(run, case)
        show(run, case)
        facts = {"operation": case.operation, "title": case.title, "flops": case.flops}
        report["cases"].append(facts | {"void": not report["ok"], "sides": case.found})
        run.save()
    if report["cases"]:
        summary(run)
    report["gpu_after"] = state_of_gpu()
    run.save()
    failed = sum(not check["ok"] for check in report["checks"])
    print(f"\n{report['gpu_after']}\n{len(report['checks'])} checks, {failed} failed"
          f"{': all times are VOID' * bool(failed)}; {run.elapsed():.0f} s")  # fmt: skip
    if given.tiny:
        print("Times of --tiny are no measurements: toy sizes, or an interpreter on a CPU.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
