"""What the paper trained, each model as one value. Only a flag of `train.py` overrides a field.

Sources: the training configurations of the official repository (github.com/kaistAI/Janus; its
folders axolotl and openrlhf), the defaults of these frameworks at the time (marked "default"), and
the model cards; arXiv 2405.17977. Where we depart from them a Note says so.

    Note: DPO and ORPO use the template of SFT and generation. The official DPO configuration states
    it too, but cannot run as published; the model cards name ChatML. Which it was is unknown.
    Note: pairs that are too long are dropped. In the official DPO run all tokens of their responses
    were cut away (max_prompt_length was max_length), so that they taught nothing either.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from janus_min.config import ModelConfig
from janus_min.errors import require

NAMES = ("sft", "dpo", "orpo", "reward")  # of the objectives
OPTIMIZERS = ("adamw", "adamw8bit")
FIXED = ("objective", "miniature", "start")  # fields of a recipe that no flag changes
# The fields that only some objectives have: None for the others.
ONLY_FOR = {
    "rows_per_step": ("sft",),
    "pairs_per_step": ("dpo", "orpo", "reward"),
    "share_prompt": ("dpo", "orpo", "reward"),
    "beta": ("dpo",),
    "lambda_or": ("orpo",),
    "nll_on_prompt": ("orpo",),
    "legacy_space": ("reward",),
    "restart_head": ("reward",),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, apart from its files."""

    objective: str = "sft"  # which loss: a name of objectives.OBJECTIVES
    epochs: int = 4  # times each example is seen
    row_tokens: int = 8192  # tokens of a row, the work of one forward pass
    max_tokens: int | None = None  # longest prompt + response; row_tokens, for pairs half of it
    cut: bool = False  # cut longer responses at their end, instead of dropping the example
    rows_per_step: int | None = None  # rows of one optimizer step, over all processes (SFT)
    pairs_per_step: int | None = None  # pairs of one optimizer step, over all processes
    share_prompt: bool | None = None  # compute a pair's prompt once for both responses
    learning_rate: float = 5e-6  # peak of the schedule
    warmup_steps: int = 10  # steps of linear warm-up, then half a cosine down to 0
    warmup_ratio: float = 0.0  # share of all steps that is warm-up, if that is more
    optimizer: str = "adamw"  # adamw, or adamw8bit with moments in 8 bits
    weight_decay: float = 0.0  # AdamW's, on matrices
    beta2: float = 0.999  # decay of AdamW's second moment, its default; the first one's is 0.9
    max_grad_norm: float = 1.0  # gradients are scaled down to it; both frameworks' default
    beta: float | None = None  # DPO's β: how much a log-ratio to the reference is worth
    lambda_or: float | None = None  # ORPO's λ (TRL: beta, axolotl: orpo_alpha)
    nll_on_prompt: bool | None = None  # ORPO's other term scores the prompt too, as in TRL
    legacy_space: bool | None = None  # a space before EOS, as the official reward model was trained
    restart_head: bool | None = None  # start from a random value head though the model has one
    probabilities: tuple[float, ...] | None = None  # shares of the --data files in their mixture
    max_examples: int | None = None  # the first so many examples of the mixture
    seed: int = 42  # of data order and random initialisation; both frameworks' default
    miniature: str | None = None  # a collection of janus_min/mini_data.py
    start: str | None = None  # the miniature whose model this one starts from

    def __post_init__(self):
        """Comparisons with NaN are false, so that NaN is refused everywhere."""
        require(self.objective in NAMES, self, "objective", " or ".join(NAMES))
        require(self.optimizer in OPTIMIZERS, self, "optimizer", " or ".join(OPTIMIZERS))
        for name in ("epochs", "row_tokens", "max_tokens", "rows_per_step", "pairs_per_step"):
            self._need(name, lambda value: value >= 1, "at least 1")
        self._need("max_examples", lambda value: value >= 1, "at least 1")
        for name in ("learning_rate", "weight_decay"):
            self._need(name, lambda value: 0 <= value < math.inf, "finite and at least 0")
        for name in ("beta", "lambda_or"):
            self._need(name, lambda value: 0 < value < math.inf, "finite and above 0")
        self._need("warmup_steps", lambda value: value >= 0, "at least 0")
        self._need("warmup_ratio", lambda value: 0 <= value <= 1, "in [0, 1]")
        self._need("beta2", lambda value: 0 <= value < 1, "in [0, 1)")
        self._need("max_grad_norm", lambda value: value > 0, "above 0")
        self._need("seed", lambda value: 0 <= value < 2**63, "in [0, 2^63)")
        self._need(
            "probabilities",
            lambda shares: all(p > 0 for p in shares) and abs(sum(shares) - 1) < 1e-8,
            "above 0 and sum to 1",
        )
        for name, objectives in ONLY_FOR.items():
            given, needed = getattr(self, name) is not None, self.objective in objectives
            must = "given" if needed else f"left out: {self.objective} has none"
            require(given == needed, self, name, must)
        room = self.row_tokens // (1 if self.rows_per_step else 2)
        what = "--row-tokens" if self.rows_per_step else "half of --row-tokens (a pair in one row)"
        require(self.longest <= room, self, "max_tokens", f"at most {room}, {what}")

    def _need(self, name: str, valid: Callable[[Any], bool], needed: str) -> None:
        value = getattr(self, name)
        require(value is None or valid(value), self, name, needed)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response that are trained."""
        whole = self.row_tokens if self.rows_per_step else self.row_tokens // 2
        return whole if self.max_tokens is None else self.max_tokens

    def shown(self) -> dict:
        """The fields that mean something for this objective."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


