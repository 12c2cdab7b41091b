"""Small real things that the tests share: tokenizers, checkpoints, rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from janus_min.data import Example
from janus_min.model import ModelConfig, Policy, initialise
from janus_min.tokenizer import Tokenizer

torch.set_num_threads(1)  # on tensors this small a second thread only waits


@pytest.fixture(scope="session")
def mistral_tokenizer_file() -> Path:
    """The SentencePiece model of Mistral-7B v0.1 and v0.2, which mistral-common carries."""
    mistral_common = pytest.importorskip("mistral_common")
    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def mistral_tokenizer(mistral_tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(mistral_tokenizer_file)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The miniature's files, tokenizer included."""
    from janus_min.miniature import write_world

    directory = tmp_path_factory.mktemp("world")
    write_world(directory)
    return directory


def tiny_config(**changes) -> ModelConfig:
    values = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=None,
    )
    return ModelConfig(**(values | changes))


def tiny_policy(impl: str = "torch", dtype: torch.dtype = torch.float32, **changes) -> Policy:
    """A random model whose attention is not flat: weights ten times larger than at the start."""
    policy = Policy(tiny_config(**changes), impl)
    initialise(policy, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return policy.to(dtype)


def random_examples(
    count: int, seed: int = 0, vocabulary: int = 97, longest: int = 12
) -> list[Example]:
    """Examples of random ids: prompts and responses of 1 to `longest` tokens."""
    random = np.random.default_rng(seed)
    examples = []
    for line in range(1, count + 1):
        P, R = random.integers(1, longest + 1, 2)
        prompt = random.integers(3, vocabulary, P).astype(np.int32)
        response = random.integers(3, vocabulary, R).astype(np.int32)
        prompt[0], response[-1] = 1, 2
        examples.append(Example(prompt, response, line))
    return examples
