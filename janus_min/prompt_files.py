"""Prompts of a file, and the requests that they become."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from janus_min.bench import read_records
from janus_min.chat import encode_prompts
from janus_min.errors import UserError
from janus_min.formats import INSTRUCTION, text_field
from janus_min.sampling import Request
from janus_min.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What is asked, and where it comes from."""

    system: str
    instruction: str
    record: dict  # of the file
    line: int  # of the file, or entry of a JSON file, from 1

    @property
    def id(self) -> str:
        """What evaluations know it by: the record's id, or else its number from 0."""
        return str(self.record.get("id", self.line - 1))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL or JSON file, with `prompt` (or `instruction`) and perhaps `system`.

    Raises UserError that names the entry and the keys that it has.
    """
    prompts = []
    for where, number, record in read_records(path):
        system = text_field(record, ("system",), where, optional=True)
        instruction = text_field(record, INSTRUCTION, where)
        prompts.append(Prompt(system, instruction, record, number + 1))
    if not prompts:
        raise UserError(f"{path} holds no prompt")
    return prompts


def require_ids(prompts: list[Prompt], source: Path, output: Path) -> None:
    """Raises UserError for an output that is an object by ids, if two of the prompts share one."""
    if output.suffix != ".json":
        return
    seen: dict[str, int] = {}
    for prompt in prompts:
        if (before := seen.setdefault(prompt.id, prompt.line)) != prompt.line:
            raise UserError(
                f"{source}: entries {before} and {prompt.line} have the id {prompt.id!r}, and "
                f"{output} is an object by ids: give each its own, or name it .jsonl"
            )


def encode(prompts: list[Prompt], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each prompt, BOS first."""
    return encode_prompts(tokenizer, [(prompt.system, prompt.instruction) for prompt in prompts])


def make_request(seed: int, ids: list[int], sample: int) -> Request:
    """A prompt's request number `sample`. Its random numbers depend on its prompt and its number,
    not on its place in a file: equal prompts get equal samples.
    """
    return Request(ids, seed=seed_of(seed, ids) | sample)


def seed_of(seed: int, ids: list[int]) -> int:
    """The seed of a prompt's first request."""
    return zlib.crc32(json.dumps([seed, ids]).encode()) << 32
