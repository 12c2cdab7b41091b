"""Hugging Face model directories in and out.

A model directory holds `config.json`, `model.safetensors` (or shards and an index) and tokenizer
files. Our parameter names are Hugging Face's, so nothing is translated: every tensor of the file
has one parameter of the same name and shape, and the other way round. Nothing is ever pickled.

A reward model is laid out as the published janus-rm-7b: `value_head.weight` in the place of
`lm_head.weight`, and the rewards' mean and standard deviation in `config.json`.

    python -m janus_min.checkpoint STATE_DIR OUT_DIR    makes one of a saved state (`state.py`)
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from janus_min import cli
from janus_min.config import ModelConfig
from janus_min.directories import (
    INDEX,
    SHARD_BYTES,
    commit,
    copy_tokenizer,
    fresh,
    save_tensors,
    shapes,
    tensor_files,
)
from janus_min.errors import UserError
from janus_min.files import read_json, write_json
from janus_min.model import Policy, RewardModel
from janus_min.parallel import ALONE, Ranks, local, own_rows, whole
from janus_min.state import Shards, newest_state, read_state
from janus_min.tokenizer import Tokenizer

# Told to whoever serves an export; with the paper's sampling settings.
GENERATION_CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 0.9,
    "repetition_penalty": 1.03,
}
HEADS = {Policy: "lm_head.weight", RewardModel: "value_head.weight"}
KINDS = {Policy: "language model", RewardModel: "reward model"}

Model = TypeVar("Model", Policy, RewardModel)


def open_model(
    kind: type[Model], directory: Path | str, impl: str, any_head: bool = False
) -> Model:
    """The model of a Hugging Face directory without its weights, on the meta device.

    Everything is checked, nothing large is read: a missing, unexpected or misshapen tensor is a
    UserError that names it. With `any_head`, the directory may be that of the other kind of model.
    """
    directory = Path(directory)
    config = ModelConfig.from_json(directory / "config.json")
    with torch.device("meta"):
        model = kind(config, impl)
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    files = tensor_files(directory)
    if any_head:
        parameters = {name: s for name, s in parameters.items() if name != HEADS[kind]}
        files = {name: path for name, path in files.items() if name not in HEADS.values()}
    for other, head in HEADS.items():
        if HEADS[kind] not in files and head in files:
            raise UserError(
                f"{directory} is a {KINDS[other]} (it has {head}), needed is a {KINDS[kind]}"
            )
    if missing := sorted(parameters.keys() - files.keys()):
        raise UserError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(files.keys() - parameters.keys()):
        raise UserError(
            f"{directory}: tensor {extra[0]} has no place in the model ({len(extra)} in all)"
        )
    headers = {path: shapes(path) for path in set(files.values())}
    for name, path in files.items():
        if name not in headers[path]:
            raise UserError(f"{path}: tensor {name} is missing, though {INDEX} says it is there")
        if headers[path][name] != parameters[name]:
            raise UserError(
                f"{directory}: {name} is {headers[path][name]}, config.json makes it "
                f"{parameters[name]}"
            )
    if isinstance(model, RewardModel):
        model.mean, model.std = _mean_and_std(directory / "config.json")
    return model


def load_model(
    kind: type[Model],
    directory: Path | str,
    *,
    impl: str,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    any_head: bool = False,
) -> Model:
    """The model of a Hugging Face directory, its weights in `dtype`, divided among the ranks.

    Each rank reads its own rows of each tensor, so that it needs memory for these and one tensor
    more. With `any_head`, a head that the directory has not is left for the caller to fill.
    """
    model = open_model(kind, directory, impl, any_head).to(dtype)
    ranks.prepare(model)
    waiting = dict(model.named_parameters())
    with torch.no_grad():
        for name, path in tensor_files(Path(directory)).items():
            if name in waiting:
                parameter = waiting.pop(name)
                with safe_open(path, framework="pt") as file:
                    local(parameter).copy_(file.get_slice(name)[own_rows(parameter)])
    assert not waiting or (any_head and set(waiting) == {HEADS[kind]}), f"not loaded: {waiting}"
    return model


def _mean_and_std(path: Path) -> tuple[float, float]:
    """What rewards are normalised by: 0 and 1 if the config does not say."""
    config = read_json(path)
    mean, std = config.get("mean", 0.0), config.get("std", 1.0)
    if not all(type(x) in (int, float) and math.isfinite(x) for x in (mean, std)) or std <= 0:
        raise UserError(
            f"{path}: mean and std of the rewards are {json.dumps(mean)} and {json.dumps(std)}, "
            "needed are numbers, std above 0"
        )
    return mean, std


def require_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises UserError if the tokenizer has ids that the model does not have."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces, the model only "
            f"{config.vocab_size}: they are not of one model"
        )


def save_model(
    model: nn.Module,
    out: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    ranks: Ranks = ALONE,
) -> None:
    """Writes a Hugging Face directory: weights in `dtype`, config, the tokenizer's own files.

    It is written under a temporary name and renamed when complete; an older one of the same name
    is replaced. Every rank must call it: one tensor at a time is whole, the first rank writes.
    """
    own = dict(model.named_parameters())

    def _get(name: str) -> Tensor:
        return whole(own[name].detach().to(dtype))

    write_model(model, _get, out, tokenizer_dir, dtype, shard_bytes, ranks)


def write_model(
    model: nn.Module,
    get: Callable[[str], Tensor],
    out: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    ranks: Ranks = ALONE,
) -> None:
    """`save_model`, with the weights that `get` makes of their names; in the model, only shapes
    matter."""
    parameters = dict(model.named_parameters())
    sizes = {name: parameter.numel() * dtype.itemsize for name, parameter in parameters.items()}
    temporary = fresh(out) if ranks.first else None
    save_tensors(sizes, get, temporary, shard_bytes)
    with ranks.together():  # so that it is there for whoever reads it next
        if ranks.first:
            _finish(model, temporary, out, tokenizer_dir, dtype)


def _finish(
    model: nn.Module, temporary: Path, out: Path, tokenizer_dir: Path, dtype: torch.dtype
) -> None:
    """Writes what stands beside the weights, and gives the directory its name."""
    dtype_name = str(dtype).removeprefix("torch.")
    config = model.config.to_json() | {"dtype": dtype_name, "torch_dtype": dtype_name}
    if isinstance(model, RewardModel):
        config |= {"architectures": ["LLMForSequenceRegression"]}  # OpenRLHF's class
        config |= {"mean": model.mean, "std": model.std}
    else:
        write_json(temporary / "generation_config.json", GENERATION_CONFIG)
    write_json(temporary / "config.json", config)
    copy_tokenizer(tokenizer_dir, temporary)
    commit(temporary, out)


# A saved state becomes a model directory


def export_state(state: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the weights of a saved state as a Hugging Face directory, on a CPU, whatever the
    number of ranks that wrote it. Needs memory for one file of the directory."""
    about, shards = read_state(state), Shards(state)
    if not all(isinstance(about.get(name), dict) for name in ("recipe", "config")):
        raise UserError(f"{state / 'state.json'} is damaged: 'recipe' and 'config' must be objects")
    kind = RewardModel if about["recipe"]["objective"] == "reward" else Policy
    with torch.device("meta"):
        model = kind(ModelConfig(**about["config"]), "torch")
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}

    def _get(name: str) -> Tensor:
        tensor = torch.empty(wanted[name])
        shards.fill(f"model.{name}", tensor)
        return tensor.to(dtype)

    write_model(model, _get, out, state, dtype)
    if kind is RewardModel:
        print("rewards are not normalised: their mean and spread come at the end of a run")


def main() -> None:
    """`python -m janus_min.checkpoint STATE_DIR OUT_DIR`."""
    parser = cli.Parser(__doc__)
    parser.add_argument("state", type=Path, help="step-N, or a folder of such states: the newest")
    parser.add_argument("out", type=Path, help="the directory to write")
    given = parser.parse_args()
    state = given.state
    if not (state / "state.json").exists():
        state = newest_state(given.state)
    if state is None:
        raise UserError(f"{given.state} holds no saved state; a run keeps them in OUT/state")
    if given.out.exists():
        raise UserError(f"{given.out} is already there; name another OUT_DIR")
    export_state(state, given.out)
    print(f"{state} is now {given.out}, in bf16")


if __name__ == "__main__":
    cli.run(main)
