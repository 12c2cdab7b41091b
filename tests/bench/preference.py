"""Training on preferences: DPO, ORPO and the reward model beside TRL's trainers.

    python -m tests.bench.preference

One process, the same Mistral, the same pairs, fp32 on both sides. TRL's side is one step of its own
trainer (`training_step`, then clipping and the update) on one padded batch that its own collator
made; ours is one step of `train.py` on the rows that the plan made. The sides take turns. Both have
the fused AdamW, both clip the gradient, both report their metrics. The losses of two steps in a row
must agree, the second one after an update.

Prompts are half of all tokens, in the pair as in each document. Lengths of responses are lognormal
around their median with σ = 0.5, as answers of a language model are; a padded batch is as long as
its longest.

Targets (DPO): TRL computes a reference in every step, a quarter of its work, unless told to
precompute it; the padding, 1 / fill of the tokens; and the prompt twice, 4/3 of the tokens.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from janus_min.losses import sequence_logps
from janus_min.model import RewardModel, initialise
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.optim import make_optimizer
from janus_min.plan import best_fit
from janus_min.recipes import Recipe
from janus_min.row import Example, Row, build_row, laid_tokens
from tests.bench.common import alternate, machine, report, same_model_twice
from tests.bench.trl_trainers import trainer_step
from tests.trl_losses import classifier

PAIRS, MEDIAN, LONGEST = 6, 128, 512  # of a step; tokens of a response
STEP_PAIRS = 16  # of the steps that compare us with ourselves: the paper's
ROW_TOKENS = 2048
RATE, MAX_NORM, BETA = 1e-5, 1.0, 0.1
ROUNDS, SHARING_ROUNDS = 5, 11  # the smaller ratio takes more of them
TOLERANCE = 1e-4  # in nats, between the losses of the two sides
VOCABULARY = 4096


def make_pairs(count: int, seed: int = 0) -> list[Example]:
    """Pairs of random ids whose prompts are as long as their responses are on average."""
    random = np.random.default_rng(seed)
    pairs = []
    for line in range(1, count + 1):
        R = np.clip(MEDIAN * np.exp(0.5 * random.standard_normal(2)), 16, LONGEST).astype(int)
        sizes = (int(R.mean()), *R.tolist())
        prompt, *responses = (random.integers(3, VOCABULARY, n).astype(np.int32) for n in sizes)
        prompt[0] = 1
        for response in responses:
            response[-1] = 2
        pairs.append(Example(prompt, tuple(responses), str(line)))
    return pairs


def recipe_of(objective: str) -> Recipe:
    """TRL's defaults: ORPO's NLL over the prompt too."""
    own = {
        "dpo": dict(beta=BETA),
        "orpo": dict(lambda_or=BETA, nll_on_prompt=True),
        "reward": dict(legacy_space=False, restart_head=True),
    }[objective]
    return Recipe(objective=objective, pairs_per_step=PAIRS, share_prompt=True, **own)


def our_rows(
    pairs: list[Example], recipe: Recipe, reference: torch.Tensor | None, share_prompt: bool
) -> list[Row]:
    lengths = [laid_tokens(pair, None, share_prompt) for pair in pairs]
    rows = []
    for indices in best_fit(lengths, ROW_TOKENS):
        row = build_row(
            [pairs[i] for i in indices],
            None,
            share_prompt=share_prompt,
            score_prompt=bool(recipe.nll_on_prompt),
        )
        if reference is not None:
            row = row._replace(reference_logps=reference[indices].flatten())
        rows.append(row)
    return rows


def our_step(
    model: nn.Module,
    pairs: list[Example],
    recipe: Recipe,
    reference: torch.Tensor | None,
    share_prompt: bool = True,
) -> Callable[[], float]:
    """One step as train.py makes it, rows included. Returns the loss before it."""
    optimizer = make_optimizer("adamw", model, weight_decay=0.0, beta2=0.999)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    objective = OBJECTIVES[recipe.objective]

    def step() -> float:
        counts = Counts.of(pairs, recipe.nll_on_prompt)
        optimizer.zero_grad(set_to_none=True)
        shares = []
        for row in our_rows(pairs, recipe, reference, share_prompt):
            loss, metrics = objective(model, row, counts, recipe)
            loss.backward()
            shares.append(torch.stack([loss.detach(), *metrics.values()]))
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item()
        optimizer.step()
        return torch.stack(shares).sum(0).tolist()[0]

    return step


def reference_logps(model: nn.Module, pairs: list[Example]) -> torch.Tensor:
    """log π_ref of each pair's responses, (pairs, 2)."""
    logps = torch.empty(len(pairs), 2)
    with torch.no_grad():
        for i, pair in enumerate(pairs):
            row = build_row([pair], None)
            logps[i] = sequence_logps(model(row), row.response, 2)
    return logps


