"""What the compiler makes of the kernels, for GPUs that are not here."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from itertools import product

import pytest

from kernels import launch
from kernels.attention import HEAD_WIDTHS
from tests.programs import ROOT, environment

needs_triton = pytest.mark.skipif(launch.triton is None, reason="triton is not installed")
ATTENTION, HEAD = ("forward", "backward_q", "backward_kv"), ("absorb", "differentiate")
PRODUCTS = ("float16", "bfloat16")  # types whose products are for tensor cores


def python(*arguments, **more):
    """Runs Python where kernels are compiled, though these tests may interpret them."""
    settings = {key: v for key, v in environment().items() if key != "TRITON_INTERPRET"}
    settings |= {"OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["installed", "3.6.0"])
def compiled(request, tmp_path_factory):
    """A run of the program with a version of Triton: the version, the process and the table."""
    if launch.triton is None:
        pytest.skip("triton is not installed")
    path, expected = str(ROOT), version("triton")
    if request.param != "installed":
        if expected == request.param:
            pytest.skip("it is the installed one")
        if "TRITON_3_6" not in os.environ:
            command = "pip install --no-deps --target DIR triton==3.6.0"
            pytest.skip(f"TRITON_3_6 is not set: {command}, then set it to DIR")
        path, expected = f"{os.environ['TRITON_3_6']}{os.pathsep}{path}", request.param
    file = tmp_path_factory.mktemp("compiled") / "table.json"
    done = python("-m", "kernels.ahead_of_time", "--json", file, PYTHONPATH=path)
    assert file.exists(), done.stderr
    return expected, done, json.loads(file.read_text())


def test_every_kernel_compiles_well(compiled):
    """What is required is tried on the numbers here, too, not taken from the verdict alone."""
    expected, done, table = compiled
    assert table["faults"] == [] and done.returncode == 0, done.stdout + done.stderr
    assert table["triton"] == expected
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"Triton {expected}, ")
    assert last.endswith(f" s: {len(table['rows'])} kernels, 0 faults")
    for row in table["rows"]:
        assert row["stack"] == row["scratch"] == 0 < row["registers"] <= 255, row
        assert row["shared"] <= (227 if row["launches"] == "LARGE" else 99), row
        if row["kernel"] in ATTENTION and row["dtype"] in PRODUCTS:
            assert (row["hgmma"] > 0) == (row["utmaldg"] > 0) == (row["arch"] == 90), row
            assert (row["hmma"] > 0) == (row["arch"] != 90), row
            assert row["arrive"] <= 4, row
        elif row["kernel"] in ATTENTION:
            assert row["hmma"] == row["hgmma"] == 0, row  # fp32 is not TF32


def test_all_that_is_shipped_is_compiled_once(compiled):
    rows = compiled[-1]["rows"]
    keys = ("launches", "kernel", "dtype", "width", "arch")
    found = {tuple(row[key] for key in keys) for row in rows}
    shipped = {*product(["LARGE"], ATTENTION, PRODUCTS, HEAD_WIDTHS, [90])}
    shipped |= {*product(["SMALL"], ATTENTION, PRODUCTS, HEAD_WIDTHS, [80])}
    shipped |= {*product(["SMALL"], ATTENTION, ["bfloat16"], HEAD_WIDTHS, [89, 90])}
    shipped |= {*product(["EXACT"], ATTENTION, ["float32"], HEAD_WIDTHS, [80, 90])}
    shipped |= {*product(["-"], HEAD, [*PRODUCTS, "float32"], [None], [80, 90])}
    assert found == shipped
    for row in rows:
        if row["kernel"] in ATTENTION:
            how = getattr(getattr(launch, row["launches"]), row["kernel"])
            assert row["blocks"] == f"{how.block_q}x{how.block_k}"
            assert (row["warps"], row["stages"]) == (how.num_warps, how.num_stages)
    keys = (*keys, "heads", "tokens")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    for launches, arch in (("LARGE", 90), ("SMALL", 80)):
        own = [row for row in rows if (row["launches"], row["arch"]) == (launches, arch)]
        assert {row["heads"] for row in own} == {"32/8", "32/32"}
        assert {row["tokens"] % 16 == 0 for row in own} == {True, False}


BAD = {  # on which chip, and with what in the place of what is shipped
    "blocks": (
        "MAIN[0]",
        "launch.LARGE = launch.Launches("
        "Launch(128, 128, 4, 2), Launch(128, 128, 8, 4), Launch(64, 32, 4, 2))",
    ),
    "memory": ("MAIN[1]", "launch.SMALL = launch.SMALL._replace(forward=Launch(64, 64, 4, 4))"),
    "descriptors": ("MAIN[0]", "launch.has_tma = lambda device: False"),
}
FAULTS = {
    "blocks": {
        "forward": r"STACK is \d+ bytes, must be 0",
        "backward_q": r"shared memory is [3-9]\d\d\.\d KiB, must be at most 227\.0",
        "backward_kv": r"tensor cores are used by \['HMMA'\], must be by \['HGMMA'\]",
    },
    "memory": {"forward": r"shared memory is 1[0-5]\d\.\d KiB, must be at most 99\.0"},
    "descriptors": {kernel: r"scratch is \d+ bytes, must be 0" for kernel in ATTENTION},
}


@needs_triton
@pytest.mark.parametrize("bad", BAD)
def test_each_requirement_is_missed_by_the_kernels_that_miss_it(bad, tmp_path):
    chip, change = BAD[bad]
    code = f"""
import sys, torch
from kernels import ahead_of_time, launch
from kernels.launch import Launch
{change}
case = ahead_of_time.Case(ahead_of_time.{chip}, torch.bfloat16, 128)
sys.exit(ahead_of_time.report([case]))
"""
    done = python("-c", code, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 1, done.stdout + done.stderr
    *faults, last = done.stdout.splitlines()[4:]  # after the table
    assert last.endswith(f" s: 3 kernels, {len(faults)} faults"), done.stdout
    assert {fault.split(",")[0] for fault in faults} == FAULTS[bad].keys(), done.stdout
    name = "SMALL on sm_80" if chip == "MAIN[1]" else "LARGE on sm_90"
    for kernel, text in FAULTS[bad].items():
        expected = f"{kernel}, bfloat16, width 128, {name}: {text}"
        assert any(re.match(expected, fault) for fault in faults), done.stdout
    assert not (tmp_path / "cache").exists()  # nothing compiled earlier is taken from there


@pytest.mark.parametrize("hidden", [False, True])
def test_where_nothing_can_be_compiled_one_line_says_why(hidden):
    hide = "import sys; sys.modules['triton'] = None; " if hidden else "import sys; "
    code = hide + "from kernels import ahead_of_time; sys.exit(ahead_of_time.main())"
    done = python("-c", code, TRITON_INTERPRET="1")
    reason = "triton is not installed"
    if not hidden and launch.triton is not None:
        reason = "TRITON_INTERPRET is set"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: nothing can be compiled: {reason}\n"
