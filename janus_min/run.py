"""What a training run is made of: read, checked and printed before any work is done."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from janus_min import checkpoint, miniature
from janus_min.config import ModelConfig
from janus_min.data import load_examples, reasons
from janus_min.device import pick_device
from janus_min.directories import hash_files, tensor_files
from janus_min.errors import UserError, require
from janus_min.formats import pair_row, reward_row, sft_row
from janus_min.model import Policy, RewardModel
from janus_min.objectives import Counts
from janus_min.optim import learning_rate
from janus_min.plan import Plan, best_fit, interleave, make_plan
from janus_min.recipes import RECIPES, Recipe, mini_model
from janus_min.row import Example, Row, build_row, laid_tokens
from janus_min.tokenizer import Tokenizer
from kernels.attention import IMPLEMENTATIONS

PARSERS = {"sft": sft_row, "dpo": pair_row, "orpo": pair_row, "reward": reward_row}
COLUMNS = {
    "sft": "system, prompt and output",
    "dpo": "system, prompt, chosen and rejected",
    "orpo": "system, prompt, chosen and rejected",
    "reward": "input (or system and prompt), chosen and rejected, or transcripts",
}


@dataclass(frozen=True)
class Options:
    """The files of a run, and how much of it to do."""

    model: Path | None = None  # Hugging Face directory to start from
    data: tuple[Path, ...] | None = None  # JSONL, one file or several
    out: Path | None = None  # where the run is kept; runs/RECIPE unless given
    steps: int | None = None  # stop after so many steps; the schedule keeps its full length
    resume: bool = False  # go on from the last state in --out
    save_every: int = 250  # steps between saved states
    keep: int = 2  # how many of the last states are kept
    eval_data: Path | None = None  # held-out JSONL
    eval_every: int = 100  # steps between evaluations on it
    reference: Path | None = None  # DPO: Hugging Face directory of the reference; --model if not
    reference_logps: Path | None = None  # DPO: directory of its log-probs; in --out unless given
    dry_run: bool = False  # print the plan and stop
    show_rows: int | None = None  # print so many rows and stop
    impl: str = "torch"  # which kernels: torch or reference

    def __post_init__(self):
        for name in ("steps", "save_every", "keep", "eval_every", "show_rows"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        known = " or ".join(IMPLEMENTATIONS)
        require(self.impl in IMPLEMENTATIONS, self, "impl", known)

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
    reference: np.ndarray | None = None  # (examples, 2) log π_ref of chosen and rejected, in nats

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
    device: str

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

    def row(self, data: Data, indices: list[int]) -> Row:
        """These examples as a row on the device. On a GPU all rows have one length."""
        row = build_row(
            [data.examples[i] for i in indices],
            self.config.sliding_window,
            self.recipe.row_tokens if self.device == "cuda" else None,
            share_prompt=bool(self.recipe.share_prompt),
            score_prompt=bool(self.recipe.nll_on_prompt),
        )
        if data.reference is not None:
            row = row._replace(reference=torch.from_numpy(data.reference[indices].flatten()))
        return row.to(self.device)

    def held_out_rows(self) -> list[list[int]]:
        """The held-out examples in as few rows as hold them."""
        return best_fit(self.held_out.lengths, self.recipe.row_tokens) if self.held_out else []

    def identity(self) -> dict:
        """What must be the same for a state to be resumed."""
        recipe = json.loads(json.dumps(asdict(self.recipe)))  # as it comes back from a file
        about = {"recipe": recipe, "model": asdict(self.config), "data": self.data.hash()}
        if self.reference:
            about["reference"] = hash_files([*set(tensor_files(self.reference).values())])
        return about


def prepare(name: str, recipe: Recipe, options: Options) -> Run:
    """Reads and checks all that a run needs, and prints what it is going to be."""
    out = options.out or Path("runs") / name
    if not options.only_look:
        check_out(out, options)
    if recipe.miniature:
        miniature.write_world(miniature.FILES)
    start = options.model or (miniature.model_of(recipe.start) if recipe.start else None)
    if options.only_look and recipe.start and not start.exists():
        start = None  # the world's tokenizer is enough to look at rows
    tokenizer = Tokenizer(start or miniature.FILES)
    config = mini_model(tokenizer.vocab_size)
    if start:
        config = ModelConfig.from_json(start / "config.json")
        if not options.only_look:
            check_weights(recipe, options, start)
    checkpoint.require_vocabulary(tokenizer, config)
    if recipe.longest > config.max_position_embeddings:
        raise UserError(
            f"--max-tokens is {recipe.longest}, must be at most the model's context, "
            f"{config.max_position_embeddings}"
        )

    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in recipe.shown().items()))
    files = options.data or (miniature.FILES / f"{recipe.miniature}.jsonl",)
    data = read(files, tokenizer, recipe, config)
    held_out = None
    if eval_data := options.eval_data or miniature.held_out_file(recipe.miniature):
        held_out = read((eval_data,), tokenizer, recipe, config)
    plan = make_plan(
        data.lengths,
        row_tokens=recipe.row_tokens,
        epochs=recipe.epochs,
        seed=recipe.seed,
        rows_per_step=recipe.rows_per_step,
        pairs_per_step=recipe.pairs_per_step,
    )
    rows = sum(len(step) for step in plan)
    fill = sum(data.lengths) * recipe.epochs / (rows * recipe.row_tokens)
    print(
        f"plan: {len(plan):,} steps, {rows:,} rows of {recipe.row_tokens:,} tokens, {fill:.0%} full"
    )
    device = pick_device()
    print(f"on {device}, kernels: {options.impl}, out: {out}")
    return Run(name, recipe, options, out, start, config, tokenizer, data, held_out, plan, device)


def check(name: str, recipe: Recipe, options: Options) -> None:
    """Raises UserError for flags that do not go together."""
    published = RECIPES[name]
    known = miniature.COLLECTIONS if published.miniature else (None,)
    require(recipe.miniature in known, recipe, "miniature", " or ".join(map(str, known)))
    require(recipe.start == published.start, recipe, "start", f"{published.start}; give --model")
    if not recipe.miniature and options.model is None:
        what = "Hugging Face directory of Mistral-7B-v0.2 or of a model trained from it"
        raise UserError(f"{name} needs --model DIR, a {what}")
    if not recipe.miniature and options.data is None:
        raise UserError(f"{name} needs --data FILE.jsonl with {COLUMNS[recipe.objective]}")
    files = len(options.data or (None,))
    if recipe.probabilities is not None and len(recipe.probabilities) != files:
        raise UserError(
            f"--probabilities are {len(recipe.probabilities)} shares, --data names {files} files: "
            "each file needs one"
        )
    for flag in ("reference", "reference_logps"):
        given = getattr(options, flag) is not None
        require(not given or recipe.objective == "dpo", options, flag, "left out: only DPO has one")


def check_weights(recipe: Recipe, options: Options, start: Path) -> None:
    """Raises UserError unless the models to start from are there, whole, and of the right kind."""
    if recipe.objective == "reward":
        checkpoint.open_model(RewardModel, start, options.impl, any_head=True)
        return
    policy = checkpoint.open_model(Policy, start, options.impl)
    if options.reference:
        reference = checkpoint.open_model(Policy, options.reference, options.impl)
        for name in ("vocab_size", "sliding_window"):
            own, other = getattr(policy.config, name), getattr(reference.config, name)
            if own != other:
                raise UserError(
                    f"{options.reference}: {name} is {other}, needed is {own} as in {start}: rows "
                    "of the policy must fit its reference"
                )


def check_out(out: Path, options: Options) -> None:
    """Raises UserError if a run would write over something that it should not."""
    model = out / "model"
    for flag in ("model", "reference"):
        given = getattr(options, flag)
        if given and model.resolve() == given.resolve():
            raise UserError(f"--out {out} would write over --{flag} {given}; choose another --out")
    holds_run = (out / "recipe.json").exists()
    if options.resume and not holds_run:
        raise UserError(f"{out} holds no run to resume")
    if not options.resume and (holds_run or model.exists() or (out / "state").exists()):
        raise UserError(f"{out} already holds a run: --resume continues it, --out starts another")
    out.mkdir(parents=True, exist_ok=True)


def read(
    files: tuple[Path, ...], tokenizer: Tokenizer, recipe: Recipe, config: ModelConfig
) -> Data:
    """Loads files of examples, mixes them, and prints what was found and what was dropped."""
    sources = []
    for path in files:
        print(f"data: {path}", flush=True)  # encoding a large file takes minutes
        source, fate = load_examples(
            path,
            tokenizer,
            PARSERS[recipe.objective],
            max_tokens=recipe.longest,
            cut=recipe.cut,
            keep_eos=recipe.objective == "reward",
            legacy_space=bool(recipe.legacy_space),
        )
        cut = f", {fate['cut']:,} of them cut" if recipe.cut else ""
        print(f"      {len(source):,} examples{cut} (dropped: {reasons(fate) or 'none'})")
        sources.append(source)
    examples = [example for source in sources for example in source]
    if recipe.probabilities is not None and len(files) > 1:
        stream = interleave([len(s) for s in sources], recipe.probabilities, recipe.seed)
        examples = [sources[source][i] for source, i in stream]
    examples = examples[: recipe.max_examples]
    share_prompt = bool(recipe.share_prompt)
    lengths = [laid_tokens(e, config.sliding_window, share_prompt) for e in examples]
    trained = Counts.of(examples, recipe.nll_on_prompt)
    what = f"{trained.pairs:,} pairs" if trained.pairs else f"{trained.targets:,} of them trained"
    print(f"      {sum(lengths):,} tokens in rows, {what}")
    return Data(files, examples, lengths)
