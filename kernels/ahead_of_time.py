"""Compiles every kernel that is shipped to machine code of real GPUs, without a GPU.

    python -m kernels.ahead_of_time [--arch 80 90] [--json FILE]

Two things slow a kernel down and change no number, so that no test of results sees them: registers
that are spilled, into memory, and products that miss the tensor cores. A third shows only on a GPU,
as an error: more shared memory than a block can have. The compiler decides all three, differently
in each version, so they are read here from what it made. Of each kernel is required

    stack          0 bytes: nothing is spilled
    shared memory  what a block can have on the GPU, for all but LARGE on the smallest GPUs
    tensor cores   used by attention in fp16 and bf16: HGMMA and no HMMA on sm_90, HMMA on others.
                   In fp32 it does without them on purpose, to be exact. Products are waited for
                   in groups, not one by one
    scratch        0 bytes: no memory that somebody would have to allocate for Triton

The exit status is 0 if all of it holds, 1 if not, and 2 if nothing can be compiled.

No signature is written down here. The public operations are called on a CPU, with `launch.py`
believing that it is a GPU; in the place of a launch, Triton is asked to compile what it would have
launched (`warmup`), with a driver that knows nothing but the GPU's architecture. So these are the
kernels that training launches, with its block sizes, descriptors, constants and alignments.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from kernels import attention, launch, linear_cross_entropy
from kernels.launch import triton

CUDA = torch.device("cuda")  # a name: nobody is asked for it
SMALLEST_MEMORY = 101_376  # bytes of shared memory for a block on RTX 30, 40 and 50 (99 KiB)


class Chip(NamedTuple):
    """What `launch.py` asks a GPU."""

    arch: int  # its compute capability, 90 for 9.0
    memory: int  # bytes of shared memory that a block can have


MAIN = (Chip(90, 232_448), Chip(80, 166_912))  # H100 and H200 take LARGE, A100 takes SMALL
# RTX 40, and a chip that does not exist: SMALL with descriptors, as an RTX 50 takes it.
OTHERS = (Chip(89, SMALLEST_MEMORY), Chip(90, SMALLEST_MEMORY))
# RTX 50 itself: for it Triton 3.6.0 makes a stack that each load writes and nothing reads.
ON_DEMAND = (Chip(120, SMALLEST_MEMORY),)


class Case(NamedTuple):
    """A call of one of the operations, forward and backward, on a chip."""

    chip: Chip
    dtype: torch.dtype
    Dh: int | None  # head width, None for the output head
    N: int = 48  # tokens: for multiples of 16 Triton compiles a kernel of its own
    H: int = 32
    G: int = 8


class Row(NamedTuple):
    """What the compiler made of a launch."""

    kernel: str
    dtype: str
    width: int | None  # of a head
    heads: str  # H/G
    tokens: int
    arch: int
    launches: str  # LARGE, SMALL or EXACT, - for the output head
    blocks: str
    warps: int
    stages: int
    shared: float  # KiB of a block
    limit: float  # KiB that it may have
    scratch: int  # bytes
    registers: int  # of a thread
    stack: int  # bytes of a thread
    hgmma: int | None  # instructions, counted in attention: products on tensor cores
    hmma: int | None
    arrive: int | None  # groups of HGMMA that are waited for together
    utmaldg: int | None  # loads by a descriptor
    seconds: float


def cases(archs: Sequence[int]) -> list[Case]:
    """All that is shipped, for the chips of these architectures.

    On the main chips that is every type and head width. On others bf16 stands for fp16, which
    differs in the type of products alone. What else could change a kernel, as many key heads as
    query heads and a length that is no multiple of 16, is compiled once on each main chip.
    """
    found = []
    for chip in (chip for chip in (*MAIN, *OTHERS, *ON_DEMAND) if chip.arch in archs):
        dtypes = launch.DTYPES if chip in MAIN else (torch.bfloat16,)
        found += [Case(chip, dtype, Dh) for dtype in dtypes for Dh in attention.HEAD_WIDTHS]
        if chip in MAIN:
            found.append(Case(chip, torch.bfloat16, 128, N=45, G=32))
            found += [Case(chip, dtype, None, N) for dtype in dtypes for N in (48, 45)]
    return found


# From a call to launches


class Recorder:
    """Takes the place of a kernel: what would be launched becomes an item of a list."""

    def __init__(self, kernel: Any, launched: list[tuple]):
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.launched.append((self.kernel, args, options))


@contextmanager
def recorded(chip: Chip) -> Iterator[list[tuple]]:
    """Within it, operations on a CPU launch as on the chip. Gives (kernel, arguments, options)."""
    launched = []
    choose, has_tma = launch.attention, launch.has_tma
    memory = SimpleNamespace(shared_memory_per_block_optin=chip.memory)

    def recorders(module: ModuleType) -> dict[str, Recorder]:
        """By name, one for each kernel of a module."""
        found = vars(module).items()
        return {n: Recorder(k, launched) for n, k in found if isinstance(k, triton.JITFunction)}

    with (
        patch("torch.cuda.get_device_properties", lambda _: memory),
        patch("torch.cuda.get_device_capability", lambda _: divmod(chip.arch, 10)),
        patch.object(launch, "attention", lambda dtype, _: choose(dtype, CUDA)),
        patch.object(launch, "has_tma", lambda _: has_tma(CUDA)),
        patch.object(launch, "require_triton", lambda *_: None),
        patch.multiple(attention, **recorders(attention)),
        patch.multiple(linear_cross_entropy, **recorders(linear_cross_entropy)),
    ):
        yield launched


def launches(case: Case) -> tuple[str, list[tuple]]:
    """LARGE, SMALL, EXACT or -, and what a case launches, as in `recorded`."""
    chip, dtype, Dh, N, H, G = case
    like = dict(dtype=dtype, requires_grad=True)
    with recorded(chip) as launched:
        if Dh is None:
            hidden, weight = torch.zeros(N, 8, **like), torch.zeros(3 * N, 8, **like)
            targets, name = torch.zeros(N, dtype=torch.long), "-"
            out = linear_cross_entropy.token_logps(hidden, weight, targets, "triton")
        else:
            q, k, v = (torch.zeros(N, count, Dh, **like) for count in (H, G, G))
            out = attention.attention(q, k, v, torch.full((N,), N), "triton")
            named = {id(getattr(launch, name)): name for name in ("LARGE", "SMALL", "EXACT")}
            name = named[id(launch.attention(dtype, CUDA))]
        out.sum().backward()
    return name, launched


# From launches to machine code


def driver(arch: int) -> SimpleNamespace:
    """What Triton asks before it compiles: for which GPU. Nothing will be launched on it."""
    return SimpleNamespace(
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", arch, 32),
        get_current_device=lambda: arch,  # a number, to tell kernels of one GPU from another's
        get_current_stream=lambda device: 0,
    )


def rows(case: Case) -> Iterator[Row]:
    """Compiles all that a case launches."""
    name, launched = launches(case)
    triton.runtime.driver.set_active(driver(case.chip.arch))
    for kernel, arguments, options in launched:
        start = time.perf_counter()
        compiled = kernel.warmup(*arguments, grid=(1,), **options)
        seconds = time.perf_counter() - start
        constants = dict(zip(kernel.arg_names, arguments)) | options
        blocks = [str(size) for key, size in constants.items() if key.startswith("BLOCK")]
        yield Row(
            kernel=kernel.__name__.removeprefix("_"),
            dtype=str(case.dtype).removeprefix("torch."),
            width=case.Dh,
            heads=f"{case.H}/{case.G}" if case.Dh else "-",
            tokens=case.N,
            arch=case.chip.arch,
            launches=name,
            blocks="x".join(blocks),
            warps=compiled.metadata.num_warps,
            stages=compiled.metadata.num_stages,
            shared=compiled.metadata.shared / 1024,
            limit=(case.chip.memory if name == "LARGE" else SMALLEST_MEMORY) / 1024,
            scratch=compiled.metadata.global_scratch_size,
            **resources(compiled.asm["cubin"], name != "-"),
            seconds=seconds,
        )


def resources(cubin: bytes, products: bool) -> dict[str, int | None]:
    """Registers and stack, and instructions, which take longer, of kernels with products only."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", path)
        code = _tool("nvdisasm", "-c", "--no-dataflow", path) if products else ""
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    found = {"registers": registers, "stack": stack}
    kinds = {
        "hgmma": "HGMMA.",
        "hmma": "HMMA.",
        "arrive": "WARPGROUP.ARRIVE",
        "utmaldg": "UTMALDG.",
    }
    for name, text in kinds.items():
        count = len(re.findall(rf"\b{re.escape(text)}", code))
        found[name] = count if products else None
    return found


