"""What a training run is made of: read, checked and printed before any work is done."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from janus_min import checkpoint, miniature
from janus_min.data import Example, Plan, load_examples, make_plan
from janus_min.device import pick_device
from janus_min.errors import UserError, require
from janus_min.model import ModelConfig
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.recipes import RECIPES, Recipe, mini_model
from janus_min.tokenizer import Tokenizer
from kernels.attention import IMPLEMENTATIONS


@dataclass(frozen=True)
class Options:
    """The files of a run, and how much of it to do."""

    model: Path | None = None  # Hugging Face directory to start from
    data: Path | None = None  # JSONL with system, prompt, output
    out: Path | None = None  # where the run is kept; runs/RECIPE unless given
    steps: int | None = None  # stop after so many steps; the schedule keeps its full length
    resume: bool = False  # go on from the last state in --out
    save_every: int = 250  # steps between saved states
    eval_data: Path | None = None  # held-out JSONL
    eval_every: int = 100  # steps between evaluations on it
    dry_run: bool = False  # print the plan and stop
    show_rows: int | None = None  # print so many rows and stop
    impl: str = "torch"  # which kernels: torch or reference

    def __post_init__(self):
        for name in ("steps", "save_every", "eval_every", "show_rows"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        known = " or ".join(IMPLEMENTATIONS)
        require(self.impl in IMPLEMENTATIONS, self, "impl", known)


@dataclass(frozen=True)
class Run:
    """Everything that one training run is made of."""

    name: str
    recipe: Recipe
    options: Options
    out: Path
    config: ModelConfig
    tokenizer: Tokenizer
    examples: list[Example]
    held_out: list[Example]
    plan: Plan
    device: str

    def fingerprint(self) -> str:
        """Changes when recipe, model, examples or their order do: such a state is another run's."""
        settings = [asdict(self.recipe), asdict(self.config), self.plan]
        content = hashlib.sha256(json.dumps(settings).encode())
        for example in self.examples:
            content.update(example.prompt.tobytes() + b"|" + example.response.tobytes())
        return content.hexdigest()


def prepare(name: str, recipe: Recipe, options: Options) -> Run:
    """Reads and checks all that a run needs, and prints what it is going to be."""
    require(recipe.objective in OBJECTIVES, recipe, "objective", " or ".join(OBJECTIVES))
    known = miniature.COLLECTIONS if RECIPES[name].miniature else (None,)
    require(recipe.miniature in known, recipe, "miniature", " or ".join(map(str, known)))
    out = options.out or Path("runs") / name
    only_look = options.dry_run or options.show_rows is not None
    if not only_look:
        check_out(out, options)
    if recipe.miniature:
        miniature.write_world(miniature.FILES)
    elif options.model is None:
        raise UserError(f"{name} needs --model DIR, a Hugging Face directory of Mistral-7B-v0.2")
    elif options.data is None:
        raise UserError(f"{name} needs --data FILE.jsonl with system, prompt and output")
    tokenizer = Tokenizer(options.model or miniature.FILES)
    if options.model:
        config = ModelConfig.from_json(options.model / "config.json")
        if not only_look:
            checkpoint.open_policy(options.model, options.impl)  # are all weights there?
    else:
        config = mini_model(tokenizer.vocab_size)
    checkpoint.require_vocabulary(tokenizer, config)
    context = config.max_position_embeddings
    require(recipe.row_tokens <= context, recipe, "row_tokens", f"at most the context, {context}")

    print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in asdict(recipe).items()))
    data = options.data or miniature.FILES / f"{recipe.miniature}.jsonl"
    examples = read(data, tokenizer, recipe)
    held_out = read(options.eval_data, tokenizer, recipe) if options.eval_data else []
    plan = make_plan(
        [len(example) for example in examples],
        row_tokens=recipe.row_tokens,
        rows_per_step=recipe.rows_per_step,
        epochs=recipe.epochs,
        seed=recipe.seed,
    )
    rows = sum(len(step) for step in plan)
    fill = sum(len(example) for example in examples) * recipe.epochs / (rows * recipe.row_tokens)
    print(
        f"plan: {len(plan):,} steps, {rows:,} rows of {recipe.row_tokens:,} tokens, {fill:.0%} full"
    )
    device = pick_device()
    print(f"on {device}, kernels: {options.impl}, out: {out}")
    return Run(name, recipe, options, out, config, tokenizer, examples, held_out, plan, device)


def check_out(out: Path, options: Options) -> None:
    """Raises UserError if a run would write over something that it should not."""
    model = out / "model"
    if options.model and model.resolve() == options.model.resolve():
        raise UserError(
            f"--out {out} would write over --model {options.model}; choose another --out"
        )
    holds_run = (out / "recipe.json").exists()
    if options.resume and not holds_run:
        raise UserError(f"{out} holds no run to resume")
    if not options.resume and (holds_run or model.exists() or (out / "state").exists()):
        raise UserError(f"{out} already holds a run: --resume continues it, --out starts another")
    out.mkdir(parents=True, exist_ok=True)


def read(path: Path, tokenizer: Tokenizer, recipe: Recipe) -> list[Example]:
    """Loads a file of examples and prints what was found in it, and what was dropped."""
    print(f"data: {path}", flush=True)  # before the encoding, which takes minutes for a large file
    examples, dropped = load_examples(path, tokenizer, recipe.row_tokens)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    tokens, trained = sum(len(example) for example in examples), Counts.of(examples).targets
    print(f"      {len(examples):,} examples (dropped: {reasons or 'none'})")
    print(f"      {tokens:,} tokens, {trained:,} of them trained ({trained / tokens:.0%})")
    return examples
