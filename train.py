"""Trains a model of the paper, or a miniature.

    python train.py                             the miniature, from nothing, with its scores
    python train.py mini-dpo                    a miniature trained on preferences
    python train.py janus-7b --model DIR --data FILE.jsonl [--out DIR]
    python train.py janus-dpo-7b --model DIR --data PAIRS.jsonl [--out DIR]
    python train.py RECIPE ... --dry-run        what would be trained: examples, rows, steps
    python train.py RECIPE ... --show-rows 2    rows as the model sees them

RECIPE is one of: {recipes}
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from janus_min import cli, miniature
from janus_min.checkpoint import load_model, save_model
from janus_min.cli import Parser, add_fields, given_fields
from janus_min.device import compute_dtype, precision
from janus_min.directories import tensor_files
from janus_min.errors import UserError
from janus_min.grading import score_model
from janus_min.interrupt import Interruptible, StoppedError
from janus_min.model import Policy, RewardModel, initialise, initialise_head
from janus_min.objectives import OBJECTIVES
from janus_min.optim import adamw
from janus_min.prepare import check, check_out, prepare
from janus_min.progress import clock
from janus_min.recipes import FIXED, RECIPES, Recipe
from janus_min.records import Records
from janus_min.reference import add_reference
from janus_min.run import Options, Run
from janus_min.sampling import load_for_generation
from janus_min.show import show_row
from janus_min.state import (
    load_state,
    newest_state,
    read_state,
    remove_leftovers,
    save_state,
)


def main(arguments: list[str] | None = None) -> None:
    """Runs a recipe: everything is read and checked, then trained step by step, then exported."""
    name, recipe, options = command_line(arguments)
    train_start(name, recipe, options)
    run = prepare(name, recipe, options)
    if options.only_look:
        return show_rows(run)
    model, optimizer, first, identity = begin(run)
    objective, started = OBJECTIVES[recipe.objective], time.monotonic()
    with Records(run, first) as records, Interruptible() as interrupt:
        for step in range(first, run.last):
            rows = run.plan[step]
            counts = run.counts(run.data, rows)
            optimizer.zero_grad(set_to_none=True)
            shares = []  # each row's, of the step's loss and metrics
            for indices in rows:
                row = run.row(run.data, indices)
                with precision(run.device):
                    loss, row_metrics = objective(model, row, counts, recipe)
                loss.backward()  # gradients add up to that of the step's mean loss
                shares.append({"loss": loss.detach()} | row_metrics)
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm).item()
            metrics, losses = add_up(shares)
            require_finite(run, step, losses, norm)
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate(step)
            optimizer.step()

            done, stop = step + 1, interrupt.received
            metrics |= {"lr": run.learning_rate(step), "grad_norm": norm}
            metrics["tokens"] = run.tokens(rows)
            metrics |= {"pairs": counts.pairs} if counts.pairs else {"targets": counts.targets}
            if run.held_out and (done % options.eval_every == 0 or done == run.last):
                metrics |= held_out_metrics(run, model)
            records.write({"step": done} | metrics)
            if done % options.save_every == 0 or done == run.last or stop:
                require_finite_weights(run, model, done)
                records.sync()
                save_state(model, optimizer, done, run.out / "state", identity, options.keep)
            if stop:
                text = f"interrupted after step {done}, which is saved; --resume goes on from there"
                raise StoppedError(text, stop)
    export(run, model)
    spent = clock(time.monotonic() - started)
    print(f"trained {max(0, run.last - first)} steps in {spent}; the model is in {run.out}/model")
    if recipe.miniature and recipe.objective != "reward":
        policy, tokenizer = load_for_generation(run.out / "model")
        for score in score_model(policy, tokenizer, recipe.miniature == "uniform"):
            print(score)


# Before the first step


def command_line(arguments: list[str] | None) -> tuple[str, Recipe, Options]:
    """The recipe's name, the recipe with the flags that override it, and the other flags."""
    parser = Parser(__doc__.format(recipes=", ".join(RECIPES)))
    parser.add_argument("name", nargs="?", default="mini-sft", metavar="RECIPE")
    add_fields(parser, Options)
    add_fields(parser, Recipe, without=FIXED)
    given = parser.parse_args(arguments)
    if given.name not in RECIPES:
        raise UserError(f"recipe {given.name!r} is unknown; there are {', '.join(RECIPES)}")
    recipe = replace(RECIPES[given.name], **given_fields(given, Recipe))
    options = Options(**given_fields(given, Options))
    check(given.name, recipe, options)
    return given.name, recipe, options


def train_start(name: str, recipe: Recipe, options: Options) -> None:
    """Trains the miniature that another one starts from, unless it is there."""
    if recipe.start is None or options.model is not None or options.only_look:
        return
    check_out(options.out or Path("runs") / name, options)  # before minutes of work
    model = miniature.model_of(recipe.start)
    if not model.exists():
        resume = ["--resume"] if (model.parent / "recipe.json").exists() else []
        main([recipe.start, *resume])


def show_rows(run: Run) -> None:
    """Prints the first rows of the plan."""
    rows = [row for step in run.plan for row in step]
    for indices in rows[: run.options.show_rows or 0]:
        row = run.row(run.data, indices)
        print(show_row(row, run.tokenizer, objective=run.recipe.objective))


