"""Generation beside transformers' `generate`, and the rules of sampling by hand."""

import numpy as np
import pytest
import torch

from janus_min.checkpoint import load_model
from janus_min.errors import UserError
from janus_min.model import Policy
from janus_min.sampling import (
    Cache,
    Request,
    Sampling,
    decode,
    generate,
    prefill,
    prepare_for_decoding,
    sample,
)
from tests.conftest import tiny_policy
from tests.test_model import KINDS, write_mistral

GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=20)


def random_prompts(count, longest=14, seed=0):
    random = np.random.default_rng(seed)
    return [
        [1, *random.integers(3, 97, random.integers(1, longest)).tolist()] for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["v0.1, window", "v0.2, no window"])
def both(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mistral")
    hf = write_mistral(directory, **KINDS[request.param]).double()
    return hf, prepare_for_decoding(
        load_model(Policy, directory, impl="torch", dtype=torch.float64)
    )


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_equal_transformers(both, penalty):
    hf, policy = both
    prompts = random_prompts(20)
    sampling = Sampling(temperature=0, repetition_penalty=penalty, max_tokens=20)
    ours = generate(policy, [Request(prompt) for prompt in prompts], sampling, batch_size=8)
    stops = set()
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = hf.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert completion.stop == ("eos" if 2 in ids else "length")
        assert completion.ids == (ids[: ids.index(2)] if 2 in ids else ids)
        stops.add(completion.stop)
    assert "length" in stops


@pytest.mark.parametrize("window", [None, 5])
def test_decoding_step_by_step_equals_the_full_forward_pass(window):
    """Every prefix, beyond twice the window."""
    policy = tiny_policy(dtype=torch.float64, sliding_window=window)
    ids = random_prompts(1, longest=40, seed=3)[0]
    full = torch.arange(len(ids))
    key_end = torch.full_like(full, len(ids))
    if window:
        key_end = torch.minimum(key_end, full + window)
    wanted = policy.lm_head(policy.model(torch.tensor(ids), full, key_end))
    cache = Cache(policy, B=1, T=len(ids))
    with torch.inference_mode():
        logits = [prefill(policy, cache, [ids[:3]])]
        logits += [decode(policy, cache, torch.tensor([token])) for token in ids[3:]]
    assert len(ids) > 12
    torch.testing.assert_close(torch.cat(logits), wanted[2:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("window", [None, 5])
def test_a_request_gets_the_same_tokens_alone_and_in_any_batch(temperature, window):
    policy = tiny_policy(dtype=torch.float64, sliding_window=window)
    sampling = Sampling(temperature=temperature, max_tokens=15)
    requests = [Request(prompt, seed=100 + i) for i, prompt in enumerate(random_prompts(9))]
    together = generate(policy, requests, sampling)
    assert together == generate(policy, requests, sampling, batch_size=2)
    assert together[::-1] == generate(policy, requests[::-1], sampling, batch_size=4)
    assert together == [generate(policy, [request], sampling)[0] for request in requests]
    if temperature:
        others = [Request(request.prompt, request.seed + 1) for request in requests]
        assert together != generate(policy, others, sampling)


def test_a_request_that_ends_early_leaves_and_the_others_go_on():
    """With EOS made likely the requests end at different steps."""
    policy = tiny_policy(dtype=torch.float64)
    with torch.no_grad():
        policy.lm_head.weight[2] *= 2.5
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


def test_transposed_weights_change_nothing_but_the_layout():
    plain = tiny_policy(dtype=torch.float64)
    prepared = prepare_for_decoding(tiny_policy(dtype=torch.float64))
    assert torch.equal(plain.lm_head.weight, prepared.lm_head.weight)
    assert prepared.lm_head.weight.stride() == (1, 97)
    requests = [Request(prompt) for prompt in random_prompts(4)]
    assert generate(plain, requests, GREEDY) == generate(prepared, requests, GREEDY)


# The rules of sampling, one by one


def draw(probs, uniform, **settings):
    """Which of the tokens is drawn, for each of the numbers in [0, 1)."""
    sampling = Sampling(**(dict(repetition_penalty=1.0) | settings))
    logits = torch.tensor(probs, dtype=torch.float64).log().repeat(len(uniform), 1)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    return sample(logits, seen, sampling, torch.tensor(uniform, dtype=torch.float64)).tolist()


GRID = [i / 1000 for i in range(1000)]


def test_nucleus_keeps_the_token_that_crosses():
    assert set(draw([0.5, 0.41, 0.09], GRID, top_p=0.9)) == {0, 1}
    assert set(draw([0.5, 0.39, 0.11], GRID, top_p=0.9)) == {0, 1, 2}
    assert set(draw([0.5, 0.41, 0.09], GRID, top_p=1.0)) == {0, 1, 2}
    assert set(draw([0.3, 0.3, 0.4], GRID, top_p=1e-8)) == {2}
    assert set(draw([0.25] * 4, GRID, top_p=0.5)) == {0, 1}  # ties: the lower ids


def test_frequencies_are_the_renormalised_probabilities():
    drawn = draw([0.5, 0.41, 0.09], GRID, top_p=0.9)
    assert drawn.count(0) / 1000 == pytest.approx(0.5 / 0.91, abs=0.002)
    # Temperature ½ squares the probabilities: 0.64, 0.16 over their sum.
    drawn = draw([0.8, 0.2], GRID, temperature=0.5, top_p=1.0)
    assert drawn.count(0) / 1000 == pytest.approx(0.64 / 0.68, abs=0.002)


def test_extreme_random_numbers_stay_within_the_nucleus():
    almost_one = 1 - 2**-53
    assert draw([0.5, 0.41, 0.09], [0.0, almost_one], top_p=0.9) == [0, 1]


def test_temperature_zero_is_the_most_likely_token():
    assert draw([0.2, 0.5, 0.3], [0.0, 0.999], temperature=0.0) == [1, 1]


def test_a_tiny_temperature_is_nearly_greedy_and_not_nan():
    assert draw([0.2, 0.5, 0.3], [0.0, 0.999], temperature=1e-40) == [1, 1]


def test_damaged_weights_are_noticed():
    policy = tiny_policy()
    policy.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(UserError, match="the model's logits are not finite"):
        generate(policy, [Request([1, 5])], GREEDY)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    """2 / 1.03 falls below 1.95, and −2 · 1.03 below −2.05; unseen logits stay."""
    seen = torch.tensor([[True, False, False]])
    sampling = Sampling(temperature=0, repetition_penalty=1.03)
    for logits, winner in [([2.0, 1.95, 0.0], 1), ([2.0, 1.93, 0.0], 0)]:
        assert sample(torch.tensor([logits]), seen, sampling, torch.zeros(1)).item() == winner
    for logits, winner in [([-2.0, -2.05, -9.0], 1), ([-2.0, -2.07, -9.0], 0)]:
        assert sample(torch.tensor([logits]), seen, sampling, torch.zeros(1)).item() == winner


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


def test_settings_out_of_range_are_refused():
    for wrong, message in [
        ({"temperature": -0.1}, "--temperature is -0.1, must be finite and at least 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"repetition_penalty": float("inf")}, "--repetition-penalty is inf"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            Sampling(**wrong)


def test_the_context_is_a_limit():
    policy = tiny_policy(max_position_embeddings=16)
    with pytest.raises(UserError, match="prompt 1 has 16 tokens, the model's context is 16"):
        generate(policy, [Request([1, 5]), Request([1] * 16)], GREEDY)
    [completion] = generate(policy, [Request([1] * 12)], GREEDY)
    assert completion.stop == "eos" or len(completion.ids) == 4
