"""The state from which training resumes, to the bit: `OUT/state/step-N`, N steps done.

    step-00000250/
      state.json                                  N, the number of shards, and what the run is
      shard-00000/model-00001-of-00005.safetensors …   the first rank's rows of weights and moments
      tokenizer.model …                           so that the state alone makes a model directory

Order of data and learning rate are functions of the step, so nothing else is needed. Each rank
writes the rows that it holds, and reads the rows that it needs from whichever shards have them: a
run may go on with another number of ranks.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from janus_min.directories import commit, copy_tokenizer, fresh, save_tensors, shapes, tensor_files
from janus_min.errors import UserError
from janus_min.files import read_json, write_json
from janus_min.optim import empty_state
from janus_min.parallel import ALONE, Ranks, local, own_rows, rows_of_shard


def save_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    out: Path,
    about: dict,
    tokenizer_dir: Path,
    keep: int = 1,
    ranks: Ranks = ALONE,
) -> None:
    """Saves the state after `step` steps, and then keeps only the last `keep` up to this one.

    Every rank must call it. What fails on one of them is a UserError on all, and leaves the older
    states as they were.
    """
    path = out / f"step-{step:08d}"
    with ranks.together():
        if ranks.first:
            fresh(path)
    temporary = path.with_name(path.name + ".tmp")
    with ranks.together():
        if ranks.shard is not None:
            tensors = _own_tensors(model, optimizer)
            directory = temporary / f"shard-{ranks.shard:05d}"
            directory.mkdir()
            save_tensors({n: t.nbytes for n, t in tensors.items()}, tensors.__getitem__, directory)
    with ranks.together():
        if ranks.first:
            copy_tokenizer(tokenizer_dir, temporary)
            write_json(temporary / "state.json", {"step": step, "shards": ranks.shards} | about)
            commit(temporary, path)
            # A damaged state of a later step was skipped. It must not count as newer than this one.
            for older in [path for path in states(out) if read_name(path) <= step][:-keep]:
                shutil.rmtree(older)


def _own_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """This rank's rows of every weight and of what the optimizer keeps for it."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = local(parameter.detach())
        for key, value in optimizer.state[parameter].items():
            if key != "step":  # the same for all: the state's own
                tensors[f"{key}.{name}"] = local(value)
    return tensors


def read_name(path: Path) -> int:
    """The step in a state's name."""
    return int(path.name.removeprefix("step-"))


def remove_leftovers(out: Path) -> None:
    """Removes what a killed run had not finished writing or deleting: at 7B, 44 to 87 GB."""
    for path in [*out.glob("*.tmp"), *out.glob("*.old")]:
        shutil.rmtree(path)


def states(out: Path) -> list[Path]:
    """The states that were saved to the end, oldest first."""
    return sorted(path for path in out.glob("step-*") if not path.suffix)


def newest_state(out: Path) -> Path | None:
    """The newest state that can be read; says which ones it skips because they are damaged."""
    for path in reversed(states(out)):
        try:
            for files in Shards(path).files:
                for file in set(files.values()):
                    shapes(file)
        except (UserError, OSError) as error:
            print(f"state skipped: {error}")
            continue
        return path
    return None


def read_state(path: Path) -> dict:
    """The numbers of a saved state: `step`, `shards`, and what was given as `about`."""
    content = read_json(path / "state.json")
    for name in ("step", "shards"):
        if type(content.get(name)) is not int:
            raise UserError(f"{path / 'state.json'} is damaged: {name!r} must be a whole number")
    return content


@dataclass
class Shards:
    """The tensors of a saved state, whoever wrote which rows of them."""

    path: Path

    def __post_init__(self):
        count = read_state(self.path)["shards"]
        self.files = [tensor_files(self.path / f"shard-{i:05d}") for i in range(count)]

    def pieces(
        self, key: str, shape: tuple[int, ...], wanted: slice
    ) -> Iterator[tuple[slice, Tensor]]:
        """The wanted rows of a tensor that has this shape as a whole: for each file that holds some
        of them, where they belong among the wanted ones, and they themselves."""
        rows, name = shape[0], key.partition(".")[2]
        for shard, files in enumerate(self.files):
            if key not in files:
                raise UserError(f"{self.path} is the state of another model: {name} is missing")
            held = rows_of_shard(rows, shard, len(self.files))
            start, stop = max(held.start, wanted.start), min(held.stop, wanted.stop)
            if start >= stop:
                continue
            with safe_open(files[key], framework="pt") as file:
                piece = file.get_slice(key)
                needed, found = (held.stop - held.start, *shape[1:]), tuple(piece.get_shape())
                if found != needed:
                    raise UserError(
                        f"{self.path} is the state of another model: {name} is {found} in shard "
                        f"{shard}, needed is {needed}"
                    )
                yield (
                    slice(start - wanted.start, stop - wanted.start),
                    piece[start - held.start : stop - held.start],
                )

    def fill(self, key: str, target: Tensor) -> None:
        """Copies a tensor, or this rank's rows of one, into `target`."""
        own, found = local(target), 0
        for place, piece in self.pieces(key, tuple(target.shape), own_rows(target)):
            own[place].copy_(piece)
            found += len(piece)
        assert found == len(own), f"{key}: {found} of {len(own)} rows were found"


@torch.no_grad()
def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a saved state into model and optimizer. Raises UserError if it is another model's."""
    shards, step = Shards(path), read_state(path)["step"]
    for name, parameter in model.named_parameters():
        shards.fill(f"model.{name}", parameter)
        optimizer.state[parameter] = state = empty_state(optimizer, parameter, step)
        for key, value in state.items():
            if key != "step":
                shards.fill(f"{key}.{name}", value)
