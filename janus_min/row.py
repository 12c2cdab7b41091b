"""The row: the one batch format of all training.

A row is up to `row_tokens` tokens without padding: several documents end to end, described by five
aligned vectors and one index. Every loss of this project is a function of a row and of a model.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """N tokens that hold S responses. All integers."""

    inputs: Tensor  # (N,) token ids
    targets: Tensor  # (N,) next token of the same document; −1 where none is scored
    positions: Tensor  # (N,) RoPE positions, from 0 in every document
    key_end: Tensor  # (N,) for each key, the first query that may not see it (kernels/attention.py)
    response: Tensor  # (N,) which response owns the position, −1 for the prompt
    ends: Tensor  # (S,) position of each response's last token, its EOS

    def to(self, device: str | torch.device) -> "Row":
        """The same row on another device."""
        return Row(*(vector.to(device) for vector in self))
