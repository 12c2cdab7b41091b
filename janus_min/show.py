"""A packed row as a person reads it: what is trained, what attends to what."""

import os
import sys

from janus_min.row import Row
from janus_min.tokenizer import Tokenizer

DIM, GREEN, BOLD, PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


def show_row(
    row: Row, tokenizer: Tokenizer, colour: bool | None = None, objective: str = "sft"
) -> str:
    """Text of a row: trained tokens green (between « and » without colour), the others dim.

    A token is trained if the position before it is scored on it; for a reward model, if the reward
    is read at it. Each stretch of tokens with the same readers has a headline that says who they
    are, and in a row of pairs what it is.
    """
    if colour is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    inputs, targets, positions, key_end, response = (vector.tolist() for vector in row[:5])
    trained, verb = [False] + [target >= 0 for target in targets[:-1]], "trained"
    if objective == "reward":
        ends, verb = set(row.ends.tolist()), "with a reward"
        trained = [position in ends for position in range(len(inputs))]
    lines = []
    for start, stop in _stretches(positions, key_end):
        last, owner = max(key_end[start:stop]) - 1, response[stop - 1]
        what = (
            f"{'prompt' if owner < 0 else ('chosen', 'rejected')[owner % 2]}, "
            if objective != "sft"
            else ""
        )
        headline = (
            f"── tokens {start} to {stop - 1}, {what}positions {positions[start]} to "
            f"{positions[stop - 1]}, seen by tokens up to {last}"
        )
        lines.append(f"{BOLD}{headline}{PLAIN}" if colour else headline)
        text, i = "", start
        while i < stop:
            j = i
            while j < stop and trained[j] == trained[i]:
                j += 1
            piece = "".join(_text(tokenizer.piece(token)) for token in inputs[i:j])
            if colour:
                text += (GREEN if trained[i] else DIM) + piece + PLAIN
            else:
                text += f"«{piece}»" if trained[i] else piece
            i = j
        lines.append(text)
    return "\n".join([*lines, f"{len(inputs)} tokens, {sum(trained)} of them {verb}"])


def _stretches(positions: list[int], key_end: list[int]) -> list[tuple[int, int]]:
    """Cuts a row where positions jump (a new document or branch) or where readers end earlier."""
    cuts = [
        i
        for i in range(1, len(positions))
        if positions[i] != positions[i - 1] + 1 or key_end[i] < key_end[i - 1]
    ]
    return list(zip([0, *cuts], [*cuts, len(positions)]))


def _text(piece: str) -> str:
    return "\n" if piece == "<0x0A>" else piece.replace("▁", " ")
