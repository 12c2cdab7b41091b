"""The state from which training resumes, to the bit: `OUT/state/step-N`, N steps done.

It holds the fp32 weights, Adam's moments and, in `state.json`, what the run is. Order of data and
learning rate are functions of the step, so nothing else is needed.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from janus_min.directories import (
    SHARD_BYTES,
    commit,
    fresh,
    read_json,
    save_tensors,
    shapes,
    tensor_files,
    write_json,
)
from janus_min.errors import UserError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter


def save_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    out: Path,
    about: dict,
    keep: int = 1,
) -> None:
    """Saves the state after `step` steps, and then keeps only the last `keep` up to this one."""
    temporary = fresh(out / f"step-{step:08d}")
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    save_tensors(tensors, temporary, SHARD_BYTES)
    write_json(temporary / "state.json", {"step": step} | about)
    commit(temporary, out / f"step-{step:08d}")
    # A damaged state of a later step was skipped. It must not count as newer than this one.
    for older in [path for path in states(out) if read_name(path) <= step][:-keep]:
        shutil.rmtree(older)


def read_name(path: Path) -> int:
    """The step in a state's name."""
    return int(path.name.removeprefix("step-"))


def remove_leftovers(out: Path) -> None:
    """Removes what a killed run had not finished writing or deleting: at 7B, 87 GB each time."""
    for path in [*out.glob("*.tmp"), *out.glob("*.old")]:
        shutil.rmtree(path)


def states(out: Path) -> list[Path]:
    """The states that were saved to the end, oldest first."""
    return sorted(path for path in out.glob("step-*") if not path.suffix)


def newest_state(out: Path) -> Path | None:
    """The newest state that can be read; says which ones it skips because they are damaged."""
    for path in reversed(states(out)):
        try:
            read_state(path)
            for file in set(tensor_files(path).values()):
                shapes(file)
        except (UserError, OSError) as error:
            print(f"state skipped: {error}")
            continue
        return path
    return None


def read_state(path: Path) -> dict:
    """The numbers of a saved state: `step`, and what was given as `about`."""
    content = read_json(path / "state.json")
    if not isinstance(content.get("step"), int):
        raise UserError(f"{path / 'state.json'} is damaged: 'step' must be a whole number")
    return content


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a saved state into model and optimizer. Raises UserError if it is another model's."""
    files = tensor_files(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {}
            for key in ("model", *MOMENTS):
                file = files.get(f"{key}.{name}")
                if file is None:
                    raise UserError(f"{path} is the state of another model: {name} is missing")
                with safe_open(file, framework="pt") as tensors:
                    value = tensors.get_tensor(f"{key}.{name}").to(parameter.device)
                if key == "model":
                    parameter.copy_(value)
                else:
                    optimizer.state[parameter][key] = value
