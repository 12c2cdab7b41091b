"""Trains a model of the paper, or the miniature.

    python train.py                             the miniature, from nothing, with its scores
    python train.py mini-uniform                the same with one system message for all
    python train.py janus-7b --model DIR --data FILE.jsonl [--out DIR]
    python train.py RECIPE ... --dry-run        what would be trained: examples, rows, steps
    python train.py RECIPE ... --show-rows 2    rows as the model sees them

RECIPE is one of: {recipes}
"""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from janus_min import checkpoint, cli, miniature
from janus_min.cli import Parser, add_fields, given_fields
from janus_min.data import Example, best_fit, build_row
from janus_min.device import compute_dtype
from janus_min.errors import UserError
from janus_min.model import Policy, initialise
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.optim import adamw, learning_rate
from janus_min.progress import Progress, clock
from janus_min.recipes import RECIPES, Recipe
from janus_min.run import Options, Run, prepare
from janus_min.sampling import load_for_generation
from janus_min.show import show_row


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
    if options.show_rows:
        rows = [row for step in prepared.plan for row in step]
        for row in rows[: options.show_rows]:
            examples = [prepared.examples[i] for i in row]
            print(show_row(build_row(examples, prepared.config.sliding_window), prepared.tokenizer))
    if options.show_rows or options.dry_run:
        return
    train(prepared)
    if recipe.miniature:
        policy, tokenizer = load_for_generation(prepared.out / "model")
        for score in miniature.score_model(policy, tokenizer, recipe.miniature == "uniform"):
            print(score)


# The run

SHOWN = ("loss", "eval_loss", "lr")  # metrics on the progress line


def train(run: Run) -> None:
    """The whole run, from the first step or the last saved one to the exported model."""
    recipe, options, out = run.recipe, run.options, run.out
    fingerprint = run.fingerprint()
    saved = last_state(out, fingerprint) if options.resume else None
    policy = starting_policy(run, empty=saved is not None)
    optimizer = adamw(policy, weight_decay=recipe.weight_decay, beta2=recipe.beta2)
    if saved is not None:
        checkpoint.load_state(policy, optimizer, saved)
    first = checkpoint.read_state(saved)["step"] if saved is not None else 0
    begin_records(run, first)

    last = min(options.steps or len(run.plan), len(run.plan))
    progress, started = Progress(last, "tokens", first), time.monotonic()
    try:
        for step in range(first, last):
            metrics = {"step": step + 1} | train_step(run, policy, optimizer, step)
            if run.held_out and ((step + 1) % options.eval_every == 0 or step + 1 == last):
                metrics["eval_loss"] = held_out_loss(run, policy)
            with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
            text = "  ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
            progress.update(step + 1, metrics["tokens"], text)
            if (step + 1) % options.save_every == 0 or step + 1 == last:
                require_finite_weights(run, policy, step)
                extra = {"fingerprint": fingerprint}
                checkpoint.save_state(policy, optimizer, step + 1, out / "state", extra)
    finally:
        progress.close()
    dtype = compute_dtype(run.device)  # what it was computed in
    checkpoint.save_policy(policy, out / "model", run.tokenizer.path.parent, dtype)
    spent = clock(time.monotonic() - started)
    print(f"trained {max(0, last - first)} steps in {spent}; the model is in {out / 'model'}")


def starting_policy(run: Run, empty: bool) -> Policy:
    """The model to start from; with `empty` only its shapes, because a state will fill it."""
    if run.options.model and not empty:
        return checkpoint.load_policy(run.options.model, impl=run.options.impl, device=run.device)
    policy = Policy(run.config, run.options.impl)
    if not empty:
        initialise(policy, run.recipe.seed)
    return policy.to(run.device)


def last_state(out: Path, fingerprint: str) -> Path | None:
    """The newest state of this run; None if it ended before it saved one."""
    states = checkpoint.states(out / "state")
    if not states:
        return None
    if checkpoint.read_state(states[-1]).get("fingerprint") != fingerprint:
        raise UserError(
            f"{states[-1]} belongs to another recipe, model or data; choose another --out"
        )
    return states[-1]


def begin_records(run: Run, first: int) -> None:
    """Writes what the run is, and cuts the metrics to the `first` steps that are kept."""
    about = {"recipe": run.name} | asdict(run.recipe)
    about |= {"model": str(run.options.model), "data": str(run.options.data)}
    about |= {"kernels": run.options.impl, "device": run.device, "torch": torch.__version__}
    text = json.dumps(about, indent=2)
    (run.out / "recipe.json").write_text(text + "\n", encoding="utf-8")
    metrics = run.out / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if first else []
    metrics.write_text("".join(lines[:first]), encoding="utf-8")


# One step


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
    require_finite(run, step, rows, losses, norm)
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
    dtype = compute_dtype(run.device)
    pad_to = run.recipe.row_tokens if run.device == "cuda" else None
    row = build_row(examples, run.config.sliding_window, pad_to).to(run.device)
    with torch.autocast(run.device, dtype, enabled=dtype != torch.float32):
        return OBJECTIVES[run.recipe.objective](policy, row, counts)


@torch.no_grad()
def held_out_loss(run: Run, policy: nn.Module) -> float:
    """The loss on the held-out examples, through the same code as in training."""
    counts = Counts.of(run.held_out)
    rows = best_fit([len(example) for example in run.held_out], run.recipe.row_tokens)
    return sum(row_loss(run, policy, [run.held_out[i] for i in row], counts).item() for row in rows)


def require_finite(
    run: Run, step: int, rows: list[list[Example]], losses: list[float], norm: float
) -> None:
    """Ends the run before an update that would ruin the weights; says which data it was."""
    for number, (loss, examples) in enumerate(zip(losses, rows), start=1):
        if not math.isfinite(loss):
            lines = ", ".join(str(example.line) for example in examples)
            where = f"row {number} (data lines {lines})"
            raise UserError(f"loss is {loss} in step {step + 1}, {where}; {what_is_left(run)}")
    if not math.isfinite(norm):
        raise UserError(f"the gradient's norm is {norm} in step {step + 1}; {what_is_left(run)}")


def require_finite_weights(run: Run, policy: nn.Module, step: int) -> None:
    """Keeps ruined weights from replacing the last good state."""
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{name} is not finite after step {step + 1}; {what_is_left(run)}")


def what_is_left(run: Run) -> str:
    """The end of a message: what the user can go on from."""
    states = checkpoint.states(run.out / "state")
    return f"the last good state is {states[-1]}" if states else "no state had been saved yet"


if __name__ == "__main__":
    cli.run(main)