# Janus 7B: Mistral-7B-v0.2 on the 196,998 rows (axolotl: sequence_len 8192, sample_packing,
# num_epochs 4, learning_rate 5e-6, cosine, warmup_steps 10, weight_decay 0). A step was
# 4 GPUs × micro_batch_size 2 × gradient_accumulation_steps 4 rows.
JANUS = Recipe(rows_per_step=32, optimizer="adamw8bit")  # adamw_bnb_8bit

# Janus+DPO 7B starts from Janus* 7B (janus-7b-65k), which is its reference too.
JANUS_DPO = Recipe(
    objective="dpo",
    epochs=2,  # num_epochs
    max_tokens=2048,  # sequence_len
    pairs_per_step=16,  # 4 GPUs × 1 × 4
    learning_rate=5e-7,  # cosine, warmup_steps 10, weight_decay 0
    optimizer="adamw8bit",
    beta=0.1,  # axolotl's default, the configuration sets none
    share_prompt=True,
)

# Janus+ORPO 7B starts from Mistral-7B-v0.2 itself.
JANUS_ORPO = Recipe(
    objective="orpo",
    epochs=2,  # num_epochs
    max_tokens=4096,  # sequence_len
    pairs_per_step=16,  # 4 GPUs × 1 × 4
    learning_rate=5e-6,  # cosine, warmup_steps 10, weight_decay 0
    optimizer="adamw8bit",
    lambda_or=0.1,  # orpo_alpha
    nll_on_prompt=False,  # the paper's choice is unknown: axolotl changed it in these days
    share_prompt=True,
)

# Janus-RM 7B, first stage: starts from janus-7b-epoch1, on pairs of the Multifaceted Collection.
JANUS_RM = Recipe(
    objective="reward",
    epochs=1,  # max_epochs
    max_tokens=2048,  # max_len
    pairs_per_step=128,  # train_batch_size
    learning_rate=9e-6,
    warmup_steps=0,
    warmup_ratio=0.03,  # of the steps, rounded up; then a cosine
    beta2=0.95,
    legacy_space=False,  # True trains as the official model was trained
    restart_head=True,  # OpenRLHF draws it anew whatever the start model has
    share_prompt=True,
)

# The miniatures' values were found by trying, on the scores that they report. Short rows are many
# steps, which so small a model needs more than large ones.
MINI_SFT = Recipe(
    epochs=4,
    row_tokens=1024,
    rows_per_step=1,
    learning_rate=2e-3,
    warmup_steps=40,
    beta2=0.99,
    miniature="multifaceted",
)

# Plain texts alone: a pretrained model, where others start.
MINI_BASE = replace(MINI_SFT, miniature="texts")
# A sixth of the responses, without the texts, which its start has read. mini-dpo starts from it, as
# Janus+DPO 7B from Janus* 7B, which had a third. 16 times each, so that all of them are learned.
MINI_SMALL = replace(MINI_SFT, miniature="small", start="mini-base", epochs=16)
MINI_PAIRS = dict(row_tokens=2048, max_tokens=None, miniature="pairs", optimizer="adamw")

RECIPES = {
    "mini-sft": MINI_SFT,
    "mini-uniform": replace(MINI_SFT, miniature="uniform"),  # as many steps
    "mini-sft-small": MINI_SMALL,
    # One and two of the three system messages per instruction, for about as many steps.
    "mini-sft-one": replace(MINI_SFT, miniature="one", epochs=8),
    "mini-sft-two": replace(MINI_SFT, miniature="two", epochs=5),
    "mini-dpo": replace(
        JANUS_DPO,
        **MINI_PAIRS,
        start="mini-sft-small",
        learning_rate=5e-5,
        # A short leash: rejected responses are good ones, for somebody else. `miniature.py` adds
        # pairs whose rejected responses are its start's own.
        beta=1.0,
    ),
    "mini-base": MINI_BASE,
    "mini-orpo": replace(
        JANUS_ORPO,
        **MINI_PAIRS,
        start="mini-base",
        epochs=10,  # after 5 it is at grades of 3.5 to 4.1, like mini-sft-chosen, as a CPU rounds
        pairs_per_step=6,
        learning_rate=2e-3,
        beta2=0.99,
    ),
    # The same steps on the chosen responses alone.
    "mini-sft-chosen": replace(MINI_SFT, miniature="chosen", start="mini-base", epochs=10),
    "mini-rm": replace(
        JANUS_RM,
        **MINI_PAIRS | {"miniature": "content-pairs"},
        start="mini-sft",
        pairs_per_step=8,
        learning_rate=4e-4,
    ),
    "janus-7b": JANUS,
    "janus-7b-65k": JANUS,  # Janus* 7B: one of the three system messages per instruction
    "janus-7b-epoch1": replace(JANUS, epochs=1),  # where the reward model starts
    "janus-dpo-7b": JANUS_DPO,
    "janus-orpo-7b": JANUS_ORPO,
    "janus-rm-7b": JANUS_RM,
    # Second stage, from the first one's model: hh-rlhf, oasst1_pairwise_rlhf_reward and
    # webgpt_comparisons by --dataset_probs, the first --max_samples of the stream.
    "janus-rm-7b-helpful": replace(JANUS_RM, probabilities=(0.72, 0.14, 0.14), max_examples=66_000),
}


# The shapes of Mistral-7B-v0.2, for what needs no weights.
MISTRAL_7B = ModelConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=32768,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    sliding_window=None,
)


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
