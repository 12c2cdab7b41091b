"""Generation: a key/value cache, a batch of unequal requests, and the paper's sampling settings.

All prompts of a batch are computed as one packed row, exactly as in training; their keys and values
go into the cache, and from then on every request adds one token per step. A request's random
numbers come from its own seed, so its tokens depend neither on its neighbours nor on its place in
the batch, up to rounding: in bf16 a batch of another size can turn a near-tie.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from janus_min.checkpoint import load_model, open_model, require_vocabulary
from janus_min.device import compute_dtype, pick_device, pick_impl
from janus_min.errors import UserError, require
from janus_min.model import Policy
from janus_min.parallel import Ranks
from janus_min.row import Example, build_row
from janus_min.tokenizer import EOS, Tokenizer
from kernels.attention import attention
from kernels.tiles import Tiles


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


@dataclass
class Completion:
    """A response: its ids without EOS, and why it ended."""

    ids: list[int]
    stop: str  # "eos", or "length" where max_tokens or the context ended it


class Cache:
    """Keys and values of B requests in T positions; request b has filled the first `lengths[b]`."""

    def __init__(self, policy: Policy, B: int, T: int):
        config, parameter = policy.config, policy.lm_head.weight
        shape = (config.num_hidden_layers, B, config.num_key_value_heads, T, config.head_dim)
        self.keys = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(B, dtype=torch.long, device=parameter.device)
        self.window = config.sliding_window
        # Lengths of the packed prompts while they are computed, else None.
        self.prompts: list[int] | None = None

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, key_end: Tensor | Tiles | None, impl: str
    ) -> Tensor:
        """Stores k and v of one layer, and attends: within the packed row, or over the cache."""
        if self.prompts is not None:
            for b, (k_b, v_b) in enumerate(zip(k.split(self.prompts), v.split(self.prompts))):
                self.keys[layer, b, :, : len(k_b)] = k_b.transpose(0, 1)
                self.values[layer, b, :, : len(v_b)] = v_b.transpose(0, 1)
            return attention(q, k, v, key_end, impl)
        # One new token per request, at position lengths[b].
        (B, H, Dh), G = q.shape, k.shape[1]  # k and v are (B, G, Dh)
        self.keys[layer][self.place] = k
        self.values[layer][self.place] = v
        # The query heads of a group stand as rows of one matrix: keys and values are not copied.
        grouped = q.view(B, G, H // G, Dh)
        mixed = F.scaled_dot_product_attention(
            grouped,
            self.keys[layer, :, :, : self.T],
            self.values[layer, :, :, : self.T],
            attn_mask=self.seen,
        )
        return mixed.reshape(B, H, Dh)

    def begin_step(self) -> None:
        """Fixes, for all layers, where each request's next token is stored and what it sees."""
        last = int(self.lengths.max())
        self.T = last + 1
        slots = torch.arange(len(self.lengths), device=self.lengths.device)
        self.place: tuple = (slots, slice(None), self.lengths)
        if int(self.lengths.min()) == last:  # one place for all, which is faster to write to
            self.place = (slice(None), slice(None), last)
        key = torch.arange(self.T, device=self.lengths.device)
        seen = key <= self.lengths[:, None]
        if self.window is not None:
            seen &= self.lengths[:, None] - key < self.window
        self.seen = None if seen.all() else seen[:, None, None]  # (B, 1, 1, T)

    def keep(self, rows: Tensor) -> None:
        """Drops all requests but `rows`."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]


PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@torch.inference_mode()
def generate(
    policy: Policy,
    requests: list[Request],
    sampling: Sampling,
    batch_size: int = 64,
    on_done: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Answers every request, `batch_size` at a time. Returns the completions in the same order.

    `on_done(index, completion)` is called as each one ends. Raises UserError if a prompt fills the
    context, ValueError for a model that is divided among ranks.
    """
    if isinstance(policy, FSDPModule):  # the ranks would wait for each other's longest answer
        raise ValueError("generate: the model is divided among ranks; export it, load the export")
    context = policy.config.max_position_embeddings
    for index, request in enumerate(requests):
        if len(request.prompt) >= context:
            raise UserError(
                f"prompt {index} has {len(request.prompt)} tokens, the model's context is "
                f"{context}: shorten it"
            )
    completions: list[Completion | None] = [None] * len(requests)
    # Similar lengths together: a batch is as slow as its longest prompt.
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for place, completion in _generate_batch(policy, [requests[i] for i in batch], sampling):
            completions[batch[place]] = completion
            if on_done:
                on_done(batch[place], completion)
    return completions


