"""Hugging Face model directories in and out.

A model directory holds `config.json`, `model.safetensors` (or shards and an index) and tokenizer
files. Our parameter names are Hugging Face's, so nothing is translated: every tensor of the file
has one parameter of the same name and shape, and the other way round. Nothing is ever pickled.

A reward model is laid out as the published janus-rm-7b: `value_head.weight` in the place of
`lm_head.weight`, and the rewards' mean and standard deviation in `config.json`.
"""

import json
import math
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

from janus_min.config import ModelConfig
from janus_min.directories import (
    INDEX,
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
from janus_min.model import Policy, RewardModel
from janus_min.tokenizer import Tokenizer

# Copied unchanged from the start model into an export, where they are there.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
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
    device: str = "cpu",
    any_head: bool = False,
) -> Model:
    """The model of a Hugging Face directory, its weights in `dtype` on `device`.

    With `any_head`, a head that the directory has not is left for the caller to fill.
    """
    model = open_model(kind, directory, impl, any_head).to(dtype).to_empty(device=device)
    waiting = dict(model.named_parameters())
    with torch.no_grad():
        for name, path in tensor_files(Path(directory)).items():
            if name in waiting:
                with safe_open(path, framework="pt") as file:
                    waiting.pop(name).copy_(file.get_tensor(name))
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
) -> None:
    """Writes a Hugging Face directory: weights in `dtype`, config, the tokenizer's own files.

    It is written under a temporary name and renamed when complete; an older one of the same name
    is replaced.
    """
    temporary = fresh(out)
    tensors = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    save_tensors(tensors, temporary, shard_bytes)
    dtype_name = str(dtype).removeprefix("torch.")
    config = model.config.to_json() | {"dtype": dtype_name, "torch_dtype": dtype_name}
    if isinstance(model, RewardModel):
        config |= {"architectures": ["LLMForSequenceRegression"]}  # OpenRLHF's class
        config |= {"mean": model.mean, "std": model.std}
    else:
        write_json(temporary / "generation_config.json", GENERATION_CONFIG)
    write_json(temporary / "config.json", config)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, temporary / name)
    commit(temporary, out)
