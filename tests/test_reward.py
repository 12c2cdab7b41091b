"""The reward model: its head, its files, its stages."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from janus_min.checkpoint import load_model, open_model, save_model
from janus_min.data import load_examples
from janus_min.errors import UserError
from janus_min.formats import reward_row
from janus_min.model import Policy, RewardModel, initialise_head
from janus_min.row import build_row
from janus_min.tokenizer import Tokenizer
from tests.conftest import random_pairs, tiny_config, tiny_policy, tiny_reward_model
from tests.peers import transformers
from tests.runs import metrics, write_pairs, write_rows
from tests.test_formats import HH

# The model


def test_rewards_do_not_depend_on_what_else_is_in_the_row():
    """No padding, no batch, and one way to find the last token."""
    model, pairs = tiny_reward_model(), random_pairs(5)
    pairs[0].prompt[1:] = 2  # EOS in the middle of a prompt ends nothing
    together = model(build_row(pairs, None))
    for i, pair in enumerate(pairs):
        for share_prompt in (True, False):
            alone = model(build_row([pair], None, pad_to=80, share_prompt=share_prompt))
            torch.testing.assert_close(alone, together[2 * i : 2 * i + 2], rtol=1e-5, atol=1e-6)
    model.eval()
    assert torch.equal(model(build_row(pairs, None)), together)


def test_the_head_computes_in_fp32():
    """In bf16 rewards near 3 would be multiples of 1/64."""
    model = tiny_reward_model(dtype=torch.bfloat16)
    rewards = model(build_row(random_pairs(20), None))
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16().float()).any()


def test_a_new_head_is_small_and_the_same_for_a_seed():
    """Normal with standard deviation 1 / (D + 1), so that the loss begins near ln 2."""
    config = tiny_config(hidden_size=4800, num_hidden_layers=0)
    heads = []
    for seed in (1, 1, 2):
        model = RewardModel(config, "torch")
        initialise_head(model, seed)
        heads.append(model.value_head.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(1 / 4801, rel=0.05)


def test_normalised_rewards_have_the_scale_of_the_held_out_pairs():
    model = tiny_reward_model()
    model.mean, model.std = 2.0, 4.0
    assert model.normalise(torch.tensor([2.0, 6.0, -2.0])).tolist() == [0.0, 1.0, -1.0]


# Files


def test_the_layout_is_that_of_janus_rm_7b(tmp_path, world):
    """`value_head.weight` and no `lm_head.weight`, mean and std in config.json."""
    model = tiny_reward_model()
    model.mean, model.std = 0.25, 1.5
    save_model(model, tmp_path / "rm", world, torch.float32)
    tensors = load_file(tmp_path / "rm/model.safetensors")
    assert tensors["value_head.weight"].shape == (1, 48) and "lm_head.weight" not in tensors
    config = json.loads((tmp_path / "rm/config.json").read_text())
    assert config["architectures"] == ["LLMForSequenceRegression"]
    assert (config["mean"], config["std"]) == (0.25, 1.5)
    assert not (tmp_path / "rm/generation_config.json").exists()
    again = load_model(RewardModel, tmp_path / "rm", impl="torch")
    row = build_row(random_pairs(3), None)
    assert torch.equal(again(row), model(row))
    assert torch.equal(again.normalise(again(row)), model.normalise(model(row)))


class LLMForSequenceRegression(transformers.MistralPreTrainedModel):
    """A reward model as OpenRLHF builds it: under padding, read by the mask, normalised."""

    def __init__(self, config):
        super().__init__(config)
        self.model = transformers.MistralModel(config)
        self.value_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1
        rewards = self.value_head(hidden)[torch.arange(len(last)), last, 0]
        return (rewards - self.config.mean) / self.config.std


def test_the_official_class_reads_what_we_write_and_we_what_it_writes(tmp_path, world):
    model, pairs = tiny_reward_model(sliding_window=6), random_pairs(4)
    model.mean, model.std = 0.25, 1.5
    save_model(model, tmp_path / "ours", world, torch.float32)
    theirs = LLMForSequenceRegression.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    )
    documents = [np.concatenate([p.prompt, r]) for p in pairs for r in p.responses]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(d).long() for d in documents], True, 2)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(d)).long() for d in documents], True, 0)
    wanted = theirs(ids, mask)
    row = build_row(pairs, 6)
    torch.testing.assert_close(model.normalise(model(row)), wanted, rtol=1e-5, atol=1e-5)
    theirs.config.normalize_reward = False  # a field of the published config, of OpenRLHF's trainer
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(RewardModel, tmp_path / "theirs", impl="torch")
    torch.testing.assert_close(again.normalise(again(row)), wanted, rtol=1e-5, atol=1e-5)


def test_a_reward_model_is_no_policy_and_the_reverse(tmp_path, world):
    save_model(tiny_reward_model(), tmp_path / "rm", world)
    save_model(tiny_policy(), tmp_path / "policy", world)
    with pytest.raises(UserError, match=r"rm is a reward model \(it has value_head.weight\), ne"):
        open_model(Policy, tmp_path / "rm", impl="torch")
    with pytest.raises(UserError, match=r"policy is a language model \(it has lm_head.weight\), n"):
        open_model(RewardModel, tmp_path / "policy", impl="torch")


@pytest.mark.parametrize("std", [0, -1, "1", None, float("nan"), True])
def test_a_config_with_impossible_normalisation_is_refused(tmp_path, world, std):
    save_model(tiny_reward_model(), tmp_path / "rm", world)
    path = tmp_path / "rm/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"std": std}))
    with pytest.raises(UserError, match=r"mean and std of the rewards are 0.0 and .*, needed are"):
        load_model(RewardModel, tmp_path / "rm", impl="torch")


# Training

BRIEFLY = ("--epochs", 6, "--learning-rate", 3e-2)


@pytest.fixture
def flags(tmp_path, world):
    policy = tiny_policy(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=64)
    save_model(policy, tmp_path / "start", world, torch.float32)
    data = write_pairs(tmp_path / "data.jsonl")
    sizes = ("--row-tokens", 128, "--max-tokens", 64, "--pairs-per-step", 2)
    return ("--model", tmp_path / "start", "--data", data, *sizes, *BRIEFLY)


def test_a_reward_model_from_a_policy(program, flags, tmp_path):
    """The first stage: a new head, a loss that begins at ln 2 and goes down, rewards that are
    normalised on the held-out pairs."""
    held_out = write_pairs(tmp_path / "held-out.jsonl", 5)
    out = program("janus-rm-7b", *flags, "--out", "o", "--eval-data", held_out)
    lines = metrics(tmp_path / "o")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert lines[-1]["loss"] < 0.5 and lines[-1]["accuracy"] == 1
    assert {"margin", "mean_reward", "eval_accuracy", "eval_loss"} <= lines[-1].keys()
    assert "held-out pairs: 100.0% of 5 ranked right; rewards have mean" in out
    model = load_model(RewardModel, tmp_path / "o/model", impl="torch")
    tokenizer = Tokenizer(tmp_path / "start")
    examples, _ = load_examples(held_out, tokenizer, reward_row, max_tokens=64)
    rewards = model.normalise(model(build_row(examples, None)))
    assert rewards.mean().item() == pytest.approx(0, abs=1e-5)
    assert rewards.std().item() == pytest.approx(1, abs=1e-5)


def test_without_held_out_pairs_rewards_are_not_normalised(program, flags, tmp_path):
    out = program("janus-rm-7b", *flags, "--out", "o", "--steps", 1)
    assert "rewards are not normalised, which takes held-out pairs (--eval-data)" in out
    model = load_model(RewardModel, tmp_path / "o/model", impl="torch")
    assert (model.mean, model.std) == (0.0, 1.0)


def head(directory):
    return load_file(directory / "model.safetensors")["value_head.weight"]


def test_the_second_stage_draws_its_head_anew_unless_told_otherwise(program, flags, tmp_path):
    program("janus-rm-7b", *flags, "--out", "one")
    second = ("--model", "one/model", *flags[2:], "--epochs", 1, "--learning-rate", 0)
    program("janus-rm-7b", *second, "--out", "anew")
    program("janus-rm-7b", *second, "--out", "kept", "--no-restart-head")
    first = head(tmp_path / "one/model")
    assert torch.equal(head(tmp_path / "kept/model"), first)
    assert not torch.equal(head(tmp_path / "anew/model"), first)
    assert head(tmp_path / "anew/model").abs().max() < 5 / 17


def test_the_second_stage_mixes_transcripts_and_pairs(program, flags, tmp_path):
    """Anthropic's transcripts, OASST's and WebGPT's rows, by the recipe's probabilities."""
    hh = [{"chosen": f"{HH} Water {i}.", "rejected": f"{HH} Wet."} for i in range(20)]
    oasst = [{"prompt": "prompter:Rain?", "chosen": f"Yes {i}", "rejected": "No"} for i in range(4)]
    webgpt = [
        {"question": {"full_text": "Rain?"}, "answer_0": f"A {i}", "answer_1": "B"}
        | {"score_0": i % 2, "score_1": 0}
        for i in range(6)
    ]
    files = [
        write_rows(tmp_path / name, rows)
        for name, rows in (("hh.jsonl", hh), ("oasst.jsonl", oasst), ("webgpt.jsonl", webgpt))
    ]
    arguments = ["--model", tmp_path / "start", *flags[4:], "--epochs", 1, "--max-examples", 30]
    out = program("janus-rm-7b-helpful", *arguments, "--data", *files, "--out", "o")
    assert "webgpt.jsonl\n      3 examples (dropped: 3 equal scores)" in out and ", 30 pairs" in out
    assert sum(line["pairs"] for line in metrics(tmp_path / "o")) == 30
    message = program.fails("janus-rm-7b-helpful", *arguments, "--data", *files[:2], "--out", "p")
    assert "--probabilities are 3 shares, --data names 2 files: each file needs one" in message


def test_a_reward_model_as_a_start_of_dpo_is_refused(program, flags):
    program("janus-rm-7b", *flags, "--out", "one", "--steps", 1)
    message = program.fails("janus-dpo-7b", "--model", "one/model", *flags[2:])
    assert "one/model is a reward model (it has value_head.weight), needed is a language" in message


def test_legacy_space_is_trained_when_asked_for(program, flags):
    plain, legacy = (
        program("janus-rm-7b", *flags, *more, "--show-rows", 1) for more in ([], ["--legacy-space"])
    )
    assert " «</s>»" in legacy and " «</s>»" not in plain
