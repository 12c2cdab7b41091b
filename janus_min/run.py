"""What a training run is made of."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from janus_min.config import ModelConfig
from janus_min.directories import tensor_files
from janus_min.errors import require
from janus_min.files import hash_files
from janus_min.objectives import Counts
from janus_min.optim import learning_rate
from janus_min.parallel import Ranks
from janus_min.plan import Plan, best_fit
from janus_min.recipes import Recipe
from janus_min.row import Example, Row, build_row
from janus_min.tokenizer import Tokenizer
from kernels.attention import IMPLEMENTATIONS


@dataclass(frozen=True)
class Options:
    """The files of a run, and how much of it to do."""

    model: Path | None = None  # Hugging Face directory to start from
    data: tuple[Path, ...] | None = None  # JSONL, one file or several
    out: Path | None = None  # where the run is kept; runs/RECIPE unless given
    steps: int | None = None  # stop after so many steps; the schedule keeps its full length
    resume: bool = False  # go on from the last state in --out, or in that of its start
    save_every: int = 250  # steps between saved states
    keep: int = 2  # how many of the last states are kept
    eval_data: Path | None = None  # held-out JSONL
    eval_every: int = 100  # steps between evaluations on it
    reference: Path | None = None  # DPO: Hugging Face directory of the reference; --model if not
    reference_logps: Path | None = None  # DPO: directory of its log-probs; in --out unless given
    device: str | None = None  # cuda or cpu; a GPU if there is one
    replicas: int = 1  # groups of processes that hold the model once each, such as machines
    checkpointing: str = "none"  # full: keep only the inputs of blocks, and compute them again
    compile: bool = False  # compile the blocks (torch.compile)
    dry_run: bool = False  # print the plan and the memory that it takes, and stop
    world_size: int | None = None  # with --dry-run: for so many GPUs
    show_rows: int | None = None  # print so many rows and stop
    impl: str | None = None  # kernels: triton on a GPU, torch on a CPU unless given; or reference

    def __post_init__(self):
        counts = (
            "steps",
            "save_every",
            "keep",
            "eval_every",
            "show_rows",
            "replicas",
            "world_size",
        )
        for name in counts:
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        known = " or ".join(IMPLEMENTATIONS)
        require(self.impl in (None, *IMPLEMENTATIONS), self, "impl", known)
        require(self.device in (None, "cuda", "cpu"), self, "device", "cuda or cpu")
        require(self.checkpointing in ("none", "full"), self, "checkpointing", "none or full")

    @property
    def only_look(self) -> bool:
        """Whether nothing is to be trained."""
        return self.dry_run or self.show_rows is not None


@dataclass
class Data:
    """Encoded examples, and for DPO what the reference model says of their responses."""

    files: tuple[Path, ...]
    examples: list[Example]
    lengths: list[int]  # tokens of a row that each example takes
    reference_logps: np.ndarray | None = None  # (examples, 2) log π_ref of chosen and rejected

    def hash(self) -> str:
        """Changes when any id of any example does."""
        content = hashlib.sha256()
        for example in self.examples:
            for ids in (example.prompt, *example.responses):
                content.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Run:
    """Everything that one training run is made of."""

    name: str
    recipe: Recipe
    options: Options
    out: Path
    start: Path | None  # directory of the model to start from; None for a random one
    config: ModelConfig
    tokenizer: Tokenizer
    data: Data
    held_out: Data | None
    plan: Plan
    ranks: Ranks
    impl: str  # which kernels

    @property
    def reference(self) -> Path | None:
        """The directory of DPO's reference model."""
        return (self.options.reference or self.start) if self.recipe.objective == "dpo" else None

    def learning_rate(self, step: int) -> float:
        """Of step `step`, counted from 0."""
        share = math.ceil(self.recipe.warmup_ratio * len(self.plan))
        return learning_rate(
            step,
            peak=self.recipe.learning_rate,
            warmup_steps=max(self.recipe.warmup_steps, share),
            total_steps=len(self.plan),
        )

    @property
    def last(self) -> int:
        """The step to stop after."""
        return min(self.options.steps or len(self.plan), len(self.plan))

    def counts(self, data: Data, rows: list[list[int]]) -> Counts:
        """What the losses of these rows are averaged over."""
        examples = [data.examples[i] for row in rows for i in row]
        return Counts.of(examples, self.recipe.nll_on_prompt)

    def tokens(self, rows: list[list[int]]) -> int:
        """How many tokens of the training data are computed in these rows."""
        return sum(self.data.lengths[i] for row in rows for i in row)

    def own(self, data: Data, rows: list[list[int]]) -> Iterator[tuple[int | None, Row]]:
        """This rank's share of the rows: the number of each, and it itself on the device.

        All ranks have equally many, because each forward and backward pass takes all of them. Where
        there are not enough, the last one has no number and nothing in it that is trained.
        """
        sizes = [sum(data.lengths[i] for i in row) for row in rows]
        for number in self.ranks.deal(sizes):
            yield number, self.row(data, [] if number is None else rows[number])

    def row(self, data: Data, indices: list[int]) -> Row:
        """These examples as a row on the device. On a GPU all rows have one length."""
        device = self.ranks.device
        row = build_row(
            [data.examples[i] for i in indices],
            self.config.sliding_window,
            self.recipe.row_tokens if device == "cuda" else 1,
            share_prompt=bool(self.recipe.share_prompt),
            score_prompt=bool(self.recipe.nll_on_prompt),
        )
        if data.reference_logps is not None:
            logps = torch.from_numpy(data.reference_logps[indices].flatten())
            row = row._replace(reference_logps=logps)
        return row.to(device)

    def held_out_rows(self) -> list[list[int]]:
        """The held-out examples in as few rows as hold them."""
        return best_fit(self.held_out.lengths, self.recipe.row_tokens) if self.held_out else []

    def identity(self) -> dict:
        """What must be the same for a state to be resumed."""
        recipe = json.loads(json.dumps(asdict(self.recipe)))  # as it comes back from a file
        about = {"recipe": recipe, "config": asdict(self.config), "data": self.data.hash()}
        models = {"start model": self.start, "reference": self.reference}
        hashes = {path: hash_weights(path) for path in {*models.values()} - {None}}
        return about | {name: hashes.get(path) for name, path in models.items()}


def hash_weights(model: Path) -> str:
    """SHA-256 of all weights in a Hugging Face directory."""
    return hash_files([*set(tensor_files(model).values())])
