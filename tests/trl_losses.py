"""TRL's losses without its trainers: their methods, called with what they ask a trainer for."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from janus_min.row import Example
from tests.peers import transformers  # before TRL, which imports it too

from trl import DPOTrainer, RewardTrainer  # isort: skip
from trl.experimental.orpo.orpo_trainer import ORPOTrainer, log1mexp  # isort: skip
from trl.trainer.utils import add_fused_lm_head  # isort: skip

__all__ = ["log1mexp"]
ACCELERATOR = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def trainer(**settings: object) -> SimpleNamespace:
    """What every trainer has, and these settings."""
    common = dict(accelerator=ACCELERATOR, aux_loss_enabled=False, is_encoder_decoder=False)
    common |= dict(_total_train_tokens=0, _tp_size=1, _metrics={"train": defaultdict(list)})
    return SimpleNamespace(**(common | settings))


def logged(stub: SimpleNamespace) -> dict[str, float]:
    """The metrics of the last loss."""
    return {name: values[-1] for name, values in stub._metrics["train"].items()}


def dpo(
    policy: nn.Module, reference: nn.Module, batch: dict[str, Tensor], beta: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of DPOTrainer with its default, the sigmoid loss."""
    stub = trainer(
        model=policy,
        ref_model=reference,
        beta=beta,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
    )
    return DPOTrainer._compute_loss(stub, policy, batch, return_outputs=False), logged(stub)


def with_fused_head(model: nn.Module) -> nn.Module:
    """The model as DPOTrainer prepares it."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def odds_ratio(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, ...]:
    """(β·log σ(…) of each pair, rewards, means of log σ and of the log odds ratio)."""
    return ORPOTrainer.odds_ratio_loss(trainer(beta=beta), chosen, rejected)


def orpo(
    policy: nn.Module, batch: dict[str, Tensor], beta: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of ORPOTrainer."""
    stub = trainer(beta=beta, padding_value=0)
    for name in ("odds_ratio_loss", "concatenated_forward"):
        setattr(stub, name, getattr(ORPOTrainer, name).__get__(stub))
    for name in ("concatenated_inputs", "get_batch_logps"):
        setattr(stub, name, getattr(ORPOTrainer, name))
    return ORPOTrainer.get_batch_loss_metrics(stub, policy, batch)


def reward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of RewardTrainer."""
    settings = SimpleNamespace(center_rewards_coefficient=None)
    stub = trainer(model=SimpleNamespace(training=True), args=settings)
    return RewardTrainer.compute_loss(stub, model, dict(batch)), logged(stub)


def padded(sequences: list[Tensor], value: int) -> Tensor:
    return pad_sequence(sequences, batch_first=True, padding_value=value)


def concatenated_batch(pairs: list[Example]) -> dict[str, Tensor]:
    """A padded batch as TRL's collators make it: all chosen, then all rejected."""
    ids, masks = [], []
    for side in (0, 1):
        for pair in pairs:
            prompt, response = (torch.tensor(x) for x in (pair.prompt, pair.responses[side]))
            ids.append(torch.cat([prompt, response]).long())
            masks.append(torch.cat([torch.zeros_like(prompt), torch.ones_like(response)]).long())
    attention = padded([torch.ones_like(sequence) for sequence in ids], 0)
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": attention,
        "completion_mask": padded(masks, 0),
    }


def orpo_batch(pairs: list[Example]) -> dict[str, Tensor]:
    """The same for ORPOTrainer, whose two sides are apart."""
    whole, batch = concatenated_batch(pairs), {}
    labels = whole["input_ids"].masked_fill(whole["completion_mask"] == 0, -100)
    for side, rows in (("chosen", slice(len(pairs))), ("rejected", slice(len(pairs), None))):
        batch[f"{side}_input_ids"] = whole["input_ids"][rows]
        batch[f"{side}_attention_mask"] = whole["attention_mask"][rows]
        batch[f"{side}_labels"] = labels[rows]
    return batch


def classifier(model: nn.Module) -> nn.Module:
    """The trunk of a language model under a head of one number, as RewardTrainer wants it."""
    config = type(model.config).from_dict(model.config.to_dict() | {"num_labels": 1})
    config.pad_token_id = 0
    torch.manual_seed(1)
    other = transformers.MistralForSequenceClassification(config)
    other.model.load_state_dict(model.model.state_dict())
    return other.to(next(model.parameters()).dtype)
