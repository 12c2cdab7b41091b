"""Loading a 7B checkpoint: memory and time, beside `from_pretrained`.

    python -m tests.bench.loading [--folder DIR] [--layers 32]

Writes a random bf16 checkpoint with the shapes of Mistral-7B into DIR (14.5 GB, deleted at the
end), and loads it in processes of their own: by generate.py, which answers with a few tokens, by
transformers, and by two ranks of which each reads its rows. Memory is the anonymous memory of a
process at its peak, polled from outside: what the system cannot drop again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from janus_min.checkpoint import open_model, write_model
from janus_min.model import Policy
from janus_min.recipes import MISTRAL_7B
from tests.programs import ROOT, environment

GIB = 1 << 30
OURS = """
import sys, time, torch
from janus_min.checkpoint import load_model
from janus_min.model import Policy
from janus_min.parallel import join, local
start = time.monotonic()
dtype = getattr(torch, sys.argv[2])
model = load_model(Policy, sys.argv[1], impl="torch", dtype=dtype, ranks=join("cpu"))
held = sum(local(p).nbytes for p in model.parameters()) / 2**30
print(f"{time.monotonic() - start:.1f} s, {held:.1f} GiB of weights", file=sys.stderr)
"""
THEIRS = """
import sys, time, torch
from tests.peers import transformers
start = time.monotonic()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
held = sum(p.nbytes for p in model.parameters()) / 2**30
for p in model.parameters():
    p.sum()  # its weights may be mapped files, which are not read before they are used
print(f"{time.monotonic() - start:.1f} s, {held:.1f} GiB of weights", file=sys.stderr)
"""


def write_random(folder: Path, layers: int) -> None:
    """A checkpoint of Mistral's width with so many layers, and the miniature's tokenizer."""
    from janus_min.mini_data import write_world

    config = replace(MISTRAL_7B, num_hidden_layers=layers)
    with torch.device("meta"):
        model = Policy(config, "torch")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    noise = torch.randn((1 << 22) + 1).mul_(0.02).bfloat16()

    def tensor(name: str) -> torch.Tensor:
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        count = shapes[name].numel()
        return noise.repeat(-(-count // len(noise)))[:count].view(shapes[name])

    write_world(folder / "world")
    write_model(model, tensor, folder / "model", folder / "world", torch.bfloat16)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def measure(name: str, *commands: list, **more: str) -> None:
    """Runs the commands at once and prints what each said last, and the largest peak."""
    start, peaks, processes = time.monotonic(), {}, []
    for rank, command in enumerate(commands):
        ranks = {} if len(commands) == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(commands)),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617",
        }  # fmt: skip
        command = [sys.executable, *map(str, command)]
        settings = dict(env=environment(**ranks, **more), cwd=ROOT, text=True)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(subprocess.Popen(command, **settings, **pipes))
    while any(process.poll() is None for process in processes):
        for process in processes:
            peaks[process.pid] = max(peaks.get(process.pid, 0), anonymous(process.pid))
        time.sleep(0.02)
    seconds = time.monotonic() - start
    said = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), said
    last = (said[0][1].strip().splitlines() or said[0][0].strip().splitlines() or [""])[-1]
    peak = max(peaks.values()) / GIB
    print(f"{name}: peak {peak:.2f} GiB, process {seconds:.1f} s; {last[:80]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=32)
    given = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, torch {torch.__version__}")
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        start = time.monotonic()
        write_random(folder, given.layers)
        model = folder / "model"
        open_model(Policy, model, "torch")
        size = sum(path.stat().st_size for path in model.iterdir()) / GIB
        print(f"wrote {size:.1f} GiB in {time.monotonic() - start:.0f} s", flush=True)
        ask = ("--system", "Be brief.", "--prompt", "Hello?", "--max-tokens", 3)
        answer = ["generate.py", "--model", model, *ask, "--precision", "bf16"]
        measure("generate.py, bf16, 3 tokens", answer)
        for round in (1, 2):
            measure(f"ours, bf16, 1 process ({round})", ["-c", OURS, model, "bfloat16"])
            measure(f"from_pretrained, bf16 ({round})", ["-c", THEIRS, model])
        measure("ours, bf16, 2 ranks", *[["-c", OURS, model, "bfloat16"]] * 2)
        shutil.rmtree(folder)
        write_random(folder, min(8, given.layers))
        measure("ours, 8 layers, fp32 masters, 2 ranks", *[["-c", OURS, model, "float32"]] * 2)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
