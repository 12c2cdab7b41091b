"""Trains a model of the paper, or a miniature.

    python train.py                             the miniature, from nothing, with its scores
    python train.py mini-dpo                    a miniature trained on preferences
    python train.py janus-7b --model DIR --data FILE.jsonl [--out DIR]
    python train.py janus-dpo-7b --model DIR --data PAIRS.jsonl [--out DIR]
    python train.py RECIPE ... --dry-run        what would be trained, and the memory it takes
    torchrun --nproc-per-node 4 train.py RECIPE ...     on four GPUs
    python train.py RECIPE ... --show-rows 2    rows as the model sees them

RECIPE is one of: {recipes}
"""

import io
import math
import os
import signal
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from janus_min import cli, mini_data
from janus_min.checkpoint import open_model, save_model
from janus_min.cli import Parser, add_fields, given_fields
from janus_min.config import ModelConfig
from janus_min.device import compute_dtype, pick_impl
from janus_min.errors import UserError
from janus_min.grading import score_model
from janus_min.interrupt import Interruptible, StoppedError
from janus_min.loading import load_for_generation
from janus_min.memory import Job, report
from janus_min.model import Policy, RewardModel
from janus_min.objectives import OBJECTIVES
from janus_min.parallel import Ranks, fail, join, local, reshard, run_rank, whole
from janus_min.prepare import check, check_out, prepare
from janus_min.progress import clock
from janus_min.recipes import FIXED, MISTRAL_7B, RECIPES, Recipe
from janus_min.records import Records
from janus_min.resume import begin, save
from janus_min.run import Options, Run
from janus_min.show import show_row
from janus_min.state import newest_state


def main(arguments: list[str] | None = None) -> None:
    """Runs a recipe: everything is read and checked, then trained step by step, then exported."""
    name, recipe, options = command_line(arguments)
    if options.only_look:
        return look(name, recipe, options)
    ranks = join(options.device, options.replicas)
    options = train_start(name, recipe, options, ranks)
    with ranks.together():
        run = prepare(name, recipe, options, ranks)
    model, optimizer, first, identity = begin(run)
    objective, started = OBJECTIVES[recipe.objective], time.monotonic()
    with Records(run, first) as records, Interruptible() as interrupt:
        for step in range(first, run.last):
            rows = run.plan[step]
            counts = run.counts(run.data, rows)
            optimizer.zero_grad(set_to_none=True)
            shares = []  # each row's, of the step's loss and metrics
            for number, row in run.own(run.data, rows):
                loss, row_metrics = objective(model, row, counts, recipe)
                # Gradients add up over rows and ranks to that of the step's mean loss: FSDP takes
                # their mean over the ranks, which times their number is the sum.
                (loss * ranks.size).backward()
                shares.append((number, {"loss": loss.detach()} | row_metrics))
            norm = whole(nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)).item()
            metrics, losses, stop = add_up(ranks, shares, len(rows), interrupt.received)
            require_finite(run, step, losses, norm)
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate(step)
            optimizer.step()

            done = step + 1
            metrics |= {"lr": run.learning_rate(step), "grad_norm": norm}
            metrics["tokens"] = run.tokens(rows)
            metrics |= {"pairs": counts.pairs} if counts.pairs else {"targets": counts.targets}
            if run.held_out and (done % options.eval_every == 0 or done == run.last):
                metrics |= held_out_metrics(run, model)
            records.write({"step": done} | metrics)
            if done % options.save_every == 0 or done == run.last or stop:
                require_finite_weights(run, model, done)
                records.sync()
                save(run, model, optimizer, done, identity)
            if stop:
                text = f"interrupted after step {done}, which is saved; --resume goes on from there"
                raise StoppedError(text, stop)
    export(run, model)
    spent = clock(time.monotonic() - started)
    print(f"trained {max(0, run.last - first)} steps in {spent}; the model is in {run.out}/model")
    if recipe.miniature and recipe.objective != "reward" and ranks.first:
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


def train_start(name: str, recipe: Recipe, options: Options, ranks: Ranks) -> Options:
    """Writes the miniature's files, and trains the one that another one starts from, unless it is
    there. Returns the options for what is left: a --resume may have been of the start.

    Whatever can be known to be wrong is said before the start is trained, which takes minutes.
    """
    with ranks.together():
        if recipe.miniature and ranks.first:
            mini_data.write_world(mini_data.FILES)
    if recipe.start is None or options.model is not None:
        return options
    out, model = options.out or Path("runs") / name, mini_data.model_of(recipe.start)
    there, begun = ranks.tell((model.exists(), is_begun(recipe.start)))
    if begun and not ranks.tell((out / "recipe.json").exists()):
        options = replace(options, resume=False)
    if there:
        return options
    with ranks.together(), redirect_stdout(io.StringIO()):
        check_out(out, options, model)
        run = prepare(name, recipe, replace(options, dry_run=True), ranks)
        if options.reference:
            open_model(Policy, options.reference, "torch")
        pick_impl(ranks.device, run.config.head_dim, options.impl)
    try:
        main([recipe.start, "--device", ranks.device, *(["--resume"] if begun else [])])
    except UserError as error:
        error.args = (f"{recipe.start} is trained first, as --model gives none: {error}",)
        raise
    return options


