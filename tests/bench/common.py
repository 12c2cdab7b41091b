"""What the benchmarks share: one model twice, the clock, the table.

Both sides of a comparison run in one process and take turns, because a machine that does other work
too is faster in one minute than in the next; what is reported is the ratio of the two medians.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from janus_min.checkpoint import load_model
from janus_min.model import Policy
from tests.peers import transformers


def machine(precision: str = "fp32") -> str:
    """What the numbers were measured on."""
    return (
        f"machine: {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {precision}"
    )


def same_model_twice(
    directory: Path, vocab_size: int, dtype: torch.dtype = torch.float32
) -> tuple[transformers.MistralForCausalLM, Policy]:
    """A random Mistral as transformers makes and reads it, and as this project reads it.

    24.6M parameters with a vocabulary of 4,096 and 53.2M with one of 32,000: the sizes for which
    the targets were estimated.
    """
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=vocab_size,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    transformers.MistralForCausalLM(config).save_pretrained(directory)
    theirs = transformers.MistralForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa"
    )
    return theirs, load_model(Policy, directory, impl="torch", dtype=dtype)


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each side, which take turns. The caller has warmed them up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(
    seconds: dict[str, list[float]], amount: int, target: float | None, unit: str = "tokens"
) -> None:
    """Prints a line for each of the two sides, what is compared with first, then the ratio.

    `amount` of `unit` is what each call does.
    """
    print(f"  {'':14}{'median s':>10}{'min':>8}{'max':>8}{unit + '/s':>10}")
    for name, times in seconds.items():
        middle = median(times)
        rate = f"{amount / middle:10.0f}" if amount / middle >= 100 else f"{amount / middle:10.2f}"
        print(f"  {name:14}{middle:10.3f}{min(times):8.3f}{max(times):8.3f}{rate}")
    theirs, ours = seconds.values()
    # The fastest rounds met the least of the machine's other work: two threads that wait for each
    # other stall when a third wants a core.
    print(f"  ratio of the fastest rounds {min(theirs) / min(ours):.2f}")
    wanted = f", target {target:.2f}" if target is not None else ""
    print(f"ratio {median(theirs) / median(ours):.2f}{wanted}", flush=True)
