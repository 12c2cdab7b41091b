"""The engine: many requests, a few slots, each of which is refilled as soon as it is free.

    prompts  --packed row-->  the cache, all of a prompt but its last token
    slots    --one step---->  one more token for every request that stands in one, from its last one

A step's cost hardly depends on the number of slots, so none stands empty while a request waits.
Requests with the same prompt, as in best-of-n, compute it once: the others copy keys and values, or
find them where an earlier one has been. A request's random numbers come from its own seed, so its
tokens depend neither on its neighbours nor on its slot, up to rounding: in bf16 a batch of another
size can turn a near-tie.
"""

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from janus_min.cache import Cache
from janus_min.decoder import Decoder
from janus_min.errors import UserError
from janus_min.graphs import LENGTHS, Graphs, bucket
from janus_min.model import Policy
from janus_min.row import Example, build_row
from janus_min.sampling import Completion, Request, Sampling, limits, sample, size
from janus_min.tokenizer import EOS
from kernels.attention import tile_tables

# Of prompts that are computed together. With 1,024, what a block computes is so large that malloc
# returns it to the system each time, which clears the same pages anew for the next block.
ROW_TOKENS = 512
SPAN = 32  # slots of which a CPU reads equally many positions: as many as one of them has


class Event(NamedTuple):
    """What a step brought to a request."""

    index: int  # of the request
    token: int
    stop: str | None  # why it has ended, if it has


