"""Trains a model of the paper, or the miniature.

    python train.py                             the miniature, from nothing, with its scores
    python train.py mini-uniform                the same with one system message for all
    python train.py janus-7b --model DIR --data FILE.jsonl [--out DIR]
    python train.py RECIPE ... --dry-run        what would be trained: examples, rows, steps
    python train.py RECIPE ... --show-rows 2    rows as the model sees them

RECIPE is one of: {recipes}
"""

import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from janus_min import checkpoint, miniature
from janus_min.cli import Parser, add_fields, at_least, given_fields, run
from janus_min.data import Example, Plan, best_fit, build_row, load_examples, make_plan
from janus_min.errors import UserError
from janus_min.model import ModelConfig, Policy, initialise
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.optim import adamw, learning_rate
from janus_min.progress import Progress, clock
from janus_min.recipes import RECIPES, Recipe, mini_model
from janus_min.show import show_row
from janus_min.tokenizer import Tokenizer
from kernels.attention import IMPLEMENTATIONS


@dataclass(frozen=True)
class Options:
    """The files of a run, and how much of it to do. None of this changes what a step computes."""

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
    dropped: Counter  # rows of the data that are not among the examples, by reason
    held_out: list[Example]
    plan: Plan
    device: str

    def fingerprint(self) -> str:
        """Changes when recipe, examples or order do: another run's state is not continued."""
        lengths = [len(example) for example in self.examples]
        content = json.dumps([asdict(self.recipe), lengths, self.plan])
        return hashlib.sha256(content.encode()).hexdigest()


def main() -> None:
    parser = Parser(__doc__.format(recipes=", ".join(RECIPES)))
    parser.add_argument("name", nargs="?", default="mini-sft", metavar="RECIPE")
    add_fields(parser, Options)
    add_fields(parser, Recipe)
    arguments = parser.parse_args()
    if arguments.name not in RECIPES:
        raise UserError(f"recipe {arguments.name!r} is unknown; there are {', '.join(RECIPES)}")
    recipe = replace(RECIPES[arguments.name], **given_fields(arguments, Recipe))
    options = Options(**given_fields(arguments, Options))

    prepared = prepare(arguments.name, recipe, options)
    describe(prepared)
    for row in prepared.plan[0][: options.show_rows or 0]:
        examples = [prepared.examples[i] for i in row]
        print(show_row(build_row(examples, prepared.config.sliding_window), prepared.tokenizer))
    if options.show_rows or options.dry_run:
        return
    policy = train(prepared)
    if recipe.miniature:
        uniform = recipe.miniature == "uniform"
        for score in miniature.score_model(policy, prepared.tokenizer, uniform):
            print(score)


def prepare(name: str, recipe: Recipe, options: Options) -> Run:
    """Reads and checks all that a run needs, before any work is done."""
    at_least(1, recipe, "epochs", "row_tokens", "rows_per_step")
    at_least(0, recipe, "warmup_steps", "learning_rate", "seed")
    at_least(1, options, "steps", "save_every", "eval_every", "show_rows")
    for flag, value, known in [
        ("objective", recipe.objective, OBJECTIVES),
        ("impl", options.impl, IMPLEMENTATIONS),
        ("miniature", recipe.miniature, (None, *miniature.COLLECTIONS)),
    ]:
        if value not in known:
            there_are = ", ".join(str(one) for one in known if one)
            raise UserError(f"--{flag} is {value!r}; there are {there_are}")
    out = options.out or Path("runs") / name
    look = options.dry_run or options.show_rows
    if (out / "recipe.json").exists() and not (options.resume or look):
        raise UserError(f"{out} already holds a run: --resume continues it, --out starts another")

    if recipe.miniature:
        miniature.write_world(miniature.FILES)
    elif options.model is None:
        raise UserError(f"{name} needs --model DIR, a Hugging Face directory of Mistral-7B-v0.2")
    elif options.data is None:
        raise UserError(f"{name} needs --data FILE.jsonl with system, prompt and output")
    data = options.data or miniature.FILES / f"{recipe.miniature}.jsonl"
    tokenizer = Tokenizer(options.model or miniature.FILES)
    if options.model:
        config = ModelConfig.from_json(options.model / "config.json")
    else:
        config = mini_model(tokenizer.vocab_size)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces, the model only "
            f"{config.vocab_size}: they are not of one model"
        )
    if recipe.row_tokens > config.max_position_embeddings:
        raise UserError(
            f"--row-tokens is {recipe.row_tokens}, the model's context only "
            f"{config.max_position_embeddings}"
        )
    print(f"reading {data}", flush=True)
    examples, dropped = load_examples(data, tokenizer, recipe.row_tokens)
    held_out: list[Example] = []
    if options.eval_data:
        held_out, _ = load_examples(options.eval_data, tokenizer, recipe.row_tokens)
    plan = make_plan(
        [len(example) for example in examples],
        row_tokens=recipe.row_tokens,
        rows_per_step=recipe.rows_per_step,
        epochs=recipe.epochs,
        seed=recipe.seed,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Run(
        name, recipe, options, out, config, tokenizer, examples, dropped, held_out, plan, device
    )


def describe(run: Run) -> None:
    """Prints what is about to be trained."""
    print(f"{run.name}: " + ", ".join(f"{k} {v}" for k, v in asdict(run.recipe).items()))
    drops = ", ".join(f"{count} {reason}" for reason, count in run.dropped.items()) or "none"
    tokens = sum(len(example) for example in run.examples)
    trained = Counts.of(run.examples).targets
    rows = sum(len(step) for step in run.plan)
    fill = tokens * run.recipe.epochs / (rows * run.recipe.row_tokens)
    print(f"data: {len(run.examples):,} examples (dropped: {drops}), {tokens:,} tokens")
    print(f"      {trained:,} of the tokens are trained ({trained / tokens:.0%})")
    print(f"plan: {len(run.plan):,} steps, {rows:,} rows of {run.recipe.row_tokens:,} tokens")
    print(f"      {fill:.1%} of the rows is filled")
    print(f"on:   {run.device}, kernels: {run.options.impl}, out: {run.out}")


def train(run: Run) -> Policy:
    """The whole run, from the first step or the last saved one to the exported model."""
    recipe, options, out = run.recipe, run.options, run.out
    if options.model:
        policy = checkpoint.load_policy(options.model, impl=options.impl, device=run.device)
    else:
        policy = Policy(run.config, options.impl)
        initialise(policy, recipe.seed)
        policy.to(run.device)
    optimizer = adamw(policy, weight_decay=recipe.weight_decay, beta2=recipe.beta2)
    first = resume(run, policy, optimizer) if options.resume else begin(run)
    last = min(options.steps or len(run.plan), len(run.plan))
    fingerprint = {"fingerprint": run.fingerprint()}
    progress, started = Progress(last, "tokens", first), time.monotonic()
    for step in range(first, last):
        metrics = {"step": step + 1} | train_step(run, policy, optimizer, step)
        if run.held_out and ((step + 1) % options.eval_every == 0 or step + 1 == last):
            metrics["eval_loss"] = held_out_loss(run, policy)
        with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        shown = [f"{key} {metrics[key]:.4f}" for key in ("loss", "eval_loss") if key in metrics]
        progress.update(step + 1, metrics["tokens"], f"{'  '.join(shown)}  lr {metrics['lr']:.1e}")
        if (step + 1) % options.save_every == 0 or step + 1 == last:
            checkpoint.save_state(policy, optimizer, step + 1, out / "state", fingerprint)
    dtype = torch.bfloat16 if run.device == "cuda" else torch.float32  # what it was computed in
    checkpoint.save_policy(policy, out / "model", run.tokenizer.path.parent, dtype)
    spent = clock(time.monotonic() - started)
    print(f"trained {max(0, last - first)} steps in {spent}; the model is in {out / 'model'}")
    return policy


def begin(run: Run) -> int:
    """Makes the run's directory. Returns the first step, 0."""
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / "metrics.jsonl").write_text("", encoding="utf-8")
    recipe = json.dumps(asdict(run.recipe), indent=2)
    (run.out / "recipe.json").write_text(recipe + "\n", encoding="utf-8")
    return 0


