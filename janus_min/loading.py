"""Model directories, loaded to generate or to score."""

from pathlib import Path

import torch

from janus_min.checkpoint import load_model, open_model, require_vocabulary
from janus_min.decoder import Decoder
from janus_min.device import compute_dtype, pick_device, pick_impl
from janus_min.model import Policy
from janus_min.parallel import Ranks
from janus_min.tokenizer import Tokenizer

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_for_generation(directory: Path, precision: str | None = None) -> tuple[Decoder, Tokenizer]:
    """A model directory, ready to answer, in `precision`: a name of PRECISIONS, or the device's."""
    policy, tokenizer = load_policy(directory, precision)
    return Decoder(policy, take=True), tokenizer


def load_policy(directory: Path, precision: str | None = None) -> tuple[Policy, Tokenizer]:
    """The same as it is trained, for rows."""
    tokenizer = Tokenizer(directory)
    config = open_model(Policy, directory, impl="torch").config
    require_vocabulary(tokenizer, config)
    device = pick_device()
    dtype = PRECISIONS[precision] if precision else compute_dtype(device)
    impl = pick_impl(device, config.head_dim)
    policy = load_model(Policy, directory, impl=impl, dtype=dtype, ranks=Ranks(device=device))
    return policy, tokenizer