@torch.inference_mode()
def generate(
    model: Policy | Decoder,
    requests: list[Request],
    sampling: Sampling,
    slots: int = 64,
    on_done: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Answers every request, at most `slots` at a time. Returns the completions in their order.

    `on_done(index, completion)` is called as each one ends. A prompt that leaves no room in the
    context has no ids and the stop "context".
    """
    completions = [Completion([], "context") for _ in requests]
    engine = Engine(model, requests, sampling, slots)
    for index in engine.refused:
        if on_done:
            on_done(index, completions[index])
    for index, token, stop in engine.run():
        completion = completions[index]
        if token != EOS:
            completion.ids.append(token)
        if stop:
            completion.stop = stop
            if on_done:
                on_done(index, completion)
    return completions


@torch.inference_mode()
def stream(
    model: Policy | Decoder, request: Request, sampling: Sampling
) -> Generator[int, None, str]:
    """The tokens of one response as they come, without EOS. Returns why it ended."""
    stop = "context"
    for event in Engine(model, [request], sampling, slots=1).run():
        stop = event.stop
        if event.token != EOS:
            yield event.token
    return stop


class Engine:
    """Requests on their way through the slots."""

    def __init__(
        self, model: Policy | Decoder, requests: list[Request], sampling: Sampling, slots: int
    ):
        """Raises ValueError for a model that is divided among ranks."""
        if isinstance(model, FSDPModule):  # the ranks would wait for each other's longest answer
            raise ValueError("generate: the model is divided among ranks; export it, load it")
        self.model = model if isinstance(model, Decoder) else Decoder(model)
        self.requests, self.sampling = requests, sampling
        self.limits = limits(self.model.config, requests, sampling)
        self.refused = [i for i, limit in enumerate(self.limits) if limit <= 0]
        first: dict[tuple[int, ...], int] = {}
        # Which request was the first with the same prompt: the prompt's name, so to say.
        self.prompt = [first.setdefault(tuple(r.prompt), i) for i, r in enumerate(requests)]
        answered = [i for i in range(len(requests)) if self.limits[i] > 0]
        # The longest first: the last ones are short, and no slot works alone for long. Requests
        # with the same prompt follow each other. The next one is the last of the list.
        self.queue = sorted(answered, key=lambda i: (len(requests[i].prompt), -self.prompt[i], -i))
        self.slots, T = size(requests, self.limits, slots)
        self.owner: list[int | None] = [None] * self.slots  # which request stands in a slot
        self.held: list[int | None] = [None] * self.slots  # which prompt stands in its positions
        self.used = [0] * self.slots  # positions that are filled
        self.count = [0] * len(requests)  # tokens drawn so far
        self._allocate(T)

    def _allocate(self, T: int) -> None:
        """All that a step reads and writes, in places that do not change."""
        model, B = self.model, self.slots
        self.cache = Cache(model.config, B, T, model.dtype, model.device)
        self.T = T
        number = dict(dtype=torch.long, device=model.device)
        self.tokens = torch.zeros(B, **number)  # what each slot reads next
        self.lengths = torch.zeros(B, **number)  # where it is stored
        self.drawn = torch.zeros(B, **number)  # how many it has drawn
        longest = max(self.limits, default=1) if self.sampling.temperature else 1
        self.uniform = torch.zeros(B, max(1, longest), dtype=torch.float64, device=model.device)
        V = model.config.vocab_size if self.sampling.repetition_penalty != 1 else 0
        self.seen = torch.zeros(B, V, dtype=torch.bool, device=model.device)
        # A GPU runs a step as one recorded graph, for the number of slots and positions rounded up.
        self.graphs = Graphs(self._state()) if model.device.type == "cuda" else None

    def _state(self) -> list[Tensor]:
        return [self.tokens, self.lengths, self.drawn, self.seen]

    def run(self) -> Iterator[Event]:
        """All requests to their ends, one event for each token that is drawn, EOS included."""
        while self.queue or any(owner is not None for owner in self.owner):
            self._refill()
            tokens = self._step()
            for slot, token in enumerate(tokens):
                if (index := self.owner[slot]) is None:
                    continue
                self.used[slot] += 1
                self.count[index] += 1
                stop = "eos" if token == EOS else None
                if stop is None and self.count[index] == self.limits[index]:
                    stop = "length"
                if stop:
                    self.owner[slot] = None
                yield Event(index, token, stop)

    # Into the slots

    def _refill(self) -> None:
        """Gives free slots to the requests that wait; if none waits, closes the gaps."""
        if self.queue and (free := self._free()):
            self._fill(free)
        if not self.queue:
            self._close_gaps(self._free())

    def _free(self) -> list[int]:
        return [slot for slot, owner in enumerate(self.owner) if owner is None]

    def _fill(self, free: list[int]) -> None:
        """Puts requests into these slots, as many as there are, with their prompts."""
        placed = self._place(free)
        # Where each prompt stands, and will stand.
        holder = {
            key: slot
            for slot, key in enumerate(self.held)
            if slot not in placed or key == self.prompt[placed[slot]]
        }
        fresh: dict[int, int] = {}  # prompt -> slot that computes it
        copies: dict[int, list[int]] = {}  # slot -> slots that get its prompt
        for slot, index in placed.items():
            key = self.prompt[index]
            if key not in holder:
                holder[key] = fresh[key] = slot
            elif self.held[slot] != key:
                copies.setdefault(holder[key], []).append(slot)
            self.held[slot] = key
        self._prefill(fresh)
        for slot, others in copies.items():
            self.cache.copy(slot, others, len(self.requests[self.held[slot]].prompt) - 1)
        for slot, index in placed.items():
            self._begin(index, slot)

    def _place(self, free: list[int]) -> dict[int, int]:
        """Slot -> request, for as many as are free: where its prompt stands already, if it does."""
        incoming = [self.queue.pop() for _ in range(min(len(free), len(self.queue)))]
        placed: dict[int, int] = {}
        elsewhere = []
        for index in incoming:
            here = next((slot for slot in free if self.held[slot] == self.prompt[index]), None)
            if here is None:
                elsewhere.append(index)
            else:
                free.remove(here)
                placed[here] = index
        return placed | dict(zip(free, elsewhere))

    def _prefill(self, fresh: dict[int, int]) -> None:
        """Computes prompts, all but their last tokens, into slots, as rows without padding."""
        rows: list[list[tuple[list[int], int]]] = [[]]
        for key, slot in fresh.items():
            prompt = self.requests[key].prompt[:-1]
            if sum(len(ids) for ids, _ in rows[-1]) + len(prompt) > ROW_TOKENS and rows[-1]:
                rows.append([])
            if prompt:
                rows[-1].append((prompt, slot))
        for row in filter(None, rows):
            nothing = np.empty(0, np.int32)
            examples = [Example(np.array(ids, np.int32), (nothing,), "") for ids, _ in row]
            laid = build_row(examples, self.cache.window).to(self.model.device)
            key_end, impl = laid.key_end, self.model.impl
            if impl == "triton":
                key_end = tile_tables(key_end, self.model.dtype)
            slots, lengths = [slot for _, slot in row], [len(ids) for ids, _ in row]
            attend, store = self.cache.prefill(slots, lengths, key_end, impl)
            self.model.remember(laid.inputs, laid.positions, attend, store)

    def _begin(self, index: int, slot: int) -> None:
        """A request's own state; its prompt is in the cache."""
        request = self.requests[index]
        self.owner[slot], self.used[slot] = index, len(request.prompt) - 1
        self.tokens[slot], self.lengths[slot] = request.prompt[-1], self.used[slot]
        self.drawn[slot] = 0
        if self.sampling.temperature:
            random = np.random.default_rng(request.seed).random(self.limits[index])
            self.uniform[slot, : len(random)] = torch.from_numpy(random)
        if self.seen.shape[1]:
            self.seen[slot] = False
            self.seen[slot, request.prompt] = True

    def _close_gaps(self, free: list[int]) -> None:
        """Moves the last ones forward, so that a step computes as few slots as there are."""
        live = [slot for slot, owner in enumerate(self.owner) if owner is not None]
        for slot in free:
            if not live or live[-1] < slot:
                return
            last = live.pop()
            self.cache.copy(last, [slot], self.used[last])
            for vector in (*self._state(), self.uniform):
                vector[slot] = vector[last]
            for values in (self.owner, self.held, self.used):
                values[slot] = values[last]
            self.owner[last], self.held[last] = None, None

    # Out of the slots

    def _step(self) -> list[int]:
        """One more token for every slot up to the last one that is in use."""
        live = [slot for slot, owner in enumerate(self.owner) if owner is not None]
        B = live[-1] + 1
        if self.graphs:
            B = bucket(B, self.slots)
        reads = [1] * B  # positions, of each slot
        for slot in live:
            reads[slot] = self.used[slot] + 1
        if self.graphs:
            T = min(-(-max(reads) // LENGTHS) * LENGTHS, self.T)
            tokens, sound = self.graphs(lambda B, T: self._compute([(0, B, T)]), B, T)
        else:
            ends = [*range(SPAN, B, SPAN), B]
            spans = [(first, end, max(reads[first:end])) for first, end in zip([0, *ends], ends)]
            tokens, sound = self._compute(spans)
        tokens = torch.cat([tokens, sound[None].long()]).tolist()  # one wait for both
        if not tokens.pop():
            raise UserError("the model's logits are not finite: its weights are damaged")
        return tokens

    def _compute(self, spans: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """A step of the slots in these spans (first, end, T) from slot 0 to B, of whose caches T
        positions are read. Returns the tokens drawn (B,), and whether all logits were finite.
        """
        B = spans[-1][1]
        tokens, lengths, seen = self.tokens[:B], self.lengths[:B], self.seen[:B]
        hidden = self.model(tokens, lengths, self.cache.step(lengths, spans))
        logits = self.model.head(hidden)
        uniform = self.uniform[:B]
        if self.sampling.temperature:
            uniform = uniform.gather(1, self.drawn[:B, None])
        new = sample(logits, seen, self.sampling, uniform[:, 0])
        if seen.shape[1]:
            seen.scatter_(1, new[:, None], True)
        tokens.copy_(new)
        # A slot that nobody uses counts on, within its bounds.
        lengths.add_(1).clamp_(max=self.T - 1)
        self.drawn[:B].add_(1).clamp_(max=self.uniform.shape[1] - 1)
        # A sum is a number only if all of them are, and is one pass where `isfinite` is three.
        return new, logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()
