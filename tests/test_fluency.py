"""Conditional perplexity: against transformers by DExperts' formula, and the border of a text."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from janus_min import fluency
from janus_min.checkpoint import load_model, save_model
from janus_min.errors import UserError
from janus_min.fluency import LARGEST_EXPONENT, encode, perplexities
from janus_min.model import Policy
from janus_min.row import Example
from janus_min.tokenizer import BOS, Tokenizer
from tests.conftest import save_tiny, tiny_policy
from tests.peers import transformers

TEXTS = [  # in all of them, the prompt's tokens are the first ones of the whole
    ("The river is", " long and cold."),
    ("The river is", " short."),
    ("Once", " there was a clock\nthat was late. 7 times"),
    ("", "Nobody asked"),
    ("What a day!", " …✓"),
]


def placed(texts: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(prompt, own, f"file, prompt {n}") for n, (prompt, own) in enumerate(texts)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, world) -> Path:
    """A random Mistral with the tokenizer of the miniature, and a context of 64."""
    return save_tiny(tmp_path_factory.mktemp("fluency") / "model", world)


@pytest.fixture(scope="module")
def peer(model):
    return transformers.MistralForCausalLM.from_pretrained(model, dtype=torch.float32)


def by_two_losses(peer, tokenizer: Tokenizer, prompt: str, own: str) -> float:
    """What DExperts computes: from the mean losses of the prompt and of the whole."""
    whole, start = ([BOS, *ids] for ids in tokenizer.encode([prompt + own, prompt]))
    assert whole[: len(start)] == start
    losses = []
    for ids in (whole, start):
        tensor = torch.tensor([ids])
        with torch.no_grad():
            # Of BOS alone, transformers' mean loss is 0/0; there is no token to be predicted.
            mean = peer(tensor, labels=tensor).loss.item() if len(ids) > 1 else 0.0
        losses.append(mean * (len(ids) - 1))
    return math.exp((losses[0] - losses[1]) / (len(whole) - len(start)))


@pytest.mark.parametrize("row_tokens", [8192, 40, 1])
def test_perplexities_are_those_of_transformers(model, peer, monkeypatch, row_tokens):
    """Whatever the rows are: all in one, some together, each alone."""
    monkeypatch.setattr(fluency, "ROW_TOKENS", row_tokens)
    found = perplexities(model, encode(model, placed([*TEXTS, ("An empty one", "")])))
    expected = [by_two_losses(peer, Tokenizer(model), *text) for text in TEXTS]
    assert found == [*(pytest.approx(value, rel=1e-4) for value in expected), None]
    assert len({round(value) for value in expected}) == len(expected)  # no two are alike


def test_a_sliding_window_is_the_models_own(tmp_path, world):
    shape = dict(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=64)
    policy = tiny_policy(**shape, sliding_window=5)
    save_model(policy, tmp_path / "model", world, torch.float32)
    settings = dict(dtype=torch.float32, attn_implementation="eager")
    peer = transformers.MistralForCausalLM.from_pretrained(tmp_path / "model", **settings)
    assert peer.config.sliding_window == 5
    found = perplexities(tmp_path / "model", encode(tmp_path / "model", placed(TEXTS)))
    expected = [by_two_losses(peer, Tokenizer(world), *text) for text in TEXTS]
    assert found == [pytest.approx(value, rel=1e-4) for value in expected]


def test_a_word_across_the_border_counts_as_a_whole(model, peer):
    """The tokens that the prompt alone does not have. Both have four, which DExperts' formula would
    divide by the difference of."""
    tokenizer = Tokenizer(model)
    [example] = encode(model, placed([("It is beca", "use the")]))
    (ids, alone), [own] = tokenizer.encode(["It is because the", "It is beca"]), example.responses
    assert [BOS, *ids] == [*example.prompt, *own] and len(ids) == len(alone)
    assert tokenizer.decode(own) == "because the"
    with torch.no_grad():
        logps = peer(torch.tensor([[BOS, *ids]])).logits[0].log_softmax(-1)
    start = len(example.prompt)
    costs = [-logps[start + n - 1, token].item() for n, token in enumerate(own)]
    assert perplexities(model, [example]) == [
        pytest.approx(math.exp(sum(costs) / len(costs)), rel=1e-4)
    ]


@pytest.mark.parametrize(
    ("prompt", "own", "pieces"),
    [
        ("I said", " there now", ["▁there", "▁now"]),  # one space, not two
        ("I said ", "there now", ["▁there", "▁now"]),  # the space goes to the word
        ("The wea", "ther is", ["▁weather", "▁is"]),
        ("I said", "there", ["there"]),  # no space is put between them
        ("", "there", ["▁there"]),
        ("a\n", "\nb", ["<0x0A>", "b"]),
        ("I said", "", []),
    ],
)
def test_a_text_is_encoded_as_one_and_divided_at_its_first_new_token(
    start, mistral_tokenizer, prompt, own, pieces
):
    [example] = encode(start, placed([(prompt, own)]))
    [response] = example.responses
    assert [mistral_tokenizer.piece(token) for token in response] == pieces
    if own:
        [whole] = mistral_tokenizer.encode([prompt + own])
        assert [*example.prompt, *response] == [BOS, *whole]


def test_the_context_is_the_limit(model):
    [ids] = Tokenizer(model).encode(["a" + " b" * 40])
    words = 40 - (len(ids) + 1 - 64)  # so that the text fills the context
    [example] = encode(model, placed([("a", " b" * words)]))
    assert len(example.prompt) + len(example.responses[0]) == 64
    with pytest.raises(UserError) as caught:
        encode(model, placed([("a", " b"), ("a", " b" * (words + 1))]))
    assert str(caught.value) == (
        f"file, prompt 1: 65 tokens with its prompt, the context of {model} is 64; leave it out, "
        "or name another model"
    )


def test_without_a_model_there_is_one_line(tmp_path, model):
    with pytest.raises(UserError, match=r"tokenizer\.model not found"):
        encode(tmp_path, placed(TEXTS))
    (tmp_path / "tokenizer.model").write_bytes((model / "tokenizer.model").read_bytes())
    with pytest.raises(UserError, match=r"config\.json"):
        encode(tmp_path, placed(TEXTS))


def test_no_perplexity_is_infinite_and_a_damaged_model_is_said(tmp_path, world):
    [example] = encode(save_tiny(tmp_path / "sure", world, scale=1e6), placed(TEXTS[:1]))
    assert perplexities(tmp_path / "sure", [example]) == [math.exp(LARGEST_EXPONENT)]
    policy = load_model(Policy, tmp_path / "sure", impl="torch")
    policy.lm_head.weight.data[7] = math.inf
    save_model(policy, tmp_path / "damaged", world, torch.float32)
    with pytest.raises(UserError, match="damaged: its log-probabilities are not finite"):
        perplexities(tmp_path / "damaged", [example])


def test_nothing_is_loaded_for_nothing(tmp_path):
    nothing = Example(np.array([BOS], np.int32), (np.array([], np.int32),), "")
    assert perplexities(tmp_path / "absent", [nothing]) == [None]