def with_checkpointing(model: nn.Module) -> nn.Module:
    """The model with every block computed again in the backward pass."""
    for block in model.model.layers:
        forward = block.forward
        block.forward = lambda *inputs, forward=forward: checkpoint(
            forward, *inputs, use_reentrant=False
        )
    return model


def compare(
    objective: str,
    directory: Path,
    target: float | None,
    *,
    checkpointing: bool = False,
    precompute: bool = False,
) -> None:
    """Checks that both sides compute the same, then times them."""
    pairs, recipe = make_pairs(PAIRS), recipe_of(objective)
    theirs, ours = same_model_twice(directory, VOCABULARY)
    if objective == "reward":
        theirs = classifier(theirs)
        head = ours = RewardModel(ours.config, "torch")
        state = {n.replace("score.", "value_head."): p for n, p in theirs.state_dict().items()}
        head.load_state_dict(state)
    reference = reference_logps(ours, pairs) if objective == "dpo" else None
    theirs_step = trainer_step(
        objective,
        theirs,
        pairs,
        directory / "trainer",
        beta=BETA,
        rate=RATE,
        max_norm=MAX_NORM,
        checkpointing=checkpointing,
        precompute=precompute,
    )
    if checkpointing:
        with_checkpointing(ours)
    sides = {"TRL": theirs_step, "janus-min": our_step(ours, pairs, recipe, reference)}
    how = ", reference precomputed by TRL too" if precompute else ""
    print(f"\n{objective}{how}, checkpointing {'on' if checkpointing else 'off'}")
    agree(sides)
    report(alternate(sides, ROUNDS), len(pairs), target, unit="pairs")


def agree(sides: dict[str, Callable[[], float]]) -> None:
    """Two steps of each, the warm-up: their losses must be the same."""
    for name in ("first", "second"):
        losses = [step() for step in sides.values()]
        shown = ", ".join(f"{side} {loss:.6f}" for side, loss in zip(sides, losses))
        print(f"  {name} loss: {shown}", flush=True)
        if max(losses) - min(losses) > TOLERANCE:
            raise SystemExit(f"the losses differ by more than {TOLERANCE}: nothing to compare")


def compare_sharing(objective: str, directory: Path, target: float | None) -> None:
    """Our own step with the prompt laid twice, and once."""
    pairs, recipe = make_pairs(STEP_PAIRS), recipe_of(objective)
    sides = {}
    for name, share_prompt in (("not shared", False), ("shared", True)):
        _, model = same_model_twice(directory, VOCABULARY)
        reference = reference_logps(model, pairs) if objective == "dpo" else None
        if objective == "reward":
            model = RewardModel(model.config, "torch")
            initialise(model, seed=0)
        sides[name] = our_step(model, pairs, recipe, reference, share_prompt)
    print(f"\n{objective}, the prompt laid twice and once")
    agree(sides)
    report(alternate(sides, SHARING_ROUNDS), len(pairs), target, unit="pairs")


def main() -> None:
    print(machine())
    pairs = make_pairs(PAIRS)
    real = sum(2 * len(p.prompt) + sum(map(len, p.responses)) for p in pairs)
    padded = 2 * len(pairs) * max(len(p.prompt) + max(map(len, p.responses)) for p in pairs)
    print(
        f"{len(pairs)} pairs, {real:,} tokens in their documents, "
        f"{2 * sum(len(p.prompt) for p in pairs) / real:.0%} of them prompt; padded batch "
        f"{real / padded:.0%} full; with shared prompts {sum(map(laid_tokens, pairs)):,} tokens"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        compare("dpo", directory, 2.5)
        compare("dpo", directory, 2.0, precompute=True)
        compare_sharing("dpo", directory, 1.25)
        compare("orpo", directory, None)
        compare("reward", directory, None)
        compare_sharing("orpo", directory, None)
        compare_sharing("reward", directory, None)
        for objective in ("dpo", "orpo", "reward"):
            compare(objective, directory, None, checkpointing=True)


if __name__ == "__main__":
    main()
