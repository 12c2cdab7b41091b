"""Best of n: rewards of many responses to one prompt, beside each of them alone and transformers'
model; the choice."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from janus_min.best_of_n import PADDING, best, compute_rewards, load_reward_model, rewards_of, score
from janus_min.checkpoint import save_model
from janus_min.errors import UserError
from janus_min.row import Example, build_row, laid_tokens, parts
from janus_min.tokenizer import EOS, Tokenizer
from tests.conftest import save_tiny, tiny_reward_model
from tests.test_reward import LLMForSequenceRegression

PROMPT = [1, 20, 30, 40, 50]
LONGEST = 11  # ids of a candidate
WINDOWS = {"none": None, "binds": 6, "does not bind": len(PROMPT) + LONGEST + 1}


def reward_model(**changes):
    """Its rewards are normalised by a mean and a deviation that are not 0 and 1."""
    model = tiny_reward_model(**{"dtype": torch.float64} | changes)
    model.mean, model.std = 3.0, 4.0
    return model


def random_candidates(count, seed=0, longest=LONGEST):
    """Ids without EOS; one is empty, one has the full length."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    lengths[-1] = 0
    lengths[0] = longest
    return [random.integers(3, 97, length).tolist() for length in lengths]


def alone(model, prompt, ids):
    """The reward of one response as a row of its own."""
    example = Example(np.array(prompt), (np.array([*ids, EOS]),), "")
    [reward] = model(build_row([example], model.config.sliding_window))
    return (reward.item() - model.mean) / model.std


@pytest.fixture
def sizes(monkeypatch):
    """Watches a model: the tokens of each row that it computes."""

    def watch(model):
        sound, found = model.forward, []

        def forward(row):
            found.append(len(row.inputs))
            return sound(row)

        monkeypatch.setattr(model, "forward", forward)
        return found

    return watch


# Rewards


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_rewards_in_one_row_are_those_of_each_candidate_alone(n, window):
    model, candidates = reward_model(sliding_window=window), random_candidates(n)
    found = rewards_of(model, PROMPT, candidates, row_tokens=4096)
    wanted = [alone(model, PROMPT, ids) for ids in candidates]
    assert found == pytest.approx(wanted, rel=0, abs=1e-12)
    assert n < 7 or len(set(found)) > 5


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_rewards_are_those_of_transformers(tmp_path, world, window):
    """The normalised reward, as the official class gives it."""
    model, candidates = reward_model(sliding_window=window), random_candidates(7)
    save_model(model, tmp_path / "rm", world, torch.float64)
    theirs = LLMForSequenceRegression.from_pretrained(
        tmp_path / "rm", dtype=torch.float64, attn_implementation="eager"
    )
    documents = [torch.tensor([[*PROMPT, *ids, EOS]]) for ids in candidates]
    wanted = [theirs(ids, torch.ones_like(ids)).item() for ids in documents]
    found = rewards_of(model, PROMPT, candidates, row_tokens=256)
    assert found == pytest.approx(wanted, rel=0, abs=1e-6)  # their softmax is in fp32


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("row_tokens", [1, 17, 40, 100, 4096])
def test_the_split_into_rows_changes_no_reward(sizes, row_tokens, window):
    """Rows hold at most `row_tokens`, unless one document alone has more."""
    model, candidates = reward_model(sliding_window=window), random_candidates(20)
    wanted = rewards_of(model, PROMPT, candidates, row_tokens=4096)
    found = sizes(model)
    assert rewards_of(model, PROMPT, candidates, row_tokens) == pytest.approx(wanted, abs=1e-12)
    assert max(found) <= max(row_tokens, len(PROMPT) + LONGEST + 1)
    assert (len(found) == 1) == (row_tokens == 4096)


def test_the_prompt_is_computed_once_in_each_row(sizes):
    model, candidates = reward_model(), random_candidates(7)
    found = sizes(model)
    rewards_of(model, PROMPT, candidates, row_tokens=4096)
    branches = [1 + len(ids) + 1 for ids in candidates]
    assert found == [len(PROMPT) - 1 + sum(branches)]
    found.clear()
    rewards_of(model, PROMPT, candidates, row_tokens=len(PROMPT) - 1 + sum(branches) - 1)
    assert len(found) == 2 and sum(found) == 2 * (len(PROMPT) - 1) + sum(branches)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_several_prompts_share_rows(sizes, window):
    model = reward_model(sliding_window=window)
    items = [([1, *range(3, 3 + k)], random_candidates(k + 1, seed=k)) for k in range(6)]
    wanted = [[alone(model, prompt, ids) for ids in own] for prompt, own in items]
    found = sizes(model)
    for row_tokens, rows in ((4096, 1), (60, None)):
        rewards = score(model, items, row_tokens)
        assert [len(own) for own in rewards] == [1, 2, 3, 4, 5, 6]
        for own, right in zip(rewards, wanted):
            assert own == pytest.approx(right, rel=0, abs=1e-12)
        assert rows is None or len(found) == rows
    assert score(model, [], 64) == [] and score(model, [(PROMPT, [])], 64) == [[]]


