"""A whole run of train.py beside one of TRL's DPOTrainer, both from the same texts."""

import json

import pytest
import torch

from janus_min.data import load_examples
from janus_min.formats import pair_row
from janus_min.tokenizer import Tokenizer
from tests.peers import transformers
from tests.ranks import train_on
from tests.runs import metrics, write_pairs

from datasets import Dataset  # isort: skip
from trl import DPOConfig, DPOTrainer  # isort: skip

RATE, BETA, EPOCHS = 1e-2, 0.1, 4
NAMES = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
         "rewards/accuracies", "logps/chosen", "logps/rejected")  # fmt: skip


def hub_tokenizer(directory):
    """The same SentencePiece file, read by transformers, which puts no space before a text."""
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>",
             "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    # AutoTokenizer takes another class for a directory with a Mistral's config.json, since 5.24.
    return transformers.LlamaTokenizer.from_pretrained(directory)


def trainer(start, rows, out):
    """TRL's, on the texts of these rows in our template; a step is all of them."""
    texts = [
        {"prompt": f" [INST] {row['system']}\n{row['prompt']} [/INST]"}
        | {side: f" {row[side]}" for side in ("chosen", "rejected")}
        for row in rows
    ]
    config = DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=len(rows),
        num_train_epochs=EPOCHS,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        beta=BETA,
        max_length=None,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    return DPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        args=config,
        processing_class=hub_tokenizer(start),
        train_dataset=Dataset.from_list(texts),
    )


def test_ids_losses_gradients_and_rates_are_trls_at_every_step(program, start, tmp_path):
    data = write_pairs(tmp_path / "data.jsonl")
    theirs = trainer(start, list(map(json.loads, data.read_text().splitlines())), tmp_path / "trl")
    examples, _ = load_examples(data, Tokenizer(start), pair_row, max_tokens=64)
    for example, row in zip(examples, theirs.train_dataset, strict=True):
        ids = [example.prompt, *example.responses]
        columns = ("prompt_ids", "chosen_ids", "rejected_ids")
        assert [own.tolist() for own in ids] == [list(row[column]) for column in columns]
    theirs.train()
    wanted = [line for line in theirs.state.log_history if "loss" in line]

    flags = ("--pairs-per-step", len(examples), "--epochs", EPOCHS, "--learning-rate", RATE)
    flags += ("--beta", BETA, "--warmup-steps", 0, "--row-tokens", 128, "--max-tokens", 64)
    flags += ("--optimizer", "adamw")
    flags = ("janus-dpo-7b", "--model", start, "--data", data, *flags)
    program(*flags, "--out", "alone")
    train_on(2, *flags, "--out", "ranks")  # each has some of the step's rows
    for out in ("alone", "ranks"):
        ours = metrics(tmp_path / out)
        assert len(ours) == len(wanted) == EPOCHS
        assert ours[-1]["loss"] < ours[0]["loss"] - 0.01
        for line, their_line in zip(ours, wanted):
            assert line["lr"] == pytest.approx(their_line["learning_rate"])
            for name in NAMES:
                assert line[name] == pytest.approx(their_line[name], rel=1e-4, abs=1e-5), name
