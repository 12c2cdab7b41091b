"""What the tests of training runs share: data files, and what a run leaves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPES = {  # one for each objective
    "sft": "janus-7b",
    "dpo": "janus-dpo-7b",
    "orpo": "janus-orpo-7b",
    "reward": "janus-rm-7b",
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_in(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:  # `splitlines` would cut at U+2028, too
        return [json.loads(line) for line in file]


def write_data(path: Path, count: int = 6) -> Path:
    """Rows for SFT, of different lengths."""
    rows = [
        {"system": f"Answer in {n} words.", "prompt": "Count.", "output": "one two three"[: 3 + n]}
        for n in range(count)
    ]
    return write_rows(path, rows)


def write_pairs(path: Path, count: int = 6) -> Path:
    """Preference pairs, of different lengths."""
    words = "one two three four five six".split()
    rows = [
        {"system": f"Answer in {n} words.", "prompt": "Count."}
        | {"chosen": " ".join(words[: 1 + n]), "rejected": " ".join("abcde"[: 1 + n % 5])}
        for n in range(count)
    ]
    return write_rows(path, rows)


def metrics(out: Path) -> list[dict]:
    """What a run wrote down, step by step."""
    return rows_in(out / "metrics.jsonl")


def assert_same_run(first: Path, second: Path) -> None:
    """The same model, to the bit, by the same steps."""
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(first) == metrics(second)
    config = [json.loads((out / "model" / "config.json").read_text()) for out in (first, second)]
    assert config[0] == config[1]


def same_numbers(ours: dict, theirs: dict, rel: float = 1e-5) -> None:
    """Metrics of one step, the same keys and to rounding the same values."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=rel, abs=1e-6), name


def same_model(first: Path, second: Path, **tolerance) -> None:
    """The same exported weights, to rounding."""
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (first, second))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)
