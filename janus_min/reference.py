"""DPO's reference: the log-probabilities of every response under a model that is not trained.

They are computed once, before training, by the code that training uses and on the rows of the plan,
so that the first step compares equal numbers; then that model is gone from memory. They are kept in
a JSONL file per data set, under a header that says what they belong to. A file of anything else is
refused; one that is incomplete is continued.
"""

import gc
import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from janus_min.chat import prompt_text
from janus_min.checkpoint import load_model
from janus_min.config import ModelConfig
from janus_min.device import compute_dtype
from janus_min.errors import UserError
from janus_min.files import hash_files
from janus_min.losses import sequence_logps
from janus_min.model import Policy
from janus_min.parallel import fail
from janus_min.progress import Progress
from janus_min.run import Data, Run


def add_reference(run: Run, first: int, weights: str) -> None:
    """Fills in `reference_logps` of the data that the steps from `first` on need.

    `weights` is the hash of the reference model's weights.
    """
    directory = run.reference
    folder = run.options.reference_logps or run.out / "reference"
    parts = [(run.data, [row for step in run.plan[first : run.last] for row in step], "data")]
    if run.held_out:
        parts.append((run.held_out, run.held_out_rows(), "held-out"))
    config = ModelConfig.from_json(directory / "config.json")
    policy = None
    for data, rows, name in parts:
        path = folder / f"{name}.jsonl"
        about = header(run, data, config, weights)
        with run.ranks.together():
            if run.ranks.first:
                data.reference_logps = read_logps(path, about, len(data.examples))
        data.reference_logps = run.ranks.tell(data.reference_logps)
        missing = uncovered(rows, ~np.isnan(data.reference_logps[:, 0]))
        if not missing:
            print(f"reference: {path}")
            continue
        if policy is None:
            with run.ranks.together():
                policy = load_model(Policy, directory, impl=run.impl, ranks=run.ranks)
        print(f"reference: {directory}, into {path}")
        compute(run, policy, data, missing, path)
    del policy
    gc.collect()  # FSDP's modules refer to each other in circles


def uncovered(rows: list[list[int]], known: np.ndarray) -> list[list[int]]:
    """The rows with an example that is neither known, (examples,) bool, nor in an earlier row."""
    known, found = known.copy(), []
    for row in rows:
        if not known[row].all():
            found.append(row)
            known[row] = True
    return found


@torch.no_grad()
def compute(run: Run, policy: Policy, data: Data, rows: list[list[int]], path: Path) -> None:
    """Computes the rows, one on each rank at a time; the first rank then appends them to the file
    before the next ones."""
    ranks, progress = run.ranks, Progress(len(rows), "tokens")
    with path.open("a", encoding="utf-8") if ranks.first else nullcontext() as file:
        for start in range(0, len(rows), ranks.size):
            group = rows[start : start + ranks.size]
            own = group[ranks.rank] if ranks.rank < len(group) else []
            row = run.row(data, own)._replace(reference_logps=None)
            logps = sequence_logps(policy(row), row.response, len(row.ends))
            before = sum(len(indices) for indices in group[: ranks.rank])
            indices = [i for indices in group for i in indices]
            table = torch.zeros(len(indices), 2)
            table[before : before + len(own)] = logps.float().cpu().view(-1, 2)
            values = ranks.sum(table).numpy()
            if not np.isfinite(values).all():
                fail("the reference model's log-probabilities are not finite", shared=True)
            data.reference_logps[indices] = values
            done = start + len(group)
            if not ranks.first:
                continue
            lines = [
                {
                    "example": i,
                    "source": data.examples[i].source,
                    "chosen": chosen,
                    "rejected": other,
                }
                for i, (chosen, other) in zip(indices, values.tolist(), strict=True)
            ]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            progress.update(done, sum(data.lengths[i] for i in indices), "")
    progress.close()


def header(run: Run, data: Data, config: ModelConfig, weights: str) -> dict[str, str]:
    """What log-probabilities are a function of."""
    template = [prompt_text(system, "{instruction}") for system in ("{system}", None)]
    lengths = {"max_tokens": run.recipe.longest, "cut": run.recipe.cut}
    return {
        "weights of the reference": weights,
        "config of the reference": short_hash(asdict(config)),
        "precision": str(compute_dtype(run.ranks.device)),
        "tokenizer": hash_files([run.tokenizer.path]),
        "template": short_hash(template),
        "lengths": short_hash(lengths),
        "data": data.hash(),
    }


def read_logps(path: Path, header: dict[str, str], examples: int) -> np.ndarray:
    """The log-probabilities in a file, (examples, 2), NaN where it has none yet.

    Begins the file if it is not there, and cuts off a last line that was not written to its end.
    Raises UserError if it belongs to something else.
    """
    logps = np.full((examples, 2), np.nan, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if not lines:
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return logps
    try:
        found, *entries = map(json.loads, lines)
        others = [part for part in header if found[part] != header[part]]
        if not others:
            for entry in entries:
                logps[entry["example"]] = entry["chosen"], entry["rejected"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error!r}): remove it") from None
    if others:
        raise UserError(
            f"{path} holds log-probabilities for other {', other '.join(others)}: remove it, or "
            "name another --reference-logps"
        )
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return logps


def short_hash(value: object) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
