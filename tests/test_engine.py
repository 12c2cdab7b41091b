"""The engine beside transformers' `generate` and beside the full forward pass; its slots."""

import gc
import weakref
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from janus_min import decoder as decoder_module
from janus_min import engine as engine_module
from janus_min.checkpoint import load_model
from janus_min.decoder import PACKS, Blocked, Decoder, Packed, Transposed
from janus_min.engine import Engine, generate, stream
from janus_min.errors import UserError
from janus_min.graphs import Graphs, bucket
from janus_min.model import Policy
from janus_min.sampling import Request, Sampling
from tests.conftest import tiny_policy
from tests.test_model import KINDS, write_mistral

GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=20)


def random_prompts(count, longest=14, seed=0):
    random = np.random.default_rng(seed)
    return [
        [1, *random.integers(3, 97, random.integers(1, longest)).tolist()] for _ in range(count)
    ]


def with_eos(policy, factor=2.5):
    """The same model, which ends some of its responses early."""
    with torch.no_grad():
        policy.lm_head.weight[2] *= factor
    return policy


# Beside others


@pytest.fixture(scope="module", params=["v0.1, window", "v0.2, no window"])
def both(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mistral")
    hf = write_mistral(directory, **KINDS[request.param]).double()
    return hf, load_model(Policy, directory, impl="torch", dtype=torch.float64)


def theirs(hf, prompts, penalty):
    """What transformers answers to prompts of one length."""
    ids = torch.tensor(prompts)
    settings = dict(do_sample=False, repetition_penalty=penalty, eos_token_id=2, pad_token_id=0)
    mask = torch.ones_like(ids)
    found = hf.generate(ids, attention_mask=mask, max_new_tokens=20, **settings)
    return [row[ids.shape[1] :].tolist() for row in found]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_of_200_mixed_prompts_equal_transformers_and_one_by_one(both, penalty):
    hf, policy = both
    prompts = random_prompts(200, longest=40)
    sampling = Sampling(temperature=0, repetition_penalty=penalty, max_tokens=20)
    decoder = Decoder(policy)
    ours = generate(decoder, [Request(prompt) for prompt in prompts], sampling, slots=24)
    expected = {}
    for length in {len(prompt) for prompt in prompts}:  # no padding, which transformers has to mask
        own = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        expected |= zip(own, theirs(hf, [prompts[i] for i in own], penalty))
    for i, completion in enumerate(ours):
        ids = expected[i]
        assert completion.stop == ("eos" if 2 in ids else "length")
        assert completion.ids == (ids[: ids.index(2)] if 2 in ids else ids)
    assert {completion.stop for completion in ours} >= {"length"}
    for prompt, completion in list(zip(prompts, ours))[: 200 if penalty == 1 else 20]:
        assert generate(decoder, [Request(prompt)], sampling) == [completion]


@pytest.mark.parametrize("window", [None, 5])
def test_decoding_step_by_step_equals_the_full_forward_pass(window):
    """Every prefix, beyond twice the window."""
    policy = tiny_policy(dtype=torch.float64, sliding_window=window)
    ids = random_prompts(1, longest=40, seed=3)[0]
    assert len(ids) > 12
    full = torch.arange(len(ids))
    key_end = torch.full_like(full, len(ids))
    if window:
        key_end = torch.minimum(key_end, full + window)
    wanted = policy.lm_head(policy.model(torch.tensor(ids), full, key_end))
    requests = [Request(ids[:3]), Request(ids[:5])]
    engine = Engine(policy, requests, Sampling(temperature=0, max_tokens=60), slots=2)
    with torch.inference_mode():
        engine._refill()
        slot = engine.owner.index(0)
        for place in range(2, len(ids)):
            engine.tokens[slot] = ids[place]
            engine.used = engine.lengths.tolist()
            tokens, lengths = engine.tokens.clone(), engine.lengths.clone()
            assert lengths[slot] == place
            spans = [(0, 1, engine.used[0] + 1), (1, 2, engine.used[1] + 1)]
            attend = engine.cache.step(lengths, spans)
            logits = engine.model.head(engine.model(tokens, lengths, attend))[slot]
            torch.testing.assert_close(logits, wanted[place], rtol=0, atol=1e-10)
            engine._step()


def test_the_maker_of_a_cpu(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nvendor_id : GenuineIntel\nmodel name : Xeon\n")
    assert decoder_module.made_by_intel(file)
    file.write_text("processor : 0\nvendor_id : AuthenticAMD\nmodel name : AMD EPYC\n")
    assert not decoder_module.made_by_intel(file)
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 85, GenuineIntel")
    assert not decoder_module.made_by_intel(file)
    file.unlink()
    assert decoder_module.made_by_intel(file)
    monkeypatch.setattr("platform.processor", lambda: "")
    assert not decoder_module.made_by_intel(file)


@pytest.fixture(params=["Intel's CPU", "another one", "no library"])
def cpu(request, monkeypatch) -> str:
    """Every layout of weights, whatever CPU this is."""
    monkeypatch.setattr(decoder_module, "INTEL", request.param == "Intel's CPU")
    monkeypatch.setattr(decoder_module, "PACKS", request.param != "no library" and PACKS)
    return request.param


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_matrices_in_every_layout_multiply_any_number_of_rows(cpu, dtype, tolerance):
    torch.manual_seed(0)
    parts = [torch.nn.Linear(40, width, bias=False, dtype=dtype) for width in (24, 72)]
    with torch.no_grad():
        joined = decoder_module.product(*parts, take=False)
        if PACKS and dtype == torch.float32:
            kinds = {"Intel's CPU": Packed, "another one": Blocked, "no library": Transposed}
            assert type(joined) is kinds[cpu]
        if cpu == "no library" or dtype == torch.float64:
            assert type(joined) is Transposed
        for rows in (1, 2, 17, decoder_module.ROWS, decoder_module.ROWS + 33):
            x = torch.randn(rows, 40, dtype=dtype)
            wanted = torch.cat([x.double() @ part.weight.double().T for part in parts], dim=-1)
            torch.testing.assert_close(joined(x).double(), wanted, rtol=tolerance, atol=tolerance)


def test_the_decoder_is_the_policy(cpu):
    """One packed row through both, in every layout."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        policy = tiny_policy(dtype=dtype)
        prompts = random_prompts(3, longest=20)
        engine = Engine(policy, [Request(prompt) for prompt in prompts], GREEDY, slots=3)
        for prompt in prompts:
            ids, place = torch.tensor(prompt), torch.arange(len(prompt))
            key_end = torch.full_like(place, len(prompt))
            attend, store = engine.cache.prefill([0], [len(prompt)], key_end, "torch")
            with torch.no_grad():
                hidden = policy.model(ids, place, key_end)
                wanted, found = policy.lm_head(hidden), engine.model(ids, place, attend)
                found = engine.model.head(found)
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
            # A prompt is computed for its keys and values alone, which are the same.
            cached = [x[:, 0, :, : len(prompt)] for x in (engine.cache.keys, engine.cache.values)]
            whole = [each.clone() for each in cached]
            for each in cached:
                each.zero_()
            with torch.no_grad():
                engine.model.remember(ids, place, attend, store)
            assert all(torch.equal(*pair) for pair in zip(cached, whole))


def test_a_decoder_that_takes_the_weights_leaves_none_behind():
    policy = tiny_policy()
    requests = [Request(prompt) for prompt in random_prompts(4)]
    expected = generate(policy, requests, GREEDY)
    decoder = Decoder(policy, take=True)
    left = {name for name, p in policy.named_parameters() if p.ndim > 1}
    assert left == {"model.embed_tokens.weight"}
    assert generate(decoder, requests, GREEDY) == expected


def test_rotary_positions_are_computed_in_fp32_whatever_the_model_is():
    decoder = Decoder(tiny_policy(dtype=torch.bfloat16))
    assert decoder.cos.dtype == decoder.sin.dtype == torch.float32
    angle = 63.0 / 1e4 ** (2 / 12)
    assert float(decoder.cos[63, 0, 1]) == pytest.approx(np.cos(angle), abs=1e-5)
    assert float(decoder.cos[63, 0, 7]) == pytest.approx(np.cos(angle), abs=1e-5)
    assert float(decoder.sin[63, 0, 1]) == pytest.approx(np.sin(angle), abs=1e-5)
    assert decoder.sin.shape[-1] == 6  # of heads of 12: the other half is the same


# Independence


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("window", [None, 5])
def test_a_request_gets_the_same_tokens_alone_in_any_order_and_in_any_slot(temperature, window):
    policy = with_eos(tiny_policy(dtype=torch.float64, sliding_window=window))
    sampling = Sampling(temperature=temperature, max_tokens=15)
    prompts = random_prompts(9)
    prompts += [prompts[3]] * 5 + [prompts[0]] * 3  # several samples of one prompt
    requests = [Request(prompt, seed=100 + i) for i, prompt in enumerate(prompts)]
    together = generate(policy, requests, sampling)
    for slots in (1, 2, 3, 7):
        assert together == generate(policy, requests, sampling, slots), slots
    order = np.random.default_rng(0).permutation(len(requests))
    mixed = generate(policy, [requests[i] for i in order], sampling, slots=4)
    assert [together[i] for i in order] == mixed
    assert together == [generate(policy, [request], sampling)[0] for request in requests]
    if temperature:
        others = [Request(request.prompt, request.seed + 1) for request in requests]
        assert together != generate(policy, others, sampling)
        assert len({tuple(completion.ids) for completion in together[9:14]}) > 1


def test_random_numbers_are_those_of_the_requests_own_seed():
    """With all tokens equally likely, the token is the random number times their number."""
    policy = tiny_policy(dtype=torch.float64)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    sampling = Sampling(top_p=1.0, repetition_penalty=1.0, max_tokens=6)
    [completion] = generate(policy, [Request([1, 5], seed=7)], sampling)
    wanted = [int(97 * x) for x in np.random.default_rng(7).random(6)]
    assert completion.ids == wanted[: wanted.index(2)] if 2 in wanted else completion.ids == wanted


# Slots


def test_a_free_slot_is_refilled_at_once_and_the_longest_prompts_come_first():
    policy = with_eos(tiny_policy(dtype=torch.float64))
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(12))]
    engine = Engine(policy, requests, Sampling(max_tokens=30), slots=4)
    began, live, place = [], [], engine._begin
    engine._begin = lambda index, slot: (began.append(index), place(index, slot))
    step = engine._step

    def watched():
        live.append(sum(owner is not None for owner in engine.owner))
        return step()

    engine._step = watched
    with torch.inference_mode():
        for _ in engine.run():
            pass
    lengths = [len(requests[i].prompt) for i in began]
    assert sorted(began) == list(range(12)) and lengths == sorted(lengths, reverse=True)
    assert live == sorted(live, reverse=True)  # 4 until nobody waits, then fewer and fewer
    assert live[0] == 4 and live[-1] == 1


def tokens_computed(engine):
    """Runs an engine. Returns how many tokens were computed as prompts, and by how many slots each
    step was."""
    prompts, steps, model = [], [], engine.model

    class Watched:
        """The decoder, with an eye on what it is given."""

        def __getattr__(self, name):
            return getattr(model, name)

        def __call__(self, tokens, *rest):
            steps.append(len(tokens))
            return model(tokens, *rest)

        def remember(self, tokens, *rest):
            prompts.append(len(tokens))
            model.remember(tokens, *rest)

    engine.model = Watched()
    with torch.inference_mode():
        for _ in engine.run():
            pass
    return sum(prompts), steps


@pytest.mark.parametrize("slots", [2, 5, 16])
def test_samples_of_one_prompt_compute_it_once(slots):
    """More samples than slots: the later ones find the prompt where an earlier one was."""
    policy = with_eos(tiny_policy(dtype=torch.float64))
    prompts = random_prompts(3, longest=30, seed=1)
    requests = [Request(prompt, seed=i) for prompt in prompts for i in range(9)]
    engine = Engine(policy, requests, Sampling(max_tokens=12), slots)
    computed, _ = tokens_computed(engine)
    assert computed == sum(len(prompt) - 1 for prompt in prompts)


def test_a_sample_takes_the_slot_that_holds_its_prompt():
    """Both slots are free, and the first of them is not the one."""
    policy = tiny_policy(dtype=torch.float64)
    with torch.no_grad():
        policy.lm_head.weight[2] = 0.0  # all end together, by their length
    prompts = [[1, 5, 9, 33], [1, 7, 8, 21], [1, 80, 3, 40]]
    requests = [Request(prompts[i], seed=k) for k, i in enumerate((0, 1, 1, 2))]
    computed, _ = tokens_computed(Engine(policy, requests, GREEDY, slots=2))
    assert computed == 3 * 3


def test_a_step_computes_no_more_slots_than_are_in_use():
    policy = with_eos(tiny_policy(dtype=torch.float64))
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(8))]
    engine = Engine(policy, requests, Sampling(max_tokens=30), slots=8)
    _, steps = tokens_computed(engine)
    assert sum(steps) == sum(engine.count) and steps[0] == 8 and steps[-1] == 1


@pytest.mark.parametrize("window", [None, 5])
def test_no_more_positions_are_read_than_one_of_a_few_slots_has(window, monkeypatch):
    policy = with_eos(tiny_policy(dtype=torch.float64, sliding_window=window))
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(30))]
    sampling = Sampling(max_tokens=30)
    alone = generate(policy, requests, sampling, slots=1)
    monkeypatch.setattr(engine_module, "SPAN", 2)
    engine = Engine(policy, requests, sampling, slots=11)
    step, different = engine.cache.step, []

    def watched(lengths, spans):
        assert [first for first, _, _ in spans] == list(range(0, len(lengths), 2))
        assert [end for _, end, _ in spans][:-1] == list(range(2, len(lengths), 2))
        assert spans[-1][1] == len(lengths)
        for first, end, T in spans:
            assert all(engine.owner[slot] is not None for slot in range(first, end))
            assert T == int(lengths[first:end].max()) + 1
        different.append(len({T for _, _, T in spans}))
        return step(lengths, spans)

    engine.cache.step = watched
    found = [[] for _ in requests]
    with torch.inference_mode():
        for index, token, _ in engine.run():
            found[index].append(token)
    assert max(different) > 2
    assert [[t for t in ids if t != 2] for ids in found] == [c.ids for c in alone]


def test_prompts_are_computed_in_rows_of_limited_length(monkeypatch):
    monkeypatch.setattr(engine_module, "ROW_TOKENS", 20)
    policy = tiny_policy(dtype=torch.float64)
    requests = [Request(prompt) for prompt in random_prompts(9, longest=40, seed=4)]
    engine = Engine(policy, requests, GREEDY, slots=9)
    rows, attend = [], engine.cache.prefill
    engine.cache.prefill = lambda slots, lengths, *rest: (
        rows.append(lengths),
        attend(slots, lengths, *rest),
    )[1]
    with torch.inference_mode():
        for _ in engine.run():
            pass
    assert sum(map(sum, rows)) == sum(len(request.prompt) - 1 for request in requests)
    assert all(sum(row) <= 20 or len(row) == 1 for row in rows) and len(rows) > 2
    monkeypatch.undo()
    assert [c.ids for c in generate(policy, requests, GREEDY)] == [
        c.ids for c in generate(policy, requests, GREEDY, slots=2)
    ]


def test_a_prompt_of_one_token_needs_no_row():
    policy = tiny_policy(dtype=torch.float64)
    assert tokens_computed(Engine(policy, [Request([1])], GREEDY, slots=1))[0] == 0
    alone = generate(policy, [Request([1])], GREEDY)
    assert alone == generate(policy, [Request([1]), Request([1, 5])], GREEDY)[:1]


def test_requests_end_each_in_their_own_time():
    policy = with_eos(tiny_policy(dtype=torch.float64))
    sampling = Sampling(max_tokens=30)
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(12))]
    ended = []
    completions = generate(policy, requests, sampling, on_done=lambda i, c: ended.append((i, c)))
    assert sorted(i for i, _ in ended) == list(range(12))
    assert all(completions[i] is completion for i, completion in ended)
    assert len({len(completion.ids) for completion in completions}) > 3
    assert {completion.stop for completion in completions} == {"eos", "length"}
    for completion in completions:
        assert 2 not in completion.ids
        assert (completion.stop == "length") == (len(completion.ids) == 30)


def test_a_request_may_have_a_limit_of_its_own():
    policy = tiny_policy(dtype=torch.float64)
    prompts = random_prompts(3)
    whole = generate(policy, [Request(prompt) for prompt in prompts], GREEDY)
    limits = [3, 7, 99]
    own = [Request(prompt, max_tokens=limit) for prompt, limit in zip(prompts, limits)]
    cut = generate(policy, own, GREEDY)
    assert [c.ids for c in cut] == [c.ids[:limit] for c, limit in zip(whole, limits)]


def test_tokens_come_one_by_one():
    policy = with_eos(tiny_policy(dtype=torch.float64))
    for i, prompt in enumerate(random_prompts(6)):
        request, sampling = Request(prompt, seed=i), Sampling(max_tokens=9)
        [completion] = generate(policy, [request], sampling)
        tokens, source = [], stream(policy, request, sampling)
        while True:
            try:
                tokens.append(next(source))
            except StopIteration as end:
                assert (tokens, end.value) == (completion.ids, completion.stop)
                break


def test_no_request_is_no_work():
    assert generate(tiny_policy(), [], GREEDY) == []


def test_the_context_is_a_limit():
    """A prompt that fills it has no response, and does not disturb the others."""
    policy = tiny_policy(max_position_embeddings=16)
    ended = []
    requests = [Request([1, 5]), Request([1] * 16), Request([1] * 12)]
    completions = generate(policy, requests, GREEDY, on_done=lambda i, c: ended.append(i))
    assert (completions[1].ids, completions[1].stop) == ([], "context")
    assert completions[2].stop == "eos" or len(completions[2].ids) == 4
    assert sorted(ended) == [0, 1, 2]
    assert completions[0] == generate(policy, requests[:1], GREEDY)[0]
    source = stream(policy, requests[1], GREEDY)
    with pytest.raises(StopIteration) as end:
        next(source)
    assert end.value.value == "context"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
@pytest.mark.parametrize("vocabulary", [97, 1000])
def test_damaged_weights_are_noticed(sampling, vocabulary):
    policy = tiny_policy(vocab_size=vocabulary)
    policy.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(UserError, match="the model's logits are not finite"):
        generate(policy, [Request([1, 5])], sampling)


def test_an_engine_that_is_forgotten_leaves_the_memory_at_once(monkeypatch):
    """Nobody waits for a search for cycles: the next engine needs the room."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    policy = tiny_policy()
    engine = Engine(policy, [Request([1, 5])], GREEDY, slots=1)
    engine.graphs = Graphs(engine._state())
    cache = weakref.ref(engine.cache)
    gc.disable()
    try:
        del engine
        assert cache() is None
    finally:
        gc.enable()


def test_prompt_tokens_are_penalised_too():
    policy = tiny_policy(dtype=torch.float64)
    [prompt] = random_prompts(1)
    [free] = generate(policy, [Request(prompt)], GREEDY)
    first = free.ids[0]
    strict = Sampling(temperature=0, repetition_penalty=1e6, max_tokens=20)
    [penalised] = generate(policy, [Request(prompt)], strict)
    assert len(set(penalised.ids)) == len(penalised.ids)
    assert not set(penalised.ids) & set(prompt)
    assert first not in penalised.ids[1:]
    # A slot remembers nothing of who was there before.
    both = [Request(prompt), Request(prompt[:3])]
    assert generate(policy, both, strict, slots=1)[1] == generate(policy, both[1:], strict)[0]


# What a GPU does otherwise


def test_graphs_have_few_sizes():
    assert [bucket(n, 99) for n in (1, 2, 3, 5, 8, 9, 16, 17, 60)] == [
        1, 2, 4, 8, 8, 16, 16, 24, 64,
    ]  # fmt: skip
    assert bucket(60, 62) == 62 and bucket(3, 3) == 3


class Rounded:
    """In the place of graphs: the same step for as many slots and positions, without recording."""

    def __init__(self):
        self.sizes = set()

    def __call__(self, compute, B, T):
        self.sizes.add((B, T))
        return compute(B, T)


@pytest.mark.parametrize("window", [None, 5])
def test_a_step_of_more_slots_and_positions_than_are_in_use_gives_the_same_tokens(
    window, monkeypatch
):
    monkeypatch.setattr(engine_module, "LENGTHS", 8)
    policy = with_eos(tiny_policy(dtype=torch.float64, sliding_window=window))
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(30))]
    requests += [Request(requests[0].prompt, seed=99 + i) for i in range(6)]
    sampling = Sampling(max_tokens=15)
    expected = generate(policy, requests, sampling, slots=11)
    engine = Engine(policy, requests, sampling, slots=11)
    engine.graphs = Rounded()
    found = [[] for _ in requests]
    with torch.inference_mode():
        for index, token, _ in engine.run():
            found[index].append(token)
    assert [[t for t in ids if t != 2] for ids in found] == [c.ids for c in expected]
    assert {B for B, _ in engine.graphs.sizes} <= {1, 2, 4, 8, 11}
    assert all(T % 8 == 0 or T == engine.T for _, T in engine.graphs.sizes)


