"""One function per objective: a model and a row in, the row's share of the step's loss out.

A step's loss is a mean over all its targets or pairs, over all rows and processes: `counts` says
how many there are in the whole step, so each row contributes its sum over that count, and summing
the rows' losses (and so their gradients) gives the step's mean whatever the split. The metrics are
shares in the same way, under the names that TRL gives them.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from janus_min.losses import (
    average_logps,
    dpo_loss,
    orpo_loss,
    reward_loss,
    sequence_logps,
    sft_loss,
)
from janus_min.recipes import Recipe
from janus_min.row import Example, Row

Share = tuple[Tensor, dict[str, Tensor]]  # of the step's loss, and of its metrics, detached


@dataclass(frozen=True)
class Counts:
    """What the losses of one optimizer step are averaged over."""

    targets: int  # tokens with a log-likelihood loss
    pairs: int

    @staticmethod
    def of(examples: list[Example], nll_on_prompt: bool | None = False) -> "Counts":
        """Of the examples of a step. Every token of the only or chosen response is a target, EOS
        too; with `nll_on_prompt` so is every token of the prompt but BOS."""
        targets = sum(len(example.responses[0]) for example in examples)
        if nll_on_prompt:
            targets += sum(len(example.prompt) - 1 for example in examples)
        return Counts(targets, pairs=sum(len(example.responses) == 2 for example in examples))


def sft(policy: nn.Module, row: Row, counts: Counts, recipe: Recipe) -> Share:
    """Supervised fine-tuning: the mean of −log π over the response tokens of the step."""
    return sft_loss(policy(row)).sum() / counts.targets, {}


def dpo(policy: nn.Module, row: Row, counts: Counts, recipe: Recipe) -> Share:
    """Direct Preference Optimization on the *sums* of the responses' log-probabilities."""
    logps = sequence_logps(policy(row), row.response, len(row.ends))
    losses, chosen, rejected = dpo_loss(
        policy_chosen=logps[0::2],
        policy_rejected=logps[1::2],
        reference_chosen=row.reference_logps[0::2],
        reference_rejected=row.reference_logps[1::2],
        beta=recipe.beta,
    )
    metrics = preference(chosen, rejected, logps.detach())
    return losses.sum() / counts.pairs, step_shares(metrics, counts.pairs)


def orpo(policy: nn.Module, row: Row, counts: Counts, recipe: Recipe) -> Share:
    """L_SFT on the chosen responses, plus λ·L_OR on the *means* of the log-probabilities."""
    token_logps = policy(row)
    logps = average_logps(token_logps, row.targets, row.response, len(row.ends))
    losses, log_ratio = orpo_loss(policy_chosen=logps[0::2], policy_rejected=logps[1::2])
    # What no rejected response owns: the chosen one and, if it is scored, the prompt.
    in_nll = (row.response < 0) | (row.response % 2 == 0)
    nll = sft_loss(token_logps * in_nll).sum() / counts.targets
    rewards = recipe.lambda_or * logps.detach()
    metrics = preference(rewards[0::2], rewards[1::2], logps.detach())
    metrics |= {"log_odds_ratio": -losses.detach(), "log_odds_chosen": log_ratio}
    loss = nll + recipe.lambda_or * losses.sum() / counts.pairs
    return loss, {"nll_loss": nll.detach()} | step_shares(metrics, counts.pairs)


def reward(model: nn.Module, row: Row, counts: Counts, recipe: Recipe) -> Share:
    """A reward model by Bradley-Terry, on the rewards at the responses' *last tokens*."""
    rewards = model(row)
    chosen, rejected = rewards[0::2], rewards[1::2]
    losses = reward_loss(chosen=chosen, rejected=rejected)
    chosen, rejected = chosen.detach(), rejected.detach()
    metrics = {
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "margin": chosen - rejected,
        "mean_reward": (chosen + rejected) / 2,
    }
    return losses.sum() / counts.pairs, step_shares(metrics, counts.pairs)


def preference(chosen: Tensor, rejected: Tensor, logps: Tensor) -> dict[str, Tensor]:
    """What is worth watching of each pair: rewards (P,) and (P,), log-probabilities (2P,)."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps[0::2],
        "logps/rejected": logps[1::2],
    }


def step_shares(metrics: dict[str, Tensor], pairs: int) -> dict[str, Tensor]:
    """What the row's pairs contribute to the mean of each metric over all pairs of the step."""
    return {name: values.sum() / pairs for name, values in metrics.items()}


OBJECTIVES = {"sft": sft, "dpo": dpo, "orpo": orpo, "reward": reward}
