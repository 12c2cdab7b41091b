"""Training steps of a 7B model on one GPU: tokens/s, MFU and peak memory, beside Hugging Face.

    python -m tests.bench.step [--out FILE.json]
    python -m tests.bench.step --tiny           the same code on a CPU, to see that it works

Both sides have the shapes and the same random weights, take the same rows of 8,192 random tokens
(one document, so that Hugging Face needs no padding) and make whole optimizer steps, each side in a
process of its own, because both do not fit at once. Here: fp32 weights, bf16 compute, FSDP2, 8-bit
AdamW. There: bf16 weights and AdamW moments, which is less work and less exact, gradient
checkpointing, Liger's kernels where they are installed. MFU counts three forward passes at 989
TFLOP/s (a dense H100 or H200 in bf16); recomputed blocks count nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from janus_min import memory
from janus_min.config import ModelConfig
from janus_min.device import pick_impl
from janus_min.model import Policy, set_up_blocks
from janus_min.objectives import Counts, sft
from janus_min.optim import make_optimizer
from janus_min.parallel import join, local, own_rows
from janus_min.recipes import JANUS, MISTRAL_7B
from janus_min.row import Example, build_row
from tests.programs import ROOT, environment

PEAK = 989e12  # FLOP/s
SIDES = ("ours", "ours, checkpointing", "ours, compiled", "Hugging Face")


def fill(name: str, parameter: nn.Parameter) -> None:
    """Random weights that are a function of their name: the same ones on both sides."""
    generator = torch.Generator().manual_seed(sum(name.encode()) + len(name) * 1000)
    whole = torch.ones(parameter.shape)
    if parameter.ndim > 1:
        # Few random numbers, many times: drawing seven billion takes minutes.
        noise = torch.randn((1 << 20) + 7, generator=generator).mul_(0.02)
        whole = noise.repeat(-(-whole.numel() // len(noise)))[: whole.numel()].view(whole.shape)
    with torch.no_grad():
        local(parameter).copy_(whole[own_rows(parameter)])


def rows(config: ModelConfig, tokens: int, count: int) -> list[np.ndarray]:
    """Rows of random ids."""
    return [
        np.random.default_rng(i).integers(3, config.vocab_size, tokens).astype(np.int32)
        for i in range(count)
    ]


def ours(config: ModelConfig, tokens: int, side: str) -> tuple:
    """A function that makes a step, and the estimate of its memory in GiB."""
    ranks = join()
    with torch.device("meta"):
        model = Policy(config, pick_impl(ranks.device, config.head_dim))
    ranks.prepare(model)
    for name, parameter in model.named_parameters():
        fill(name, parameter)
    full = "checkpointing" in side
    set_up_blocks(model, checkpointing=full, compile="compiled" in side)
    optimizer = make_optimizer("adamw8bit", model, weight_decay=0.0, beta2=0.999)

    def step(ids: list[np.ndarray]) -> float:
        optimizer.zero_grad(set_to_none=True)
        examples = [Example(row[:1], (row[1:],), "-") for row in ids]
        counts, loss = Counts.of(examples), 0.0
        for example in examples:
            row = build_row([example], None).to(ranks.device)
            share, _ = sft(model, row, counts, JANUS)
            share.backward()
            loss += share.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    settings = dict(checkpointing="full" if full else "none", dtype=ranks.dtype)
    job = memory.Job(config, False, tokens, "adamw8bit", **settings)
    return step, job


def theirs(config: ModelConfig, tokens: int) -> tuple:
    """The same of transformers, with Liger's kernels if they are there."""
    from tests.peers import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        try:
            from liger_kernel.transformers import apply_liger_kernel_to_mistral

            apply_liger_kernel_to_mistral()
            print("with Liger's kernels", file=sys.stderr)
        except ImportError:
            print("without Liger's kernels: they are not installed", file=sys.stderr)
    settings = {**config.to_json(), "use_cache": False}
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
        hf = transformers.MistralForCausalLM(transformers.MistralConfig(**settings))
        torch.set_default_dtype(torch.float32)
    for name, parameter in hf.named_parameters():
        fill(name, parameter)
    hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    hf.train()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=0.0, fused=True)

    def step(ids: list[np.ndarray]) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for row in ids:
            batch = torch.from_numpy(row.astype(np.int64))[None].to(device)
            share = hf(input_ids=batch, labels=batch).loss / len(ids)
            share.backward()
            loss += share.detach()
        nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step, None


def measure(side: str, config: ModelConfig, tokens: int, rounds: int) -> dict:
    """Seconds of steps of two rows, the loss of the first one, and memory."""
    step, job = theirs(config, tokens) if side == "Hugging Face" else ours(config, tokens, side)
    ids = rows(config, tokens, 2)
    on_gpu = torch.cuda.is_available()
    losses, seconds = [], []
    for _ in range(rounds + 2):  # two to warm up
        start = time.monotonic()
        losses.append(step(ids))
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    rate = 2 * tokens / median(seconds[2:])
    matrices = config.num_hidden_layers * (
        2 * config.hidden_size * config.head_dim
        * (config.num_attention_heads + config.num_key_value_heads)
        + 3 * config.hidden_size * config.intermediate_size
    ) + config.hidden_size * config.vocab_size  # fmt: skip
    width = config.num_attention_heads * config.head_dim
    forward = 2 * matrices + 2 * tokens * width * config.num_hidden_layers  # FLOPs a token
    found = {"loss": losses[0], "tokens/s": rate, "MFU": 3 * forward * rate / PEAK}
    if on_gpu:
        found["peak GiB"] = torch.cuda.max_memory_allocated() / memory.GIB
    if job is not None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        found["estimated GiB"] = memory.total(job) - memory.OVERHEAD
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model, rows of 256 tokens")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help="one side, in this process; prints JSON")
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    given = parser.parse_args()
    config, tokens = MISTRAL_7B, 8192
    if given.tiny:
        small = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        config, tokens = replace(config, **small, num_attention_heads=4, head_dim=16), 256
        config = replace(config, num_key_value_heads=2)
    if given.side:
        print(json.dumps(measure(given.side, config, tokens, given.rounds)))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    table = {"date": str(date.today()), "device": device, "torch": torch.__version__, "sides": {}}
    for side in SIDES:
        flags = ["--side", side, "--rounds", str(given.rounds), *["--tiny"][: given.tiny]]
        command = [sys.executable, "-m", "tests.bench.step", *flags]
        settings = dict(cwd=ROOT, env=environment(), capture_output=True, text=True)
        done = subprocess.run(command, **settings)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        error = (done.stderr.strip().splitlines() or ["?"])[-1]
        table["sides"][side] = json.loads(last) if done.returncode == 0 else {"failed": error}
        print(side, table["sides"][side], flush=True)
    if given.out:
        given.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
