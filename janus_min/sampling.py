"""What is generated, and how tokens are drawn: the rules, and the paper's settings of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_min.config import ModelConfig
from janus_min.errors import require

COLDEST = 1e-30  # temperature that fp32 can divide by; it takes the most likely token as 0 does
FEW = 64  # tokens among which a nucleus is looked for first, where looking costs less than sorting


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults are the paper's."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 0.9  # probability mass of the tokens that may be drawn
    repetition_penalty: float = 1.03  # for every token of prompt and response so far; 1 is none
    max_tokens: int = 1024  # longest response, EOS included

    def __post_init__(self):
        require(0 <= self.temperature < math.inf, self, "temperature", "finite and at least 0")
        require(0 < self.top_p <= 1, self, "top_p", "in (0, 1]")
        require(0 < self.repetition_penalty < math.inf, self, "repetition_penalty", "above 0")
        require(self.max_tokens >= 1, self, "max_tokens", "at least 1")


@dataclass(frozen=True)
class Request:
    """A prompt that waits for its response."""

    prompt: list[int]  # ids, BOS first
    seed: int = 0  # of this request's own random numbers
    max_tokens: int | None = None  # less than those of the sampling settings, for this one


@dataclass
class Completion:
    """A response: its ids without EOS, and why it ended."""

    ids: list[int]
    stop: str  # "eos"; "length": by max_tokens or the context; "context": the prompt left no room


def limits(config: ModelConfig, requests: list[Request], sampling: Sampling) -> list[int]:
    """How long each response may be, in tokens; 0 or less where its prompt leaves no room."""
    return [
        min(
            config.max_position_embeddings - len(request.prompt),
            sampling.max_tokens,
            sampling.max_tokens if request.max_tokens is None else request.max_tokens,
        )
        for request in requests
    ]


def size(requests: list[Request], limits: list[int], slots: int) -> tuple[int, int]:
    """How many slots are used, and the positions of each: a multiple of 16, as kernels like it."""
    lengths = [len(r.prompt) + limit for r, limit in zip(requests, limits) if limit > 0]
    return max(1, min(slots, len(lengths))), -(-max(lengths, default=1) // 16) * 16


# The rules


def sample(logits: Tensor, seen: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draws one token for each request.

    logits (B, V); seen (B, V) true for tokens of prompt and response so far; uniform (B,) numbers
    in [0, 1) that decide. Order as in Hugging Face and vLLM: repetition penalty (arXiv 1909.05858,
    Section 4.1: positive logits divided, negative multiplied), temperature, nucleus (arXiv
    1904.09751). Returns (B,).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = torch.where(
            seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits
        )
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits - logits.amax(-1, keepdim=True)  # before a small temperature makes them huge
    probs = (logits / max(sampling.temperature, COLDEST)).softmax(-1)
    # On a GPU nobody may look at results between two steps (`graphs.py`), and sorting is cheap.
    ranked = None if probs.is_cuda else first_ranks(probs, sampling.top_p)
    probs, order = ranked or probs.sort(dim=-1, descending=True, stable=True)
    mass = probs.cumsum(-1)
    kept = in_nucleus(probs, mass, sampling.top_p)
    mass = mass.where(kept, 0.0)
    below_one = 1 - torch.finfo(mass.dtype).eps  # fp32 would round the largest numbers to 1
    threshold = uniform.to(mass.dtype).clamp(max=below_one) * mass.amax(-1)
    drawn = ((mass <= threshold[:, None]) & kept).sum(-1)  # inverse of the distribution function
    drawn = drawn.clamp(max=kept.sum(-1) - 1)
    return order.gather(1, drawn[:, None])[:, 0]


def in_nucleus(probs: Tensor, mass: Tensor, top_p: float) -> Tensor:
    """Which of the tokens may be drawn, from the likeliest on: (B, ranks) bool.

    A token stays while the mass before it is below top_p: the one that crosses it is kept, and the
    first one whatever happens, even if the numbers are none.
    """
    kept = (mass - probs) < (top_p if top_p < 1 else math.inf)
    kept[:, 0] = True
    return kept


def first_ranks(probs: Tensor, top_p: float) -> tuple[Tensor, Tensor] | None:
    """The FEW likeliest tokens of each row, as a stable sort of the whole row has them, if they are
    more than every nucleus: sorted probabilities and ids. None if they may not be.
    """
    if probs.shape[-1] <= 4 * FEW or top_p == 1:
        return None
    values, ids = probs.topk(FEW, sorted=False)
    ids, by_id = ids.sort(dim=-1)  # equal probabilities: the lower id comes first
    values, by_value = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    last = in_nucleus(values, values.cumsum(-1), top_p).sum(-1) - 1
    # Whoever is as likely as the last of the few may have equals that are not among them.
    if bool((values.gather(1, last[:, None])[:, 0] > values[:, -1]).all()):
        return values, ids.gather(1, by_value)
    return None
