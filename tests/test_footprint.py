"""The memory that generation is said to take, held against what a run allocates."""

import pytest
import torch

from janus_min import decoder
from janus_min import footprint as module
from janus_min.allocations import Tracker
from janus_min.decoder import Decoder
from janus_min.engine import ROW_TOKENS, Engine, generate
from janus_min.footprint import footprint, said
from janus_min.recipes import MISTRAL_7B
from janus_min.sampling import Request, Sampling, limits, size
from tests.conftest import tiny_policy

SHAPES = {  # what takes most beside weights and cache: drawing, or the prompts
    "drawing": dict(vocab_size=2048),
    "prompts": dict(vocab_size=97),
    "wide": dict(vocab_size=97, hidden_size=96, head_dim=24, intermediate_size=400),
    "grouped": dict(vocab_size=97, num_key_value_heads=1, num_hidden_layers=3),
}
LENGTHS = {"drawing": 20, "prompts": 100, "wide": 60, "grouped": 80}


def requests_of(count, length, vocabulary):
    """Prompts that differ, of the same length."""
    numbers = [
        [3 + (7 * i + j) % (vocabulary - 3) for j in range(length - 1)] for i in range(count)
    ]
    return [Request([1, *ids], seed) for seed, ids in enumerate(numbers)]


@pytest.fixture
def plain(monkeypatch):
    """Weights in tensors that have storages; packed ones take as much, and have none."""
    monkeypatch.setattr(decoder, "PACKS", False)


@pytest.mark.parametrize("slots", [1, 4, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_said_is_what_a_run_allocates(plain, shape, dtype, temperature, slots):
    """Weights and cache to the byte, all together within a tenth."""
    tracker = Tracker()
    with tracker:
        policy = tiny_policy(dtype=dtype, **SHAPES[shape])
        model = Decoder(policy, take=True)
        del policy
    # Numbers that are no weights: a table of angles, and one for each norm.
    norms = [model.norm, *(norm for block in model.blocks for norm in block.norms)]
    others = [norm.floor for norm in norms] + [model.cos, model.sin]
    weights = sum(tracker.now.values()) - sum(other.nbytes for other in others)
    requests = requests_of(slots + 2, LENGTHS[shape], model.config.vocab_size)
    sampling = Sampling(temperature, max_tokens=8)
    used, T = size(requests, limits(model.config, requests, sampling), slots)
    row_tokens = max(LENGTHS[shape], min(ROW_TOKENS, used * LENGTHS[shape]))
    parts = footprint(model.config, dtype, used, T, row_tokens, temperature == 0)
    assert parts["weights"] == weights
    cache = Engine(model, requests, sampling, slots).cache
    assert parts["cache"] == cache.keys.nbytes + cache.values.nbytes
    del cache
    tracker.peak = dict(tracker.now)
    with tracker:
        generate(model, requests, sampling, slots)
    peak = sum(tracker.peak.values())
    assert sum(parts.values()) == pytest.approx(peak, rel=0.1)
    assert parts["passes"] == pytest.approx(peak - weights - parts["cache"], rel=0.15)


def test_sixty_four_slots_of_the_7b_model():
    """Weights 13.5 GiB, which is 7.24 billion numbers of two bytes."""
    parts = footprint(MISTRAL_7B, torch.bfloat16, 64, 2048, 4096)
    assert parts["cache"] == 16 * module.GIB
    assert parts["weights"] == 2 * 7_241_732_096
    assert said(parts, 64, 2048) == (
        "memory in GiB: weights 13.5, cache 16.0 (64 slots of 2,048 tokens), passes 0.5; "
        "together 30.0"
    )
    shorter = footprint(MISTRAL_7B, torch.bfloat16, 64, 2048, 1024)  # as the README has it
    assert said(shorter, 64, 2048).endswith("passes 0.1; together 29.6")
    double = footprint(MISTRAL_7B, torch.float32, 64, 2048, 4096)
    assert double["cache"] == 32 * module.GIB and double["weights"] == 2 * parts["weights"]