def is_begun(miniature: str) -> bool:
    """Whether its training, or that of what it starts from, has begun and not ended."""
    model, start = mini_data.model_of(miniature), RECIPES[miniature].start
    here = (model.parent / "recipe.json").exists()
    return not model.exists() and (here or (start is not None and is_begun(start)))


def look(name: str, recipe: Recipe, options: Options) -> None:
    """Prints what would be trained: the plan, the first rows of it, and the memory that it takes.

    Without data, a 7B recipe's memory alone.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        return
    config, size = MISTRAL_7B, options.world_size or 1
    if recipe.miniature:
        mini_data.write_world(mini_data.FILES)
    if recipe.miniature or options.data:
        run = prepare(name, recipe, options, Ranks(size=size))
        config, rows = run.config, [row for step in run.plan for row in step]
        for indices in rows[: options.show_rows or 0]:
            row = run.row(run.data, indices)
            print(show_row(row, run.tokenizer, objective=recipe.objective))
    elif options.model:
        config = ModelConfig.from_json(options.model / "config.json")
    if options.dry_run:
        job = Job.of(
            recipe,
            config,
            world_size=size,
            replicas=options.replicas,
            checkpointing=options.checkpointing,
        )
        print("\n".join(report(job)))


# A step


def add_up(
    ranks: Ranks,
    shares: list[tuple[int | None, dict[str, Tensor]]],
    count: int,
    received: int | None = None,
) -> tuple[dict[str, float], list[float], int | None]:
    """The sum of each metric over the `count` rows of a step, each row's share of the loss, and the
    signal that some rank `received`, if any did.

    `shares` are this rank's: the number of a row, None for an empty one, and its loss and metrics.
    Ranks fill in their own rows of one table, so that all of them end up with the same numbers.
    """
    names = list(shares[0][1])
    own = torch.stack([torch.stack([*share.values()]) for _, share in shares]).double().cpu()
    table = torch.zeros(count + 1, len(names), dtype=torch.double)
    for (number, _), values in zip(shares, own):
        if number is not None:
            table[number] = values
    table[count, 0] = received or 0
    table = ranks.sum(table)  # one wait for the other ranks, not one a metric
    sums = dict(zip(names, table[:count].sum(0).tolist()))
    stop = received or signal.SIGTERM if table[count, 0] else None
    return sums, table[:count, 0].tolist(), stop


@torch.no_grad()
def held_out_metrics(run: Run, model: nn.Module) -> dict[str, float]:
    """Loss and metrics on the held-out examples, through the same code as in training."""
    objective, rows = OBJECTIVES[run.recipe.objective], run.held_out_rows()
    counts = run.counts(run.held_out, rows)
    shares = []
    for number, row in run.own(run.held_out, rows):
        loss, metrics = objective(model, row, counts, run.recipe)
        shares.append((number, {"loss": loss} | metrics))
    reshard(model)
    sums, *_ = add_up(run.ranks, shares, len(rows))
    return {f"eval_{name}": value for name, value in sums.items()}


def require_finite(run: Run, step: int, losses: list[float], norm: float) -> None:
    """Ends the run before an update that would ruin the weights; says which data it was."""
    for number, (loss, indices) in enumerate(zip(losses, run.plan[step]), start=1):
        if not math.isfinite(loss):
            sources = ", ".join(run.data.examples[i].source for i in indices)
            where = f"row {number} ({sources})"
            text = f"loss is {loss} in step {step + 1}, {where}; {what_is_left(run)}"
            fail(text, shared=True)
    if not math.isfinite(norm):
        text = f"the gradient's norm is {norm} in step {step + 1}; {what_is_left(run)}"
        fail(text, shared=True)


def require_finite_weights(run: Run, model: nn.Module, done: int) -> None:
    """Keeps ruined weights from replacing the last good state."""
    with run.ranks.together():
        for name, parameter in model.named_parameters():
            if not local(parameter).isfinite().all():
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
    dtype = compute_dtype(run.ranks.device)  # what it was computed in
    tokenizer = run.tokenizer.path.parent
    save_model(model, run.out / "model", tokenizer, dtype, ranks=run.ranks)


@torch.no_grad()
def held_out_rewards(run: Run, model: RewardModel) -> Tensor:
    """The rewards of all held-out pairs, (pairs, 2), chosen first."""
    rewards, rows = torch.zeros(len(run.held_out.examples), 2), run.held_out_rows()
    for number, row in run.own(run.held_out, rows):
        own = model(row).cpu().view(-1, 2)
        if number is not None:
            rewards[rows[number]] = own
    reshard(model)
    return run.ranks.sum(rewards)


if __name__ == "__main__":
    cli.run(lambda: run_rank(main))
