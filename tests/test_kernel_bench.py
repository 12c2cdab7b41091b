"""The benchmark of the kernels, as far as a machine without a GPU can run it."""

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch

from kernels import launch
from kernels.bench import checks
from kernels.bench.checks import TINY
from tests.programs import ROOT, environment

CPU = torch.device("cpu")


def bench(*flags, **env):
    command = [sys.executable, "-m", "kernels.bench", *map(str, flags)]
    settings = dict(cwd=ROOT, env=environment(**env), capture_output=True, text=True)
    return subprocess.run(command, **settings)


def test_the_whole_of_it_at_toy_sizes(tmp_path):
    """Checks, every peer that a CPU has, reasons for the others, tables and the file."""
    done = bench("--tiny", "--out", tmp_path / "deep" / "found.json")
    assert done.returncode == 0, done.stderr
    assert ", 0 failed; " in done.stdout and "Times of --tiny are no measurements" in done.stdout
    found = json.loads((tmp_path / "deep" / "found.json").read_text())
    assert found["tiny"] and found["ok"] and found["torch"] == torch.__version__
    assert len(found["checks"]) > 10 and all(check["ok"] for check in found["checks"])
    for case in found["cases"]:
        sides = case["sides"]
        assert sides["ours"]["forward_ms"]["median"] > 0 and case["flops"][0] > 0
        timed = [name for name, side in sides.items() if "skipped" not in side]
        peers = {"attention": "SDPA flash, GQA", "cross-entropy": "naive"}
        if "documents" in case["title"] or case["operation"] == "cross-entropy":
            assert peers[case["operation"]] in timed
            assert sides[peers[case["operation"]]]["off"] < 0.01
    cudnn = found["cases"][0]["sides"]["SDPA cuDNN, GQA"]
    assert torch.cuda.is_available() or "RuntimeError: " in cudnn["skipped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = bench(TRITON_INTERPRET="0")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "kernels.bench needs a GPU, and no TRITON_INTERPRET: --tiny is for trying it out\n"
    )


def test_wrong_kernels_do_not_pass_its_checks(monkeypatch, capsys):
    """Scores that are 1 % too large; log-probabilities of a slice too few."""
    assert all(found["ok"] for found in islice(checks.run_checks("attention", TINY, CPU), 1))
    monkeypatch.setattr(launch, "LOG2_E", 1.01 * launch.LOG2_E)
    [found] = islice(checks.run_checks("attention", TINY, CPU), 1)
    assert not found["ok"] and found["errors"]["o"]["ratio"] > 2
    whole = checks.linear_cross_entropy.slices
    monkeypatch.setattr(
        checks.linear_cross_entropy, "slices", lambda *sizes: whole(*sizes)[:-1] or whole(*sizes)
    )
    first, sliced = islice(checks.run_checks("cross-entropy", TINY, CPU), 2)
    assert first["ok"] and not sliced["ok"]
    assert capsys.readouterr().out.count(" FAIL\n") == 2