def test_recording_is_no_step(monkeypatch):
    """What warms up a graph leaves tokens, lengths and counts as they were; a size is recorded once
    and its results stay in one place."""
    policy = with_eos(tiny_policy(dtype=torch.float64))
    requests = [Request(prompt, seed=i) for i, prompt in enumerate(random_prompts(9))]
    sampling = Sampling(max_tokens=15)
    expected = generate(policy, requests, sampling, slots=4)
    engine = Engine(policy, requests, sampling, slots=4)
    recorded, latest = [], []
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    graphs = engine.graphs = Graphs(engine._state())

    class Graph:
        """Computes again where a GPU would replay."""

        def replay(self):
            for place, found in zip(self.found, Engine._compute(engine, [(0, *self.size)])):
                place.copy_(found)

        def pool(self):
            return "the pool"

    @contextmanager
    def record(graph, pool, stream):
        assert pool == ("the pool" if recorded else None) and stream is graphs.stream
        before = [tensor.clone() for tensor in graphs.state]
        yield
        for tensor, old in zip(graphs.state, before):  # recording computes nothing
            tensor.copy_(old)
        graph.size, graph.found = latest
        recorded.append(graph.size)

    def compute(spans):
        [(_, B, T)] = spans
        latest[:] = [(B, T), Engine._compute(engine, spans)]
        return latest[1]

    engine._compute = compute

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(engine_module, "LENGTHS", 8)
    found = [[] for _ in requests]
    with torch.inference_mode():
        for index, token, _ in engine.run():
            found[index].append(token)
    assert [[t for t in ids if t != 2] for ids in found] == [c.ids for c in expected]
    assert len(recorded) == len(set(recorded)) > 2
