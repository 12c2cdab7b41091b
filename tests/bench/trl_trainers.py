"""TRL's trainers as somebody runs them, but for the tokenizer: their data come as ids."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from janus_min.row import Example
from tests.peers import transformers

from datasets import Dataset  # isort: skip
from tokenizers import Tokenizer, models  # isort: skip
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # isort: skip
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # isort: skip


class PairsOfIds:
    """Replaces a trainer's preparation of texts: the rows are ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class OurDPO(PairsOfIds, DPOTrainer):
    """TRL's, on ids."""


class OurReward(PairsOfIds, RewardTrainer):
    """TRL's, on ids."""


class OurORPO(ORPOTrainer):
    """TRL's, on ids: what `tokenize_row` would make of a text."""

    def tokenize_row(self, feature: dict, model: nn.Module | None = None) -> dict:
        row = {}
        for side in ("chosen", "rejected"):
            ids = feature["prompt_ids"] + feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = ids
            row[f"{side}_attention_mask"] = [1] * len(ids)
            labels = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
            row[f"{side}_labels"] = labels
        return row | {"prompt_input_ids": feature["prompt_ids"], "prompt_attention_mask": []}


def trainer_step(
    objective: str,
    model: nn.Module,
    pairs: list[Example],
    directory: Path,
    *,
    beta: float,
    rate: float,
    max_norm: float,
    checkpointing: bool,
    precompute: bool = False,
) -> Callable[[], float]:
    """One step of the trainer on a batch of all pairs. Returns the loss before it.

    The trainer makes `directory`, and leaves it empty.
    """
    warnings.simplefilter("ignore")
    common = dict(
        output_dir=str(directory),
        per_device_train_batch_size=len(pairs),
        gradient_checkpointing=checkpointing,
        max_length=None,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    columns = {
        "prompt_ids": [pair.prompt.tolist() for pair in pairs],
        "chosen_ids": [pair.responses[0].tolist() for pair in pairs],
        "rejected_ids": [pair.responses[1].tolist() for pair in pairs],
    }
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",  # if it were EOS, the reward would be read one token too early
    )
    if objective == "dpo":
        config = DPOConfig(**common, beta=beta, precompute_ref_log_probs=precompute)
        settings = dict(model=model, args=config, processing_class=words)
        trainer = OurDPO(**settings, train_dataset=Dataset.from_dict(columns))
    elif objective == "orpo":
        config = ORPOConfig(**common | {"max_length": 4096}, beta=beta)
        texts = {name: ["text"] * len(pairs) for name in ("prompt", "chosen", "rejected")}
        dataset = Dataset.from_dict(columns | texts)
        trainer = OurORPO(model=model, args=config, processing_class=words, train_dataset=dataset)
    else:
        whole = {
            f"{side}_ids": [p + r for p, r in zip(columns["prompt_ids"], columns[f"{side}_ids"])]
            for side in ("chosen", "rejected")
        }
        config = RewardConfig(**common)
        settings = dict(model=model, args=config, processing_class=words)
        trainer = OurReward(**settings, train_dataset=Dataset.from_dict(whole))

    settings = dict(lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), **settings)
    trainer.current_gradient_accumulation_steps = 1  # which `train` would set
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        inputs = {name: value for name, value in batch.items()}
        loss = trainer.training_step(trainer.model, inputs)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), max_norm).item()
        optimizer.step()
        return loss.item()

    return step