def resume(run: Run, policy: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Takes up the run's last state. Returns the step to go on with."""
    states = checkpoint.states(run.out / "state")
    if not states:
        raise UserError(f"{run.out / 'state'} holds no training state to resume from")
    state = states[-1]
    saved = checkpoint.read_state(state)
    if saved["fingerprint"] != run.fingerprint():
        raise UserError(f"{state} belongs to another recipe or other data; choose another --out")
    checkpoint.load_state(policy, optimizer, state)
    metrics = run.out / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join(lines[: saved["step"]]), encoding="utf-8")
    return saved["step"]


def train_step(
    run: Run, policy: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """One optimizer step: its rows' gradients add up to the gradient of the step's mean loss."""
    recipe = run.recipe
    rows = [[run.examples[i] for i in row] for row in run.plan[step]]
    counts = Counts.of([example for row in rows for example in row])
    rate = learning_rate(
        step,
        peak=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        total_steps=len(run.plan),
    )
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for examples in rows:
        loss = row_loss(run, policy, examples, counts)
        loss.backward()
        losses.append(loss.detach())
    norm = nn.utils.clip_grad_norm_(policy.parameters(), recipe.max_grad_norm).item()
    losses = torch.stack(losses).tolist()
    stop_unless_finite(run, step, rows, losses, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    tokens = sum(len(example) for row in rows for example in row)
    return {
        "loss": sum(losses),
        "lr": rate,
        "grad_norm": norm,
        "tokens": tokens,
        "targets": counts.targets,
    }


def row_loss(run: Run, policy: nn.Module, examples: list[Example], counts: Counts) -> Tensor:
    """One row's share of a step's loss: in bf16 and rows of one length on a GPU, fp32 on a CPU."""
    on_gpu = run.device == "cuda"
    pad_to = run.recipe.row_tokens if on_gpu else None
    row = build_row(examples, run.config.sliding_window, pad_to).to(run.device)
    with torch.autocast(run.device, torch.bfloat16, enabled=on_gpu):
        loss, _ = OBJECTIVES[run.recipe.objective](policy, row, counts)
    return loss


@torch.no_grad()
def held_out_loss(run: Run, policy: nn.Module) -> float:
    """The loss on the held-out examples, through the same code as in training."""
    counts = Counts.of(run.held_out)
    rows = best_fit([len(example) for example in run.held_out], run.recipe.row_tokens)
    return sum(row_loss(run, policy, [run.held_out[i] for i in row], counts).item() for row in rows)


def stop_unless_finite(
    run: Run, step: int, rows: list[list[Example]], losses: list[float], norm: float
) -> None:
    """Ends the run before an update that would ruin the weights; says which data it was."""
    kept = f"the weights were not changed by it, the last saved state is in {run.out / 'state'}"
    for number, (loss, examples) in enumerate(zip(losses, rows), start=1):
        if not math.isfinite(loss):
            lines = ", ".join(str(example.line) for example in examples)
            raise UserError(
                f"loss is {loss} in step {step + 1}, row {number} (data lines {lines}); {kept}"
            )
    if not math.isfinite(norm):
        raise UserError(f"the gradient's norm is {norm} in step {step + 1}; {kept}")


if __name__ == "__main__":
    run(main)
