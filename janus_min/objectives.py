"""One function per objective: a model and a row in, the row's share of the step's loss out.

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
        """Of the examples of a step; every token of a response is a target, EOS too."""
        return Counts(targets=sum(len(example.response) for example in examples))


def sft(policy: nn.Module, row: Row, counts: Counts) -> Tensor:
    """Supervised fine-tuning: the mean of −log π over the response tokens of the step."""
    return sft_loss(policy(row)).sum() / counts.targets


OBJECTIVES = {"sft": sft}