def test_the_reward_is_read_at_eos_also_of_an_empty_candidate():
    model = reward_model()
    [empty, own] = rewards_of(model, [1, 5], [[], [7]], row_tokens=64)
    for ids, reward in (([1, 5, 2], empty), ([1, 5, 7, 2], own)):
        position = torch.arange(len(ids))
        hidden = model.model(torch.tensor(ids), position, torch.full_like(position, len(ids)))
        assert reward == pytest.approx((model.value_head(hidden)[-1].item() - 3) / 4, abs=1e-12)


def test_equal_candidates_are_computed_once_and_tie(sizes):
    """In bf16 a row of another length could give them rewards that differ in the last bits."""
    model = reward_model(dtype=torch.bfloat16)
    found = sizes(model)
    rewards = rewards_of(model, PROMPT, [[5, 6], [9], [5, 6]], row_tokens=64)
    assert rewards[0] == rewards[2] != rewards[1]
    assert found == [len(PROMPT) - 1 + 4 + 3]


def test_a_candidate_beyond_the_context_has_no_reward_and_is_not_picked():
    model = reward_model(max_position_embeddings=10)
    fits, long = [7, 8, 9, 10], [7, 8, 9, 10, 11]  # 5 + 4 + EOS
    rewards = rewards_of(model, PROMPT, [long, fits, long], row_tokens=64)
    assert rewards == [None, pytest.approx(alone(model, PROMPT, fits), abs=1e-12), None]
    assert best(rewards) == 1
    rewards = rewards_of(model, [1] * 10, [[], [5]], row_tokens=64)
    assert rewards == [None, None]
    with pytest.raises(UserError, match="none of 2 candidates has a reward: with its prompt, each"):
        best(rewards)


def test_no_gradient_is_kept_and_only_the_watched_see_progress(capsys):
    model = reward_model()
    assert any(parameter.requires_grad for parameter in model.parameters())
    examples = [Example(np.array(PROMPT), (np.array([7, EOS]),), "")]
    calls = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(output))
    assert len(list(compute_rewards(model, examples, 64))) == 1
    assert not calls[0].requires_grad and capsys.readouterr().out == ""
    list(compute_rewards(model, examples, 64, watched=True))
    assert "row 1/1" in capsys.readouterr().out