def _generate_batch(
    policy: Policy, requests: list[Request], sampling: Sampling
) -> Iterator[tuple[int, Completion]]:
    """Yields (index, completion) as requests finish."""
    device, V = policy.lm_head.weight.device, policy.config.vocab_size
    room = [policy.config.max_position_embeddings - len(request.prompt) for request in requests]
    limits = [min(sampling.max_tokens, r) for r in room]
    cache = Cache(policy, len(requests), max(len(r.prompt) + n for r, n in zip(requests, limits)))
    random = [np.random.default_rng(request.seed) for request in requests]
    responses: list[list[int]] = [[] for _ in requests]
    seen = torch.zeros(len(requests), V, dtype=torch.bool, device=device)
    for b, request in enumerate(requests):
        seen[b, request.prompt] = True

    logits = prefill(policy, cache, [request.prompt for request in requests])
    live = list(range(len(requests)))  # which request stands in each row of the cache
    while True:
        uniform = torch.tensor(
            [random[b].random() for b in live], dtype=torch.float64, device=device
        )
        if not logits.isfinite().all():
            raise UserError("the model's logits are not finite: its weights are damaged")
        tokens = sample(logits, seen, sampling, uniform)
        finished = []
        for row, (b, token) in enumerate(zip(live, tokens.tolist())):
            if token == EOS:
                yield b, Completion(responses[b], "eos")
                finished.append(row)
                continue
            responses[b].append(token)
            if len(responses[b]) == limits[b]:
                yield b, Completion(responses[b], "length")
                finished.append(row)
        if len(finished) == len(live):
            return
        if finished:
            rows = torch.tensor([r for r in range(len(live)) if r not in finished], device=device)
            live = [live[r] for r in rows.tolist()]
            cache.keep(rows)
            seen, tokens = seen[rows], tokens[rows]
        seen[torch.arange(len(live), device=device), tokens] = True
        logits = decode(policy, cache, tokens)


def prefill(policy: Policy, cache: Cache, prompts: list[list[int]]) -> Tensor:
    """Computes all prompts as one packed row into an empty cache. Returns logits (B, V)."""
    nothing = np.empty(0, np.int32)
    examples = [Example(np.array(ids, np.int32), (nothing,), "") for ids in prompts]
    row = build_row(examples, cache.window)
    row = row.to(cache.lengths.device)
    cache.prompts = [len(ids) for ids in prompts]
    hidden = policy.model(row.inputs, row.positions, row.key_end, cache)
    cache.lengths = torch.tensor(cache.prompts, device=row.inputs.device)
    cache.prompts = None
    return policy.lm_head(hidden[row.ends])


def decode(policy: Policy, cache: Cache, tokens: Tensor) -> Tensor:
    """Adds one token (B,) to every request. Returns the logits of the tokens after them, (B, V)."""
    cache.begin_step()
    hidden = policy.model(tokens, cache.lengths, None, cache)
    cache.lengths = cache.lengths + 1
    return policy.lm_head(hidden)


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
    probs = (logits / sampling.temperature).softmax(-1)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    mass = probs.cumsum(-1)
    # A token stays while the mass before it is below top_p: the one that crosses it is kept.
    kept = (mass - probs) < (sampling.top_p if sampling.top_p < 1 else float("inf"))
    mass = mass.where(kept, 0.0)
    threshold = uniform.to(mass.dtype) * mass.amax(-1)
    drawn = ((mass <= threshold[:, None]) & kept).sum(-1)  # inverse of the distribution function
    drawn = drawn.clamp(max=kept.sum(-1) - 1)
    return order.gather(1, drawn[:, None])[:, 0]


def load_for_generation(directory: Path, precision: str | None = None) -> tuple[Policy, Tokenizer]:
    """A model directory, ready to answer, in `precision`: a name of PRECISIONS, or the device's."""
    tokenizer = Tokenizer(directory)
    config = open_model(Policy, directory, impl="torch").config
    require_vocabulary(tokenizer, config)
    device = pick_device()
    dtype = PRECISIONS[precision] if precision else compute_dtype(device)
    impl = pick_impl(device, config.head_dim)
    policy = load_model(Policy, directory, impl=impl, dtype=dtype, ranks=Ranks(device=device))
    return prepare_for_decoding(policy), tokenizer


def prepare_for_decoding(policy: Policy) -> Policy:
    """Stores the matrices transposed in memory (same shapes, same values) if they are on a CPU.

    A few rows times a matrix of this layout is up to several times faster there, depending on
    the CPU.
    """
    if policy.lm_head.weight.is_cuda:
        return policy
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.T.contiguous().T
    return policy
