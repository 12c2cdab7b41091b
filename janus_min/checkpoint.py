"""Hugging Face model directories in and out, and the state from which training resumes.

A model directory holds `config.json`, `model.safetensors` (or shards and an index) and tokenizer
files. Our parameter names are Hugging Face's, so nothing is translated: every tensor of the file
has one parameter of the same name and shape, and the other way round. Nothing is ever pickled.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from janus_min import tokenizer
from janus_min.errors import UserError
from janus_min.model import ModelConfig, Policy

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # the hub's usual shard size


def tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises UserError unless all of one checkpoint is there."""
    index_path, found = directory / INDEX, {path.name for path in directory.glob("*.safetensors")}
    if index_path.is_file():
        try:
            names = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{index_path} is damaged: a JSON object with 'weight_map' is needed"
            ) from None
    elif (directory / SINGLE).is_file():
        names = dict.fromkeys(_header(directory / SINGLE), SINGLE)
    else:
        raise UserError(
            f"{directory}: neither {SINGLE} nor {INDEX} found (other formats are not read)"
        )
    if missing := sorted(set(names.values()) - found):
        raise UserError(
            f"{directory}: shard {missing[0]} is missing "
            f"({len(missing)} of {len(set(names.values()))})"
        )
    if strange := sorted(found - set(names.values())):
        raise UserError(
            f"{directory}: {strange[0]} does not belong to the checkpoint; move it elsewhere"
        )
    return {name: directory / file for name, file in names.items()}


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a file, without reading the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def load_weights(model: nn.Module, directory: Path) -> None:
    """Copies a checkpoint into the model's parameters, whatever dtype and device they have.

    The checkpoint is compared with the model before anything is read: a missing, unexpected or
    misshapen tensor is a UserError that names it.
    """
    files = tensor_files(directory)
    headers = {path: _header(path) for path in sorted(set(files.values()))}
    parameters = dict(model.named_parameters())
    if missing := sorted(parameters.keys() - files.keys()):
        raise UserError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(files.keys() - parameters.keys()):
        raise UserError(
            f"{directory}: tensor {extra[0]} has no place in the model ({len(extra)} in all)"
        )
    for name, parameter in parameters.items():
        if name not in headers[files[name]]:
            raise UserError(
                f"{files[name]}: tensor {name} is missing, though {INDEX} says it is there"
            )
        if headers[files[name]][name] != tuple(parameter.shape):
            raise UserError(
                f"{directory}: {name} is {headers[files[name]][name]}, config.json makes it "
                f"{tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for path, header in headers.items():
            with safe_open(path, framework="pt") as file:
                for name in header:
                    parameters[name].copy_(file.get_tensor(name))


def load_policy(
    directory: Path | str, *, impl: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Policy:
    """The language model of a Hugging Face directory, its weights in `dtype`."""
    directory = Path(directory)
    config = ModelConfig.from_json(directory / "config.json")
    with torch.device("meta"):
        model = Policy(config, impl)
    model = model.to(dtype).to_empty(device=device)
    load_weights(model, directory)
    return model


def save_policy(
    model: nn.Module,
    out: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory: weights in `dtype`, config, the tokenizer's own files.

    It is written under a temporary name and renamed when complete; an older one of the same name is
    replaced.
    """
    temporary = _fresh(out)
    tensors = {
        name: p.detach().to("cpu", dtype).contiguous() for name, p in model.named_parameters()
    }
    _save_tensors(tensors, temporary, shard_bytes)
    dtype_name = str(dtype).removeprefix("torch.")
    config = model.config.to_json() | {"dtype": dtype_name, "torch_dtype": dtype_name}
    generation = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
    }
    generation["repetition_penalty"] = 1.03  # with the two before: the paper's sampling settings
    _write_json(temporary / "config.json", config)
    _write_json(temporary / "generation_config.json", generation)
    for name in tokenizer.FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, temporary / name)
    _commit(temporary, out)


def _save_tensors(tensors: dict[str, Tensor], directory: Path, shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def save_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, out: Path, extra: dict
) -> None:
    """What training goes on from after `step` steps: fp32 weights, Adam's moments, numbers.

    The newest complete state is `out/step-N` with the largest N; older ones are removed after it.
    """
    out.mkdir(parents=True, exist_ok=True)
    temporary = _fresh(out / f"step-{step:08d}")
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": p.detach().contiguous() for p, name in names.items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {
            f"{key}.{names[parameter]}": value.detach().contiguous()
            for key, value in moments.items()
        }
    save_file(tensors, temporary / "state.safetensors")
    _write_json(temporary / "state.json", {"step": step} | extra)
    _commit(temporary, out / f"step-{step:08d}")
    for older in states(out)[:-1]:
        shutil.rmtree(older)


def states(out: Path) -> list[Path]:
    """The complete training states, oldest first."""
    return sorted(path for path in out.glob("step-*") if path.suffix != ".tmp")


def read_state(path: Path) -> dict:
    """The numbers of a saved state: `step`, and what was given as `extra`."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a saved state into model and optimizer. Raises UserError if it is another model's."""
    with safe_open(path / "state.safetensors", framework="pt") as file, torch.no_grad():
        keys = set(file.keys())
        for name, parameter in model.named_parameters():
            if f"model.{name}" not in keys:
                raise UserError(f"{path} is the state of another model: {name} is missing")
            parameter.copy_(file.get_tensor(f"model.{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}.{name}").to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in keys
            }


def _fresh(out: Path) -> Path:
    """An empty directory beside `out` to write into."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def _commit(temporary: Path, out: Path) -> None:
    """Gives the finished directory its name: from now on it counts, before that it does not."""
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