def begin(run: Run) -> tuple[nn.Module, torch.optim.Optimizer, int, dict]:
    """Model and optimizer as they are after the last saved step, or before the first one.

    Returns them, the number of steps that are done, and what identifies the run in its states.
    """
    identity = run.identity()
    remove_leftovers(run.out / "state")
    saved = newest_state(run.out / "state") if run.options.resume else None
    first = 0
    if saved is not None:
        state = read_state(saved)
        require_same_run(saved, state, identity)
        first = state["step"]
        if first > run.last:
            raise UserError(f"{saved} is further than --steps {run.last}")
    if run.recipe.objective == "dpo":
        add_reference(run, first, identity["reference"])
    model = starting_model(run, empty=saved is not None)
    optimizer = adamw(model, weight_decay=run.recipe.weight_decay, beta2=run.recipe.beta2)
    if saved is not None:
        load_state(model, optimizer, saved)
    return model, optimizer, first, identity


def require_same_run(path: object, state: dict, identity: dict) -> None:
    """Raises UserError that says what differs between a saved run and this one."""
    old, new = state.get("recipe", {}), identity["recipe"]
    changed = [
        f"--{field.replace('_', '-')} was {old.get(field)} and is {new[field]}"
        for field in new
        if old.get(field) != new[field]
    ]
    others = [part for part in identity.keys() - {"recipe"} if state.get(part) != identity[part]]
    changed += [f"the {part} differs" for part in sorted(others)]
    if changed:
        raise UserError(f"{path} is of another run: {', '.join(changed)}; choose another --out")


def starting_model(run: Run, empty: bool) -> nn.Module:
    """The model to start from; with `empty` only its shapes, because a state will fill it."""
    recipe, impl = run.recipe, run.options.impl
    is_reward = recipe.objective == "reward"
    kind = RewardModel if is_reward else Policy
    if run.start is None or empty:
        model = kind(run.config, impl).to(run.device)
        if not empty:
            initialise(model, recipe.seed)
        return model
    model = load_model(kind, run.start, impl=impl, device=run.device, any_head=is_reward)
    if is_reward and (recipe.restart_head or "value_head.weight" not in tensor_files(run.start)):
        initialise_head(model, recipe.seed)
    return model


# A step


def add_up(shares: list[dict[str, Tensor]]) -> tuple[dict[str, float], list[float]]:
    """The sum of each metric over the rows of a step, and the rows' shares of the loss."""
    table = torch.stack([torch.stack([*share.values()]) for share in shares]).double()
    sums = dict(zip(shares[0], table.sum(0).tolist()))  # one wait for the device, not one a metric
    return sums, table[:, 0].tolist()


@torch.no_grad()
def held_out_metrics(run: Run, model: nn.Module) -> dict[str, float]:
    """Loss and metrics on the held-out examples, through the same code as in training."""
    objective, rows = OBJECTIVES[run.recipe.objective], run.held_out_rows()
    counts = run.counts(run.held_out, rows)
    shares = []
    for indices in rows:
        with precision(run.device):
            loss, metrics = objective(model, run.row(run.held_out, indices), counts, run.recipe)
        shares.append({"loss": loss} | metrics)
    return {f"eval_{name}": value for name, value in add_up(shares)[0].items()}


def require_finite(run: Run, step: int, losses: list[float], norm: float) -> None:
    """Ends the run before an update that would ruin the weights; says which data it was."""
    for number, (loss, indices) in enumerate(zip(losses, run.plan[step]), start=1):
        if not math.isfinite(loss):
            sources = ", ".join(run.data.examples[i].source for i in indices)
            where = f"row {number} ({sources})"
            raise UserError(f"loss is {loss} in step {step + 1}, {where}; {what_is_left(run)}")
    if not math.isfinite(norm):
        raise UserError(f"the gradient's norm is {norm} in step {step + 1}; {what_is_left(run)}")


def require_finite_weights(run: Run, model: nn.Module, done: int) -> None:
    """Keeps ruined weights from replacing the last good state."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{name} is not finite after step {done}; {what_is_left(run)}")


def what_is_left(run: Run) -> str:
    """The end of a message: what the user can go on from."""
    saved = newest_state(run.out / "state")
    return f"the last good state is {saved}" if saved else "no state had been saved yet"


# After the last step


def export(run: Run, model: nn.Module) -> None:
    """Writes the model, a reward model with the mean and spread of its held-out rewards."""
    if isinstance(model, RewardModel) and not run.held_out:
        model.mean, model.std = 0.0, 1.0
        print("rewards are not normalised, which takes held-out pairs (--eval-data)")
    elif isinstance(model, RewardModel):
        rewards = held_out_rewards(run, model)
        model.mean, model.std = rewards.mean().item(), max(rewards.std().item(), 1e-8)
        right = (rewards[:, 0] > rewards[:, 1]).double().mean().item()
        print(
            f"held-out pairs: {right:.1%} of {len(rewards)} ranked right; rewards have mean "
            f"{model.mean:.3f} and standard deviation {model.std:.3f}"
        )
    dtype = compute_dtype(run.device)  # what it was computed in
    save_model(model, run.out / "model", run.tokenizer.path.parent, dtype)


@torch.no_grad()
def held_out_rewards(run: Run, model: RewardModel) -> Tensor:
    """The rewards of all held-out pairs, (pairs, 2), chosen first."""
    rewards = []
    for indices in run.held_out_rows():
        with precision(run.device):
            rewards.append(model(run.row(run.held_out, indices)).cpu().view(-1, 2))
    return torch.cat(rewards)


if __name__ == "__main__":
    cli.run(main)
