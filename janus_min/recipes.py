"""What the paper trained, each model as one value. Only a flag of `train.py` overrides a field.

Sources: the training configurations of the official repository (github.com/kaistAI/Janus) and the
model cards; arXiv 2405.17977. Where we depart from them a Note says so.

    Note: the paper used 8-bit AdamW; here its states are fp32.
"""

import math
from dataclasses import dataclass, replace

from janus_min.errors import require
from janus_min.model import ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, apart from its files."""

    objective: str = "sft"  # which loss: a name of objectives.OBJECTIVES
    epochs: int = 4  # times each example is seen
    row_tokens: int = 8192  # tokens of a row: the longest example, and the work of one forward pass
    rows_per_step: int = 32  # rows of one optimizer step, over all processes
    learning_rate: float = 5e-6  # peak of the schedule
    warmup_steps: int = 10  # steps of linear warm-up, then half a cosine down to 0
    weight_decay: float = 0.0  # AdamW's, on matrices
    beta2: float = 0.999  # decay of AdamW's second moment, its default; the first one's is 0.9
    max_grad_norm: float = 1.0  # gradients are scaled down to it; the official framework's default
    seed: int = 42  # of data order and random initialisation; likewise
    miniature: str | None = None  # a collection of janus_min/miniature.py: multifaceted or uniform

    def __post_init__(self):
        """Comparisons with NaN are false, so that NaN is refused everywhere."""
        for name in ("epochs", "row_tokens", "rows_per_step"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("learning_rate", "weight_decay"):
            require(0 <= getattr(self, name) < math.inf, self, name, "finite and at least 0")
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        require(0 <= self.beta2 < 1, self, "beta2", "in [0, 1)")
        require(self.max_grad_norm > 0, self, "max_grad_norm", "above 0")
        require(0 <= self.seed < 2**63, self, "seed", "in [0, 2^63)")


# Janus 7B: Mistral-7B-v0.2 on the 196,998 rows. A step was 4 GPUs × 2 rows × 4 accumulation steps.
JANUS = Recipe()

# Found by trying: short rows are many steps, which so small a model needs more than large ones.
MINI_SFT = Recipe(
    epochs=4,
    row_tokens=1024,
    rows_per_step=1,
    learning_rate=2e-3,
    warmup_steps=40,
    beta2=0.99,
    miniature="multifaceted",
)

RECIPES = {
    "mini-sft": MINI_SFT,
    # One response to each instruction, and shorter: more epochs for as many steps.
    "mini-uniform": replace(MINI_SFT, miniature="uniform", epochs=8),
    "janus-7b": JANUS,
    "janus-7b-65k": JANUS,  # Janus* 7B: one of the three system messages per instruction
    "janus-7b-epoch1": replace(JANUS, epochs=1),  # where the reward model starts
}


def mini_model(vocab_size: int) -> ModelConfig:
    """A Mistral of about a million parameters, for the miniature."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=None,
    )
