"""One function per objective: a row and a model in, a loss and its metrics out.

A step's loss is a mean over all its targets, over all rows and processes: `counts` says how many
there are in the whole step, so each row contributes its sum over that count, and summing the rows'
losses (and so their gradients) gives the step's mean whatever the split.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from janus_min.data import Example
from janus_min.losses import sft_loss
from janus_min.row import Row


@dataclass(frozen=True)
class Counts:
    """What the losses of one optimizer step are averaged over."""

    targets: int  # tokens with a loss

    @staticmethod
    def of(examples: list[Example]) -> "Counts":
        return Counts(targets=sum(len(example.response) for example in examples))


def sft(policy: nn.Module, row: Row, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
    """Supervised fine-tuning: the mean of −log π over the response tokens of the step."""
    token_logps = policy(row)
    loss = sft_loss(token_logps).sum() / counts.targets
    return loss, {"loss": loss.detach()}


OBJECTIVES = {"sft": sft}