def test_the_kernels_for_a_gpu_give_the_same_rewards():
    """Interpreted, where there is no GPU: more branches than a block of queries."""
    sizes = dict(head_dim=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = reward_model(dtype=torch.float32, **sizes)
    fast = reward_model(dtype=torch.float32, impl="triton", **sizes).to(device)
    candidates = random_candidates(24)
    wanted = rewards_of(plain, PROMPT, candidates, 512)
    assert rewards_of(fast, PROMPT, candidates, 512) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_a_gpu_have_few_lengths(sizes):
    model = reward_model(dtype=torch.float32).cuda()
    found = sizes(model)
    score(model, [(PROMPT, random_candidates(64, seed=seed)) for seed in range(9)], 2048)
    assert {size % PADDING for size in found} == {0}


# The row


def test_parts_share_a_prompt_as_often_as_rows_have_room():
    responses = tuple(np.array([7] * k + [EOS]) for k in range(6))
    whole = Example(np.array(PROMPT), responses, "source")
    for row_tokens in range(1, 60):
        own = list(parts(whole, row_tokens))
        assert [r for part in own for r in part.responses] == [*responses]
        assert all(part.prompt is whole.prompt and part.source == "source" for part in own)
        for part, following in pairwise(own):
            assert laid_tokens(part) <= row_tokens or len(part.responses) == 1
            more = Example(whole.prompt, (*part.responses, following.responses[0]), "")
            assert laid_tokens(more) > row_tokens


def test_a_row_of_many_branches_by_hand():
    example = Example(np.array([1, 10]), tuple(np.array(r) for r in ([5, 2], [2], [6, 7, 2])), "")
    row = build_row([example], window=None)
    assert row.inputs.tolist() == [1] + [10, 5, 2] + [10, 2] + [10, 6, 7, 2]
    assert row.positions.tolist() == [0] + [1, 2, 3] + [1, 2] + [1, 2, 3, 4]
    assert row.key_end.tolist() == [10] + [4] * 3 + [6] * 2 + [10] * 4
    assert row.response.tolist() == [-1] + [0] * 3 + [1] * 2 + [2] * 4
    assert row.ends.tolist() == [3, 5, 9]
    within = build_row([example], window=5)  # the longest document has 5 tokens
    assert torch.equal(within.key_end, row.key_end)
    apart = build_row([example], window=4)
    assert apart.inputs.tolist() == [1, 10, 5, 2] + [1, 10, 2] + [1, 10, 6, 7, 2]
    assert apart.key_end.tolist() == [4] * 4 + [7] * 3 + [11, 12, 12, 12, 12]
    assert apart.ends.tolist() == [3, 6, 11]


# The choice


def test_the_second_of_two_wins_by_its_reward(monkeypatch):
    """All rewards are returned, and the choice is a number."""
    model = reward_model()
    model.mean, model.std = 0.0, 1.0
    monkeypatch.setattr(model, "forward", lambda row: torch.tensor([1.0, 2.0]))
    rewards = rewards_of(model, PROMPT, [[5], [6]], row_tokens=64)
    assert rewards == [1.0, 2.0] and best(rewards) == 1


def test_of_equal_rewards_the_first_wins():
    assert best([1.0, 1.0]) == 0
    assert best([-3.0, 2.0, 2.0, -5.0]) == 1
    assert best([-2.0]) == 0
    assert best([None, -9.0, None, -9.0]) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_reward_that_is_no_number_is_an_error(number, place):
    """A comparison with NaN is always false, so that it would win or lose by its place."""
    rewards = [1.0, None, 2.0]
    rewards[place] = number
    with pytest.raises(UserError, match=rf"the reward of candidate {place} is (nan|-?inf): the re"):
        best(rewards)


def test_damaged_weights_are_noticed():
    model = reward_model()
    model.model.embed_tokens.weight.data[7] = math.nan
    rewards = rewards_of(model, PROMPT, [[5], [7]], row_tokens=64)
    with pytest.raises(UserError, match="the reward of candidate 1 is nan"):
        best(rewards)


# Files


@pytest.fixture
def directory(tmp_path, world):
    model = reward_model(dtype=torch.float32, vocab_size=2048, sliding_window=9)
    save_model(model, tmp_path / "rm", world, torch.float32)
    return tmp_path / "rm"


def test_a_reward_model_is_loaded_for_the_device_at_hand(directory, world):
    model = load_reward_model(directory, Tokenizer(world))
    assert (model.mean, model.std, model.config.sliding_window) == (3.0, 4.0, 9)
    there = torch.cuda.is_available()
    assert model.value_head.weight.dtype == (torch.bfloat16 if there else torch.float32)
    assert model.value_head.weight.device.type == ("cuda" if there else "cpu")
    assert model.model.impl == "torch"  # heads of 12 have no kernel
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = load_reward_model(directory, Tokenizer(world), precision)
        assert model.value_head.weight.dtype == dtype
    original = reward_model(dtype=torch.float32, vocab_size=2048, sliding_window=9)
    candidates = random_candidates(5)
    wanted = rewards_of(original, PROMPT, candidates, 64)
    assert rewards_of(model, PROMPT, candidates, 64) == pytest.approx(wanted, abs=1e-5)


def test_a_reward_model_of_another_tokenizer_is_refused(directory, mistral_tokenizer):
    with pytest.raises(UserError, match=r"rm/tokenizer.model and .*\.v1 differ: a reward m") as e:
        load_reward_model(directory, mistral_tokenizer)
    assert "\n" not in str(e.value)


def test_one_byte_makes_another_tokenizer(directory, tmp_path, world):
    """Of the same size, and of nearly the same pieces."""
    other = tmp_path / "other.model"
    content = (directory / "tokenizer.model").read_bytes()
    piece = "▁water".encode()
    assert piece in content
    other.write_bytes(content.replace(piece, "▁wateR".encode(), 1))
    with pytest.raises(UserError, match=r"rm/tokenizer.model and .*other.model differ"):
        load_reward_model(directory, Tokenizer(other))


def test_a_language_model_is_refused(tmp_path, world):
    policy = save_tiny(tmp_path / "policy", world)
    with pytest.raises(UserError, match=r"policy is a language model .*needed is a reward model"):
        load_reward_model(policy, Tokenizer(world))


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(tmp_path, world):
    save_model(tiny_reward_model(), tmp_path / "rm", world, torch.float32)
    with pytest.raises(UserError, match="pieces, the model only 97: they are not of one model"):
        load_reward_model(tmp_path / "rm", Tokenizer(world))
