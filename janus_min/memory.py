"""Memory per GPU of a recipe at any number of GPUs, known without a single one.

Two rows go forward and backward through the real model under the real FSDP2, on fake tensors, which
have shapes but no memory, and in a process group that only pretends to communicate. After every
operation the bytes that are alive are added up. Kernels say what they need besides; the optimizer's
state is added.

    python -m janus_min.memory [--model DIR]    a table of all 7B recipes at 1, 4, 8 and 64 GPUs

What a GPU needs besides, CUDA's context, NCCL's buffers and what the allocator cannot use, is not
seen here and counted as OVERHEAD.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from janus_min import cli
from janus_min.allocations import Tracker, norms_by_memory
from janus_min.config import ModelConfig
from janus_min.model import Policy, RewardModel, set_up_blocks
from janus_min.optim import empty_state, make_optimizer
from janus_min.parallel import Ranks, local
from janus_min.recipes import MISTRAL_7B, RECIPES, Recipe
from janus_min.row import Row

GIB = 1 << 30
GPUS = {"80 GB": 79.2, "141 GB": 139.8}  # what an A100 or H100, and an H200 have, in GiB
OVERHEAD = 2.5  # GiB, assumed


@dataclass(frozen=True)
class Job:
    """All that memory is a function of."""

    config: ModelConfig
    reward: bool
    row_tokens: int
    optimizer: str
    world_size: int = 1
    replicas: int = 1
    checkpointing: str = "none"
    dtype: torch.dtype = torch.bfloat16  # that is computed in

    @staticmethod
    def of(recipe: Recipe, config: ModelConfig, **settings: object) -> "Job":
        """A recipe's, under the settings of a run."""
        reward = recipe.objective == "reward"
        return Job(config, reward, recipe.row_tokens, recipe.optimizer, **settings)


@contextmanager
def pretended_mesh(world_size: int, replicas: int) -> Iterator[DeviceMesh]:
    """A mesh of ranks that are not there."""
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        shape = (world_size,) if replicas == 1 else (replicas, world_size // replicas)
        # Names of its own: PyTorch remembers what it found for a mesh, which is rank 0's here.
        names = ("pretended_replicate", "pretended_shard")[-len(shape) :]
        yield init_device_mesh("cpu", shape, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


@cache
def estimate(job: Job) -> dict[str, float]:
    """GiB of each part on one GPU, at the moment when their sum is largest.

    Gathered are whole weights and gradients, of a block or two at a time, and what they are sent
    in. Activations are what the backward pass needs, and its own intermediate results.
    """
    with (
        norms_by_memory(),
        pretended_mesh(job.world_size, job.replicas) as mesh,
        FakeTensorMode(),
    ):
        ranks = Ranks(0, job.world_size, "cpu", mesh, job.dtype)
        tracker = Tracker()
        with torch.device("meta"):
            model = (RewardModel if job.reward else Policy)(job.config, "triton")
        ranks.prepare(model)
        set_up_blocks(model, checkpointing=job.checkpointing == "full", compile=False)
        parameters = list(model.parameters())
        tracker.claim([local(p) for p in parameters], "weights")
        optimizer = make_optimizer(job.optimizer, model, weight_decay=0.0, beta2=0.999)
        states = [empty_state(optimizer, p, 0) for p in parameters]
        row = blank_row(job.row_tokens)
        with tracker:
            for _ in range(2):  # the second row finds the first one's gradients
                model(row).sum().backward()
                tracker.claim([local(p.grad) for p in parameters], "gradients")
    moments = sum(local(value).nbytes for state in states for value in state.values())
    peak = {part: size / GIB for part, size in tracker.peak.items()}
    return peak | {"optimizer": moments / GIB}


def blank_row(tokens: int) -> Row:
    """A row of a pair's shape: only shapes matter."""
    vector, ends = torch.zeros(tokens, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    return Row(vector, vector, vector, vector, vector, ends)


def total(job: Job) -> float:
    """GiB that a GPU needs for it, with what is not seen here."""
    return sum(estimate(job).values()) + OVERHEAD


# For people


def report(job: Job) -> list[str]:
    """What a GPU needs, whether it has it, and which flag makes it fit if not."""
    parts = ", ".join(f"{part} {size:.1f}" for part, size in estimate(job).items())
    lines = [
        f"memory per GPU, in GiB: {parts}, CUDA and NCCL about {OVERHEAD}",
        f"{total(job):.1f} GiB in all, on each of {job.world_size} GPUs "
        f"(--checkpointing {job.checkpointing}, --optimizer {job.optimizer})",
    ]
    for name, size in GPUS.items():
        fits = total(job) <= size
        lines.append(f"{name}: " + ("fits" if fits else "does not fit; " + advice(job, size)))
    return lines


def advice(job: Job, size: float) -> str:
    """The first change that makes a job fit into `size` GiB."""
    full, small = {"checkpointing": "full"}, {"optimizer": "adamw8bit"}
    for change in (full, small, full | small):
        smaller = replace(job, **change)
        if total(smaller) <= size:
            flags = " ".join(f"--{field} {value}" for field, value in change.items())
            return f"with {flags} it takes {total(smaller):.1f}"
    smaller = replace(job, **full | small)
    while smaller.world_size < 1024:
        smaller = replace(smaller, world_size=2 * smaller.world_size)
        if total(smaller) <= size:
            flags = "--checkpointing full --optimizer adamw8bit"
            return f"{smaller.world_size} GPUs with {flags} need {total(smaller):.1f} each"
    return f"fewer --row-tokens than {job.row_tokens:,} are needed"


def table(config: ModelConfig, sizes: tuple[int, ...] = (1, 4, 8, 64)) -> list[str]:
    """Markdown: GiB per GPU of every recipe for a 7B model, without and with checkpointing."""
    lines = ["| recipe | " + " | ".join(f"{n} GPU{'s'[: n > 1]}" for n in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name, recipe in RECIPES.items():
        if recipe.miniature:
            continue
        cells = []
        for n in sizes:
            jobs = [Job.of(recipe, config, world_size=n, checkpointing=c) for c in ("none", "full")]
            cells.append(" / ".join(f"{total(job):.0f}" for job in jobs))
        lines.append(f"| `{name}`, {recipe.optimizer} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """`python -m janus_min.memory`."""
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--model", type=Path, help="directory with a config.json; Mistral-7B if not"
    )
    given = parser.parse_args()
    config = ModelConfig.from_json(given.model / "config.json") if given.model else MISTRAL_7B
    print("\n".join(table(config)))


if __name__ == "__main__":
    cli.run(main)
