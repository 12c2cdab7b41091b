"""The row: documents, pairs with a shared prompt, and what the model computes on them."""

import numpy as np
import pytest
import torch

from janus_min.data import load_examples
from janus_min.formats import pair_row, sft_row
from janus_min.row import Example, build_row, laid_tokens
from janus_min.show import show_row
from tests.conftest import random_examples, random_pairs, tiny_policy
from tests.test_formats import GOOD, PAIR, write


def example(*parts):
    prompt, *responses = (np.array(part, np.int32) for part in parts)
    return Example(prompt, tuple(responses), "")


def test_row_by_hand():
    first, second = example([1, 10], [11, 12, 2]), example([1], [20, 2])
    row = build_row([first, second], window=None)
    assert row.inputs.tolist() == [1, 10, 11, 12, 2, 1, 20, 2]
    assert row.targets.tolist() == [-1, 11, 12, 2, -1, 20, 2, -1]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row.key_end.tolist() == [5, 5, 5, 5, 5, 8, 8, 8]
    assert row.response.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1]
    assert row.ends.tolist() == [4, 7]
    assert row.reference_logps is None
    assert build_row([first, second], window=2).key_end.tolist() == [2, 3, 4, 5, 5, 7, 8, 8]


PAIR_BY_HAND = example([1, 10, 11], [20, 2], [30, 31, 2])


def test_a_pair_shares_its_prompt_but_for_the_last_token():
    row = build_row([example([1], [5, 2], [6, 2]), PAIR_BY_HAND], window=None)
    assert row.inputs.tolist() == [1, 5, 2, 1, 6, 2] + [1, 10] + [11, 20, 2] + [11, 30, 31, 2]
    assert row.targets.tolist() == [5, 2, -1, 6, 2, -1] + [-1, -1] + [20, 2, -1] + [30, 31, 2, -1]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2] + [0, 1] + [2, 3, 4] + [2, 3, 4, 5]
    assert row.key_end.tolist() == [3] * 3 + [6] * 3 + [15] * 2 + [11] * 3 + [15] * 4
    assert row.response.tolist() == [0, 0, 0, 1, 1, 1] + [-1, -1] + [2, 2, 2] + [3, 3, 3, 3]
    assert row.ends.tolist() == [2, 5, 10, 14]


def test_a_pair_with_the_prompt_scored_has_its_targets_once():
    row = build_row([PAIR_BY_HAND], window=None, score_prompt=True)
    assert row.targets.tolist() == [10, 11] + [20, 2, -1] + [30, 31, 2, -1]
    row = build_row([PAIR_BY_HAND], window=None, score_prompt=True, share_prompt=False)
    assert row.inputs.tolist() == [1, 10, 11, 20, 2] + [1, 10, 11, 30, 31, 2]
    assert row.targets.tolist() == [10, 11, 20, 2, -1] + [-1, -1, 30, 31, 2, -1]
    assert row.response.tolist() == [-1, -1, 0, 0, 0] + [-1, -1, 1, 1, 1, 1]


def test_a_pair_is_laid_apart_if_the_window_would_bind():
    """The longer document has 6 tokens; in the row its branch is further from the prompt."""
    shared = build_row([PAIR_BY_HAND], window=None)
    within = build_row([PAIR_BY_HAND], window=6)
    assert all(torch.equal(a, b) for a, b in zip(shared[:6], within[:6]))
    apart = build_row([PAIR_BY_HAND], window=5)
    assert apart.key_end.tolist() == [5, 5, 5, 5, 5] + [10, 11, 11, 11, 11, 11]
    assert laid_tokens(PAIR_BY_HAND, 6) == len(shared.inputs) == 9
    assert laid_tokens(PAIR_BY_HAND, 5) == len(apart.inputs) == 11
    assert laid_tokens(PAIR_BY_HAND, None, share_prompt=False) == 11


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("responses", [1, 2])
def test_row_invariants(responses, share_prompt, window):
    examples = random_examples(20, responses=responses)
    row = build_row(examples, window, share_prompt=share_prompt)
    own = [response for example in examples for response in example.responses]
    assert len(row.inputs) == sum(laid_tokens(e, window, share_prompt) for e in examples)
    assert (row.targets >= 0).sum() == sum(map(len, own))
    scored = (row.targets >= 0).nonzero()[:, 0]
    assert torch.equal(row.targets[scored], row.inputs[scored + 1])
    assert torch.equal(row.response[scored], row.response[scored + 1])
    assert (row.inputs[row.ends] == 2).all()
    assert (row.targets[row.ends] == -1).all()  # nothing predicts the next document
    assert torch.equal(row.response[row.ends], torch.arange(len(own)))
    query = torch.arange(len(row.inputs))
    assert ((query < row.key_end) & (row.key_end <= len(query))).all()
    assert all(vector.dtype == torch.int64 for vector in row[:6])
    for number, response in enumerate(own):  # all tokens of each, in order
        mine = row.targets[(row.response == number) & (row.targets >= 0)]
        assert mine.tolist() == response.tolist()


