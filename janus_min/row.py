"""The row: the one batch format of all training.

A row is up to `row_tokens` tokens without padding: several documents end to end, described by five
aligned vectors and one index. Every loss of this project is a function of a row and of a model.

A document is a prompt and its response. Of a preference pair, the prompt is laid once, for both:

    [ prompt without its last token | branch of the chosen | branch of the rejected ]

A branch starts with the prompt's last token, because that token predicts the response's first one.
Keys of the shared part are seen by both branches, keys of a branch by itself alone, and positions
go on from the prompt in both: each branch computes exactly what its own document would. Where
responses are ranked there are as many branches as responses to the prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """What is computed together, encoded: a prompt and one response, a pair's two, or more."""

    prompt: np.ndarray  # (P,) int32, BOS first
    responses: tuple[np.ndarray, ...]  # each (R,) int32, EOS last; the chosen before the rejected
    source: str  # the file and line it was read from


class Row(NamedTuple):
    """N tokens that hold S responses. All integers but the last."""

    inputs: Tensor  # (N,) token ids
    targets: Tensor  # (N,) next token of the same document; −1 where none is scored
    positions: Tensor  # (N,) RoPE positions, from 0 in every document
    key_end: Tensor  # (N,) for each key, the first query that may not see it (kernels/attention.py)
    # (N,) which response owns the position, from the one that predicts its first token; −1 for the
    # prompt. Of pair j, 2j is the chosen and 2j + 1 the rejected response.
    response: Tensor
    ends: Tensor  # (S,) position of each response's last token, its EOS
    reference_logps: Tensor | None = None  # (S,) log π_ref(y|x) in nats, where a loss needs it

    def to(self, device: str | torch.device) -> "Row":
        """The same row on another device."""
        return Row(*(None if vector is None else vector.to(device) for vector in self))


def trees(
    example: Example, window: int | None, share_prompt: bool
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """How an example is laid: (first response, responses) of each prompt that is computed.

    It is one tree, or one for each response if `share_prompt` is off, or if the sliding window
    would bind: in a row the second branch lies further from its prompt than in its own document.
    """
    longest = len(example.prompt) + max(map(len, example.responses))
    if share_prompt and (window is None or longest <= window):
        yield 0, example.responses
    else:
        yield from ((i, (response,)) for i, response in enumerate(example.responses))


def tree_tokens(prompt: np.ndarray, responses: tuple[np.ndarray, ...]) -> int:
    """Tokens of one tree: the prompt without its last token, and a branch for each response."""
    return len(prompt) - 1 + sum(1 + len(response) for response in responses)


def laid_tokens(example: Example, window: int | None = None, share_prompt: bool = True) -> int:
    """How many tokens of a row the example takes."""
    laid = trees(example, window, share_prompt)
    return sum(tree_tokens(example.prompt, responses) for _, responses in laid)


def parts(example: Example, row_tokens: int, window: int | None = None) -> Iterator[Example]:
    """The example, or several of the same prompt if its responses do not fit into one row."""
    own: tuple[np.ndarray, ...] = ()
    for response in example.responses:
        more = replace(example, responses=(*own, response))
        if own and laid_tokens(more, window) > row_tokens:
            yield replace(example, responses=own)
            own = ()
        own = (*own, response)
    yield replace(example, responses=own)


def build_row(
    examples: list[Example],
    window: int | None,
    pad_to: int | None = None,
    *,
    share_prompt: bool = True,
    score_prompt: bool = False,
) -> Row:
    """Lays examples end to end, under a sliding window of `window` tokens unless that is None.

    In a window of W tokens query q sees key k only if q − k < W. With `pad_to`, a last document
    without any target fills the row to that many tokens (static shapes for a GPU). With
    `score_prompt`, the prompt's tokens are targets too, once for each example.
    """
    layout = _Layout()
    for example in examples:
        for first, responses in trees(example, window, share_prompt):
            end = layout.N + tree_tokens(example.prompt, responses)
            reach = window if len(responses) == 1 else None  # with more, it does not bind
            stem, last = example.prompt[:-1], example.prompt[-1:]
            # The shift: a position is scored on the token after it. Here, and nowhere else.
            scored = score_prompt and first == 0
            targets = example.prompt[1:] if scored else np.full(len(stem), -1)
            layout.add(stem, targets, 0, end, reach)
            for response in responses:
                branch, targets = np.concatenate([last, response]), np.append(response, -1)
                branch_end = layout.N + len(branch)
                layout.add(branch, targets, len(stem), branch_end, reach, owner=len(layout.ends))
                layout.ends.append(branch_end - 1)
    if pad_to is not None and pad_to > layout.N:
        tail = pad_to - layout.N
        layout.add(np.zeros(tail, np.int64), np.full(tail, -1), 0, pad_to, None)
    return layout.row()


class _Layout:
    """A row that grows piece by piece."""

    def __init__(self):
        self.N = 0
        self.pieces: list[list[np.ndarray]] = []
        self.ends: list[int] = []

    def add(
        self,
        ids: np.ndarray,
        targets: np.ndarray,
        position: int,
        key_end: int,
        reach: int | None,
        owner: int = -1,
    ) -> None:
        """Appends tokens whose positions go on from `position`, seen by all queries up to `key_end`
        that are less than `reach` tokens away."""
        here = self.N + np.arange(len(ids))
        ends = np.full(len(ids), key_end) if reach is None else np.minimum(key_end, here + reach)
        positions = position + np.arange(len(ids))
        self.pieces.append([ids, targets, positions, ends, np.full(len(ids), owner)])
        self.N += len(ids)

    def row(self) -> Row:
        """All pieces, as tensors."""
        columns = (np.concatenate(column).astype(np.int64) for column in zip(*self.pieces))
        return Row(*map(torch.from_numpy, columns), torch.tensor(self.ends, dtype=torch.int64))