def _tool(name: str, *arguments: str | Path) -> str:
    """What one of NVIDIA's tools, which come with Triton, prints."""
    command = [getattr(triton.knobs.nvidia, name).path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# From machine code to a verdict


def faults(row: Row) -> list[str]:
    """What is required of a kernel and does not hold."""
    found = []
    if row.stack:
        found.append(f"STACK is {row.stack} bytes, must be 0: registers are spilled")
    if row.shared > row.limit:
        found.append(f"shared memory is {row.shared:.1f} KiB, must be at most {row.limit:.1f}")
    if row.scratch:
        found.append(f"scratch is {row.scratch} bytes, must be 0: it would need an allocator")
    if row.hgmma is not None:
        used = [name for name, count in (("HGMMA", row.hgmma), ("HMMA", row.hmma)) if count]
        right = [] if row.dtype == "float32" else ["HGMMA"] if row.arch == 90 else ["HMMA"]
        if used != right:
            found.append(f"tensor cores are used by {used}, must be by {right}")
        if 0 < row.hgmma <= row.arrive:
            found.append(f"{row.hgmma} HGMMA in {row.arrive} groups: each is waited for")
    where = f"{row.kernel}, {row.dtype}, width {row.width}, {row.launches} on sm_{row.arch}"
    return [f"{where}: {fault}" for fault in found]


WIDTHS = {"kernel": 13, "dtype": 8, "blocks": 7}  # of columns that are wider than their names


def line(cells: Iterable[object]) -> str:
    """A line of the table, of a row or of the names of its fields."""
    texts = []
    for name, cell in zip(Row._fields, cells):
        text = f"{cell:.1f}" if isinstance(cell, float) else str(cell)
        texts.append(text.replace("None", "-").rjust(WIDTHS.get(name, len(name))))
    return " ".join(texts)


def report(cases: Iterable[Case], path: Path | None = None) -> int:
    """Prints the table and a verdict, and writes both to a file of JSON. Returns 0 or 1."""
    start, table = time.perf_counter(), []
    print(line(Row._fields))
    # A cache of its own: nothing that was compiled earlier is reported.
    with TemporaryDirectory() as cache, patch.dict(os.environ, TRITON_CACHE_DIR=cache):
        for case in cases:
            for row in rows(case):
                table.append(row)
                print(line(row), flush=True)
    wrong = [fault for row in table for fault in faults(row)]
    version, seconds = triton.__version__, time.perf_counter() - start
    verdict = f"Triton {version}, {seconds:.0f} s: {len(table)} kernels, {len(wrong)} faults"
    print(*wrong, verdict, sep="\n")
    if path is not None:
        found = dict(triton=version, rows=[r._asdict() for r in table], faults=wrong)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def main() -> int:
    """Runs the program. Returns its exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    default = sorted({chip.arch for chip in MAIN + OTHERS})
    given = dict(choices=default + [chip.arch for chip in ON_DEMAND], default=default)
    parser.add_argument("--arch", type=int, nargs="+", **given, help=f"of GPUs ({default})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the table")
    options = parser.parse_args()
    if triton is None or launch.INTERPRETED:
        reason = "triton is not installed" if triton is None else "TRITON_INTERPRET is set"
        print(f"error: nothing can be compiled: {reason}", file=sys.stderr)
        return 2
    return report(cases(options.arch), options.json)


if __name__ == "__main__":
    sys.exit(main())
