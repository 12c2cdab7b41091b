"""What a run begins with, or goes on with, and what it saves to go on from."""

from pathlib import Path

import torch
from torch import nn

from janus_min.checkpoint import load_model
from janus_min.directories import tensor_files
from janus_min.errors import UserError
from janus_min.model import Policy, RewardModel, initialise, initialise_head, set_up_blocks
from janus_min.optim import make_optimizer
from janus_min.reference import add_reference
from janus_min.run import Run
from janus_min.state import (
    load_state,
    newest_state,
    read_state,
    remove_leftovers,
    save_state,
)


def begin(run: Run) -> tuple[nn.Module, torch.optim.Optimizer, int, dict]:
    """Model and optimizer as they are after the last saved step, or before the first one.

    Returns them, the number of steps that are done, and what identifies the run in its states.
    """
    identity, saved, first = None, None, 0
    with run.ranks.together():
        if run.ranks.first:
            identity = run.identity()
            remove_leftovers(run.out / "state")
            saved = newest_state(run.out / "state") if run.options.resume else None
            if saved is not None:
                first = require_same_run(run, saved, identity)
    identity, saved, first = run.ranks.tell((identity, saved, first))
    if run.recipe.objective == "dpo":
        add_reference(run, first, identity["reference"])
    recipe, options = run.recipe, run.options
    with run.ranks.together():
        model = starting_model(run, empty=saved is not None)
        set_up_blocks(model, checkpointing=options.checkpointing == "full", compile=options.compile)
        optimizer = make_optimizer(
            recipe.optimizer, model, weight_decay=recipe.weight_decay, beta2=recipe.beta2
        )
        if saved is not None:
            load_state(model, optimizer, saved)
    return model, optimizer, first, identity


def require_same_run(run: Run, path: Path, identity: dict) -> int:
    """Raises UserError that says what differs between a saved run and this one. Returns the number
    of steps that it has done."""
    state = read_state(path)
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
    if state["step"] > run.last:
        raise UserError(f"{path} is further than --steps {run.last}")
    return state["step"]


def starting_model(run: Run, empty: bool) -> nn.Module:
    """The model to start from; with `empty` only its shapes, because a state will fill it."""
    recipe, impl = run.recipe, run.impl
    is_reward = recipe.objective == "reward"
    kind = RewardModel if is_reward else Policy
    if run.start is None or empty:
        with torch.device("meta"):
            model = kind(run.config, impl)
        run.ranks.prepare(model)
        if not empty:
            initialise(model, recipe.seed)
        return model
    model = load_model(kind, run.start, impl=impl, ranks=run.ranks, any_head=is_reward)
    if is_reward and (recipe.restart_head or "value_head.weight" not in tensor_files(run.start)):
        initialise_head(model, recipe.seed)
    return model


def save(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, done: int, identity: dict
) -> None:
    """Saves the state after `done` steps."""
    tokenizer = run.tokenizer.path.parent
    folder, keep = run.out / "state", run.options.keep
    save_state(model, optimizer, done, folder, identity, tokenizer, keep, run.ranks)
