"""Memory that the loss adds: `token_logps` beside cross-entropy over all logits.

    python -m tests.bench.loss_memory

Measured is the rise of the resident set's peak over a forward and a backward pass of the loss
alone, gradients of hidden states and head included. Half of the positions have a target, as in
fine-tuning with prompts; the naive side computes the logits of all, as Hugging Face does. Each
measurement is a process of its own, because memory that an earlier one has freed would not count
again. Linux only: the peak is `VmHWM` of /proc/self/status, and writing 5 to /proc/self/clear_refs
sets it back (proc(5)).

Target: 0.35 of the naive peak.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.linear_cross_entropy import token_logps
from tests.bench.common import machine

N, D, V = 2048, 512, 32000  # tokens, width, vocabulary
ROUNDS = 3
TARGET = 0.35
TOLERANCE = 1e-4  # of loss and gradients, relative to their largest entry


def naive_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1)


def our_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -token_logps(hidden, weight, targets, impl="torch").sum() / (targets >= 0).sum()


SIDES = {"naive": naive_loss, "janus-min": our_loss}


def make_inputs(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, head and targets; the first half of the tokens has no target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, D, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, D, generator=generator).mul_(0.05).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[: tokens // 2] = -1
    return hidden, weight, targets


def memory(field: str) -> int:
    """A field of /proc/self/status, in bytes: VmRSS is the resident set, VmHWM its peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def measure(side: str, out: Path) -> None:
    """Prints the bytes that a side's loss adds at its peak, and writes its loss and gradients."""
    SIDES[side](*make_inputs(64, 1000)).backward()  # loads the libraries and starts their threads
    hidden, weight, targets = make_inputs(N, V)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    loss = SIDES[side](hidden, weight, targets)
    loss.backward()
    print(memory("VmHWM") - before)
    save_file({"loss": loss.detach(), "hidden": hidden.grad, "weight": weight.grad}, out)


def measure_apart(side: str, out: Path) -> int:
    """`measure` in a process of its own. Returns the bytes."""
    command = [sys.executable, "-m", "tests.bench.loss_memory", "--side", side, "--out", str(out)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def check_gradients(naive: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Prints how far the sides' results are apart; exits if they do not agree."""
    for name, expected in naive.items():
        error = ((ours[name] - expected).abs().max() / expected.abs().max()).item()
        kind = "loss" if name == "loss" else f"gradient of {name}"
        print(f"  {kind}: relative difference {error:.1e}")
        if error > TOLERANCE:
            raise SystemExit(f"{kind}: the sides differ by more than {TOLERANCE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, help="for the processes that it starts itself")
    parser.add_argument("--out", type=Path, help="where such a process writes its gradients")
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.out)
        return

    print(machine())
    print(f"\n{N:,} tokens, half of them with a target, width {D}, vocabulary {V:,}")
    with tempfile.TemporaryDirectory() as directory:
        files = {side: Path(directory) / f"{side}.safetensors" for side in SIDES}
        rises: dict[str, list[int]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side, file in files.items():
                rises[side].append(measure_apart(side, file))
        check_gradients(*(load_file(file) for file in files.values()))
    print(f"  {'':14}{'median MiB':>12}{'min':>8}{'max':>8}")
    for side, values in rises.items():
        middle, least, most = (f(values) / 2**20 for f in (median, min, max))
        print(f"  {side:14}{middle:12.1f}{least:8.1f}{most:8.1f}")
    print(f"  {'gradients':14}{4 * (N * D + V * D) / 2**20:12.1f}, which both sides include")
    naive, ours = (median(values) for values in rises.values())
    print(f"ratio {ours / naive:.2f}, target {TARGET:.2f} or less")


if __name__ == "__main__":
    main()
