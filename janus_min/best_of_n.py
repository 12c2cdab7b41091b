"""Best of n: a reward model picks one of several responses to a prompt.

The paper has n = 64 responses, of which Janus-RM picks one (arXiv 2405.17977). All of them answer
one prompt, so it is computed once for as many as a row has room for, exactly (`row.py`):

    [ prompt without its last token | branch of response 0 | branch of response 1 | … ]

A response is scored as the ids that were drawn, with EOS behind them, where the reward is read:
also one that was cut at its longest. Rewards are normalised by the mean and the deviation in the
model's config.json, as in the official code; that changes their scale, not their order.

    Note: the official code decodes the response, and scores its text with a space before EOS. For
    that, encode text + " " and pass these ids.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from janus_min.checkpoint import load_model, open_model, require_vocabulary
from janus_min.config import ModelConfig
from janus_min.device import compute_dtype, pick_device, pick_impl
from janus_min.errors import UserError
from janus_min.loading import PRECISIONS
from janus_min.model import RewardModel
from janus_min.parallel import Ranks
from janus_min.plan import best_fit
from janus_min.progress import Progress
from janus_min.row import Example, build_row, laid_tokens, parts
from janus_min.tokenizer import EOS, Tokenizer

Rewards = list[float | None]  # one of each candidate; None where it is too long for the model
PADDING = 1024  # on a GPU, rows have a multiple of so many tokens: few shapes, little in vain


def check_reward_model(directory: Path, tokenizer: Tokenizer) -> ModelConfig:
    """The config of the reward model of a directory. Raises UserError for a language model, and if
    its tokenizer is not the one whose ids it is to score.
    """
    config = open_model(RewardModel, directory, impl="torch").config
    own = Tokenizer(directory)
    if own.path.read_bytes() != tokenizer.path.read_bytes():
        raise UserError(
            f"{own.path} and {tokenizer.path} differ: a reward model scores only responses of a "
            "model with the same tokenizer"
        )
    require_vocabulary(own, config)
    return config


def load_reward_model(
    directory: Path, tokenizer: Tokenizer, precision: str | None = None
) -> RewardModel:
    """The reward model of a directory, on the device at hand, in `precision`: a name of PRECISIONS,
    or the device's.

    Raises UserError as `check_reward_model` does.
    """
    config = check_reward_model(directory, tokenizer)
    device = pick_device()
    dtype = PRECISIONS[precision] if precision else compute_dtype(device)
    impl = pick_impl(device, config.head_dim)
    return load_model(RewardModel, directory, impl=impl, dtype=dtype, ranks=Ranks(device=device))


def rewards_of(
    model: RewardModel, prompt: list[int], candidates: list[list[int]], row_tokens: int
) -> Rewards:
    """The rewards of the candidates, ids without EOS, to one prompt (`score`)."""
    return score(model, [(prompt, candidates)], row_tokens)[0]


def score(
    model: RewardModel, items: list[tuple[list[int], list[list[int]]]], row_tokens: int
) -> list[Rewards]:
    """The rewards of each prompt's candidates, ids without EOS, in rows of at most `row_tokens`
    tokens, or of one document that has more.

    Equal candidates are computed once, so that they have equal rewards in every precision.
    """
    context, window = model.config.max_position_embeddings, model.config.sliding_window
    examples: list[Example] = []
    places: list[list[tuple[int, tuple[int, ...]]]] = []  # of each example's responses
    for number, (prompt, candidates) in enumerate(items):
        room = context - len(prompt) - 1  # for EOS
        own = [ids for ids in dict.fromkeys(map(tuple, candidates)) if len(ids) <= room]
        if not own:
            continue
        responses = tuple(np.array([*ids, EOS], np.int32) for ids in own)
        waiting = iter([(number, ids) for ids in own])
        for part in parts(Example(np.array(prompt, np.int32), responses, ""), row_tokens, window):
            examples.append(part)
            places.append(list(islice(waiting, len(part.responses))))
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    for index, rewards in compute_rewards(model, examples, row_tokens):
        normalised = model.normalise(torch.tensor(rewards, dtype=torch.float64))
        found |= zip(places[index], normalised.tolist())
    return [
        [found.get((number, tuple(ids))) for ids in candidates]
        for number, (_, candidates) in enumerate(items)
    ]


@torch.no_grad()
def compute_rewards(
    model: RewardModel, examples: list[Example], row_tokens: int, watched: bool = False
) -> Iterator[tuple[int, list[float]]]:
    """Yields (number of an example, rewards of its responses as the model gives them), row by row;
    `watched` by a person, it shows how far it is."""
    window, device = model.config.sliding_window, model.value_head.weight.device
    lengths = [laid_tokens(example, window) for example in examples]
    rows = best_fit(lengths, max([row_tokens, *lengths]))
    progress = Progress(len(rows), "tokens", noun="row") if watched else None
    for done, indices in enumerate(rows, start=1):
        tokens = sum(lengths[i] for i in indices)
        pad_to = -(-tokens // PADDING) * PADDING if device.type == "cuda" else None
        row = build_row([examples[i] for i in indices], window, pad_to)
        rewards = iter(model(row.to(device)).tolist())
        if progress:
            progress.update(done, tokens, "")
        for i in indices:
            yield i, list(islice(rewards, len(examples[i].responses)))
    if progress:
        progress.close()


def best(rewards: Rewards) -> int:
    """The candidate of the highest reward; of equal ones the first.

    Raises UserError for a reward that is no finite number, and if no candidate has one.
    """
    for number, reward in enumerate(rewards):
        if reward is not None and not math.isfinite(reward):
            raise UserError(
                f"the reward of candidate {number} is {reward}: the reward model's weights are "
                "damaged"
            )
    scored = [number for number, reward in enumerate(rewards) if reward is not None]
    if not scored:
        raise UserError(
            f"none of {len(rewards)} candidates has a reward: with its prompt, each is too long "
            "for the reward model's context"
        )
    return max(scored, key=lambda number: rewards[number])