def seen_tokens(row, query):
    """The ids that a query attends to, in the order of their positions."""
    keys = [k for k in range(query + 1) if query < row.key_end[k]]
    assert [row.positions[k].item() for k in keys] == list(range(len(keys)))
    return [row.inputs[k].item() for k in keys]


def test_every_position_of_a_shared_pair_sees_its_own_document():
    for pair in random_pairs(10):
        row = build_row([pair], None)
        for number, response in enumerate(pair.responses):
            document = [*pair.prompt.tolist(), *response.tolist()]
            owned = (row.response == number).nonzero()[:, 0].tolist()
            for query in owned:
                assert seen_tokens(row, query) == document[: row.positions[query] + 1]


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_shared_prompt_gives_the_hidden_states_of_two_documents(impl):
    """Exactly, not approximately: 1e-13 in fp64."""
    policy, pairs = tiny_policy(impl, torch.float64), random_pairs(5)
    states = []
    for share_prompt in (True, False):
        row = build_row(pairs, None, share_prompt=share_prompt)
        hidden = policy.model(row.inputs, row.positions, row.key_end)
        states.append(torch.cat([hidden[row.response == number] for number in range(10)]))
    torch.testing.assert_close(*states, rtol=0, atol=1e-13)


def test_changing_one_branch_leaves_the_other_bitwise_equal():
    policy = tiny_policy()
    before, after = (
        build_row([example([1, 10, 11], [20, 21, 2], rejected)], None)
        for rejected in ([30, 31, 2], [40, 41, 2])
    )
    logps = [policy(row)[row.response == 0] for row in (before, after)]
    assert torch.equal(*logps)


def test_a_row_moves_as_a_whole():
    row = build_row(random_examples(2), None)._replace(reference_logps=torch.zeros(2)).to("meta")
    assert all(vector.device.type == "meta" for vector in row)
    assert build_row(random_examples(2), None).to("meta").reference_logps is None


def test_padding_is_a_last_document_without_targets():
    examples = random_pairs(3)
    bare, full = build_row(examples, None), build_row(examples, None, pad_to=200)
    N = len(bare.inputs)
    for short, long in zip(bare[:5], full[:5], strict=True):
        assert len(long) == 200 and torch.equal(long[:N], short)
    assert (full.targets[N:] == -1).all() and (full.response[N:] == -1).all()
    assert (full.key_end[N:] == 200).all() and torch.equal(full.ends, bare.ends)


# As a person sees it


def test_show_row_marks_what_is_trained(tmp_path, mistral_tokenizer):
    lines = [GOOD, {"prompt": "Hi", "output": "Hello\nyou"}]
    path = write(tmp_path, *lines)
    examples, _ = load_examples(path, mistral_tokenizer, sft_row, max_tokens=100)
    row = build_row(examples, None)
    text = show_row(row, mistral_tokenizer, colour=False)
    assert "<s> [INST] Be brief.\nWhat is rain? [/INST]« Water.</s>»" in text
    assert "<s> [INST] Hi [/INST]« Hello\nyou</s>»" in text
    first, second = map(laid_tokens, examples)
    assert f"── tokens 0 to {first - 1}, positions 0 to {first - 1}, seen by tokens up to" in text
    assert f"── tokens {first} to {first + second - 1}, positions 0 to {second - 1}" in text
    trained = sum(len(example.responses[0]) for example in examples)
    assert text.endswith(f"{first + second} tokens, {trained} of them trained")
    coloured = show_row(row, mistral_tokenizer, colour=True)
    assert "\x1b[32m Water.</s>\x1b[0m" in coloured and "«" not in coloured


def test_show_row_shows_the_branches_of_a_pair(tmp_path, mistral_tokenizer):
    [pair], _ = load_examples(write(tmp_path, PAIR), mistral_tokenizer, pair_row, max_tokens=100)
    text = show_row(build_row([pair], None), mistral_tokenizer, colour=False, objective="dpo")
    stem, chosen, rejected = text.split("── ")[1:]
    P = len(pair.prompt)
    assert stem.startswith(f"tokens 0 to {P - 2}, prompt, positions 0 to {P - 2}, seen by")
    assert "What is rain? [/INST\n" in stem
    assert ", chosen, positions" in chosen and "]« Water.</s>»" in chosen
    assert ", rejected, positions" in rejected and "]« It is cold.</s>»" in rejected
    text = show_row(build_row([pair], None), mistral_tokenizer, colour=False, objective="reward")
    assert "] Water.«</s>»" in text and text.endswith(" tokens, 2 of them with a reward")
