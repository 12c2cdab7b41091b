"""One process or many: who takes part, who holds which rows of each weight, what they add up.

`torchrun` starts one process (a rank) for each GPU. All of them run the same program on the same
plan: each computes its share of a step's rows, and FSDP2 (arXiv 2304.11277) keeps of every weight,
gradient and moment only the rank's own rows. A block's whole weights exist while it computes.

With `--replicas R` the ranks form R groups that hold the model once each (HSDP): weights then
travel within a group, which may be one machine, and only gradients between them.

Without torchrun there is one rank. On a CPU it shards nothing and all this disappears.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from janus_min.device import compute_dtype, pick_device
from janus_min.errors import UserError
from janus_min.interrupt import StoppedError

PATIENCE = timedelta(hours=1)  # for the slowest rank: it may be hashing or saving a whole model

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The processes of this run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    mesh: DeviceMesh | None = None  # ("replicate", "shard") or ("shard",); None: nothing is sharded
    dtype: torch.dtype = torch.float32  # that weights are gathered and computed in

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def shards(self) -> int:
        """Among how many ranks each weight is divided."""
        return self.mesh["shard"].size() if self.mesh else 1

    @property
    def shard(self) -> int | None:
        """Which shard this rank saves: one of the first replica; None in the others."""
        return self.rank if self.rank < self.shards else None

    def deal(self, sizes: list[int]) -> list[int | None]:
        """Which of the items this rank takes, the largest first; None where there is none left.

        Every rank takes equally many. They are dealt out to and fro, so that the sums of their
        sizes are close, and so are the sizes of those that are taken at the same time.
        """
        order: list[int | None] = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        order += [None] * (-len(order) % self.size)
        rounds = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        return [r[self.rank] if n % 2 == 0 else r[::-1][self.rank] for n, r in enumerate(rounds)]

    def sum(self, table: Tensor) -> Tensor:
        """The sum over all ranks of a tensor that each of them has, on the CPU."""
        if self.size > 1:
            table = table.to(self.device)
            dist.all_reduce(table)
        return table.cpu()

    def tell(self, value: Value) -> Value:
        """The first rank's value, on all ranks."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank within this block fails on all at its end, with its message.

        Within it no rank may wait for another.
        """
        if self.size == 1:
            yield
            return
        own = None
        try:
            yield
        except (UserError, OSError) as error:
            own = str(error)
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, own)
        failed = [(rank, text) for rank, text in enumerate(texts) if text is not None]
        if failed:
            rank, text = failed[0]
            fail(text if set(texts) == {text} else f"rank {rank}: {text}", shared=True)

    def prepare(self, model: nn.Module) -> None:
        """Divides a model on the meta device among the ranks, and gives it memory, not values.

        Weights keep their dtype, fp32 in training; they are gathered in the ranks' `dtype`, and
        their gradients are added up in fp32.
        """
        if self.mesh is not None:
            policy = MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )  # inputs stay as they are: rotary tables must be fp32
            for block in model.model.layers:
                fully_shard(block, mesh=self.mesh, mp_policy=policy)
            fully_shard(model, mesh=self.mesh, mp_policy=policy)  # embedding, last norm, head
        model.to_empty(device=self.device)


ALONE = Ranks()


def join(device: str | None = None, replicas: int = 1) -> Ranks:
    """Meets the other ranks that torchrun started. Raises UserError if they cannot work so."""
    device = pick_device(device)
    launched = "LOCAL_RANK" in os.environ
    rank, size, local = (
        int(os.environ[name]) if launched else default
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if size % replicas:
        raise UserError(f"--replicas is {replicas}, must divide the number of processes, {size}")
    if device == "cuda":
        if local >= (found := torch.cuda.device_count()):
            fail(f"this machine has {found} GPUs, use --nproc-per-node {found}", shared=False)
        torch.cuda.set_device(local)
    if device == "cpu" and not launched:
        return ALONE
    if not dist.is_initialized():
        backend = {"cuda": "nccl", "cpu": "gloo"}[device]
        alone = dict(store=dist.HashStore(), rank=0, world_size=1)
        try:
            dist.init_process_group(backend, timeout=PATIENCE, **({} if launched else alone))
        except dist.DistError as error:  # a port that is taken, a machine that does not answer
            fail(f"the ranks cannot meet: {last_line(error)}", shared=False)
        if rank:
            sys.stdout = open(os.devnull, "w")  # the first rank speaks for all
    shape = (size,) if replicas == 1 else (replicas, size // replicas)
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh(device, shape, mesh_dim_names=names)
    return Ranks(rank, size, device, mesh, compute_dtype(device))


def fail(text: str, *, shared: bool) -> NoReturn:
    """Raises a UserError that all ranks raise here, and the first one prints, or this one alone."""
    error = UserError(text)
    error.shared = shared
    raise error from None


def run_rank(main: Callable[[], None]) -> None:
    """Runs a program as one of several ranks: what ends all of them is printed by the first one."""
    rank = int(os.environ.get("RANK", 0))
    try:
        main()
    except (UserError, StoppedError) as error:
        met = dist.is_initialized()
        shared = not met if error.shared is None else error.shared
        if met and shared:
            dist.destroy_process_group()
        if rank and shared:
            sys.exit(error.status)
        if rank:
            raise UserError(f"rank {rank}: {error}") from None
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        text = f"rank {rank} has lost another one, whose own message says why, or the network"
        print(f"{text} ({last_line(error)})", file=sys.stderr)
        sys.exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


def last_line(error: Exception) -> str:
    """What PyTorch says last, behind stack and addresses."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1]


def reshard(model: nn.Module) -> None:
    """Frees the root's weights, which stay gathered after a forward pass without a backward one."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds: all of them, unless it is divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, on every rank, each of which must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor `local` returns."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    mesh = tensor.device_mesh
    return rows_of_shard(len(tensor), mesh.get_coordinate()[-1], mesh.shape[-1])


def rows_of_shard(rows: int, shard: int, shards: int) -> slice:
    """How FSDP2 divides: all shards have ⌈rows / shards⌉ rows, but the last ones what is left."""
    size = -(-rows // shards)
    return slice(min(shard * size, rows), min((shard + 1) * size, rows))
