"""Directories of safetensors and JSON that are either complete or not there.

A directory is written under a temporary name, flushed to the disk, and renamed. Whoever is killed
in between leaves the old one, or nothing of that name, and never half of it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from janus_min.errors import UserError
from janus_min.files import read_json, sync, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # the hub's usual shard size
# Copied unchanged from the start model into what is written, where they are there.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises UserError unless all of one checkpoint is there."""
    index_path, found = directory / INDEX, {path.name for path in directory.glob("*.safetensors")}
    if index_path.is_file():
        names = read_json(index_path).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(f, str) for f in names.values()):
            raise UserError(f"{index_path} is damaged: 'weight_map' must map tensors to files")
    elif (directory / SINGLE).is_file():
        names = dict.fromkeys(shapes(directory / SINGLE), SINGLE)
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


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file. Raises UserError for one that is damaged or cut short."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def save_tensors(
    sizes: dict[str, int],
    get: Callable[[str], Tensor],
    directory: Path | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors into one file, or into shards of at most `shard_bytes` and their index.

    `sizes` are their bytes in the file; `get` makes one of them, when it is its turn. Memory for
    one shard is needed, on the CPU. Without a directory each is made, and nothing is written: a
    rank that only helps to make them.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, nbytes in sizes.items():
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE if len(shards) == 1 else file
        shard = {}
        for name in names:
            tensor = get(name)
            if directory is not None:
                shard[name] = tensor.cpu().contiguous()
        if directory is None:
            continue
        try:
            save_file(shard, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # the disk is full, most likely
            raise UserError(f"{directory / file} could not be written: {error}") from None
        sync(directory / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1 and directory is not None:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / INDEX, index)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer into another directory."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def fresh(out: Path) -> Path:
    """An empty directory beside `out` to write into."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit(temporary: Path, out: Path) -> None:
    """Gives the finished directory its name; one that has it already makes way."""
    for path in [*temporary.rglob("*"), temporary]:
        sync(path)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(temporary, out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
