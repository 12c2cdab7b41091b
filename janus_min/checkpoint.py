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

from janus_min.errors import UserError
from janus_min.model import ModelConfig, Policy
from janus_min.tokenizer import Tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # the hub's usual shard size
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


def tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises UserError unless all of one checkpoint is there."""
    index_path, found = directory / INDEX, {path.name for path in directory.glob("*.safetensors")}
    if index_path.is_file():
        names = _read_json(index_path).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(f, str) for f in names.values()):
            raise UserError(f"{index_path} is damaged: 'weight_map' must map tensors to files")
    elif (directory / SINGLE).is_file():
        names = dict.fromkeys(_header(directory / SINGLE), SINGLE)
    else:
        raise UserError(f"{directory}: neither {SINGLE} nor {INDEX} found; needed is safetensors")
    wanted = set(names.values())
    if missing := sorted(wanted - found):
        raise UserError(
            f"{directory}: shard {missing[0]} is missing ({len(missing)} of {len(wanted)})"
        )
    if strange := sorted(found - wanted):
        raise UserError(
            f"{directory}: {strange[0]} does not belong to the checkpoint; move it elsewhere"
        )
    return {name: directory / file for name, file in names.items()}


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a file, without reading the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def open_policy(directory: Path | str, impl: str) -> Policy:
    """The language model of a Hugging Face directory without its weights, on the meta device.

    Everything is checked, nothing large is read: a missing, unexpected or misshapen tensor is a
    UserError that names it.
    """
    directory = Path(directory)
    config = ModelConfig.from_json(directory / "config.json")
    with torch.device("meta"):
        policy = Policy(config, impl)
    parameters = {name: tuple(p.shape) for name, p in policy.named_parameters()}
    files = tensor_files(directory)
    if missing := sorted(parameters.keys() - files.keys()):
        raise UserError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(files.keys() - parameters.keys()):
        raise UserError(
            f"{directory}: tensor {extra[0]} has no place in the model ({len(extra)} in all)"
        )
    headers = {path: _header(path) for path in set(files.values())}
    for name, path in files.items():
        if name not in headers[path]:
            raise UserError(f"{path}: tensor {name} is missing, though {INDEX} says it is there")
        if headers[path][name] != parameters[name]:
            raise UserError(
                f"{directory}: {name} is {headers[path][name]}, config.json makes it "
                f"{parameters[name]}"
            )
    return policy


def load_policy(
    directory: Path | str, *, impl: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Policy:
    """The language model of a Hugging Face directory, its weights in `dtype` on `device`."""
    policy = open_policy(directory, impl).to(dtype).to_empty(device=device)
    waiting = dict(policy.named_parameters())
    with torch.no_grad():
        for name, path in tensor_files(Path(directory)).items():
            with safe_open(path, framework="pt") as file:
                waiting.pop(name).copy_(file.get_tensor(name))
    assert not waiting, f"not loaded: {sorted(waiting)}"
    return policy


def require_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises UserError if the tokenizer has ids that the model does not have."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces, the model only "
            f"{config.vocab_size}: they are not of one model"
        )


def save_policy(
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
    temporary = _fresh(out)
    tensors = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    _save_tensors(tensors, temporary, shard_bytes)
    dtype_name = str(dtype).removeprefix("torch.")
    config = model.config.to_json() | {"dtype": dtype_name, "torch_dtype": dtype_name}
    _write_json(temporary / "config.json", config)
    _write_json(temporary / "generation_config.json", GENERATION_CONFIG)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, temporary / name)
    _commit(temporary, out)


def _save_tensors(tensors: dict[str, Tensor], directory: Path, shard_bytes: int) -> None:
    """Writes one file, or shards of at most `shard_bytes` and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE if len(shards) == 1 else file
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(on_cpu, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / INDEX, index)


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter


def save_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, out: Path, extra: dict
) -> None:
    """What training goes on from after `step` steps: fp32 weights, Adam's moments, numbers.

    The newest complete state is `out/step-N` with the largest N; older ones are removed after it.
    """
    out.mkdir(parents=True, exist_ok=True)
    temporary = _fresh(out / f"step-{step:08d}")
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    _save_tensors(tensors, temporary, SHARD_BYTES)
    _write_json(temporary / "state.json", {"step": step} | extra)
    _commit(temporary, out / f"step-{step:08d}")
    for older in states(out)[:-1]:
        shutil.rmtree(older)


def states(out: Path) -> list[Path]:
    """The complete training states, oldest first."""
    return sorted(path for path in out.glob("step-*") if path.suffix != ".tmp")


def read_state(path: Path) -> dict:
    """The numbers of a saved state: `step`, and what was given as `extra`."""
    return _read_json(path / "state.json")


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


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: a JSON object is needed")
    return content


def _write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
