"""JSON in files, and files that are whole or not there."""

import hashlib
import json
import os
from pathlib import Path

from janus_min.errors import UserError


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: a JSON object is needed")
    return content


def write_json(path: Path, content: dict) -> None:
    """Writes an object for people to read, too."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step: who reads it meanwhile sees the old one or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_files(paths: list[Path]) -> str:
    """SHA-256 of the contents of files, in the order of their names."""
    content = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                content.update(block)
    return content.hexdigest()


def model_name(directory: Path) -> str:
    """What the model in a directory is called; of what train.py writes, RUN/model, it is RUN."""
    path = directory.resolve()
    return path.parent.name if path.name == "model" else path.name


def text_hash(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


_ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once: `json.dumps` makes one for each call


def as_line(record: dict) -> bytes:
    """A record as a line of a JSONL file. Half of a surrogate pair becomes a question mark."""
    return _ENCODER.encode(record).encode("utf-8", "replace") + b"\n"


class Writer:
    """Writes a file of JSON lines that has its name only when it is whole."""

    def __init__(self, path: Path):
        self.path, self.temporary, self.count = path, path.with_name(path.name + ".tmp"), 0
        self.file = self.temporary.open("wb", buffering=1 << 20)

    def add(self, record: dict) -> None:
        """Writes one record."""
        self.file.write(as_line(record))
        self.count += 1

    def close(self) -> None:
        """Gives the file its name."""
        self.file.close()
        sync(self.temporary)
        self.temporary.replace(self.path)
