"""Hugging Face directories in and out, and training state."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_min.checkpoint import (
    load_model,
    save_model,
)
from janus_min.directories import tensor_files
from janus_min.errors import UserError
from janus_min.model import Policy
from janus_min.row import build_row
from tests.conftest import random_examples, tiny_policy
from tests.peers import transformers
from tests.test_model import KINDS, write_mistral


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_equal_to_the_byte(kind, tmp_path, world):
    write_mistral(tmp_path / "theirs", **KINDS[kind])
    policy = load_model(Policy, tmp_path / "theirs", impl="torch")
    shard_bytes = 60_000 if KINDS[kind]["shards"] > 1 else 10**9
    save_model(policy, tmp_path / "ours", world, torch.float32, shard_bytes)
    theirs, ours = {}, {}
    for name, tensors in (("theirs", theirs), ("ours", ours)):
        for path in (tmp_path / name).glob("*.safetensors"):
            tensors |= load_file(path)
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert theirs[name].numpy().tobytes() == ours[name].numpy().tobytes(), name


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_our_export_gives_the_same_logits_in_transformers(tmp_path, world, shard_bytes):
    policy = tiny_policy(rope_theta=1e6, sliding_window=5)
    save_model(policy, tmp_path / "out", world, torch.float32, shard_bytes)
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert (shards > 1) == (shard_bytes < 10**9)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.arange(3, 33)
    row = build_row(random_examples(1), 5)._replace(
        inputs=ids, positions=torch.arange(30), key_end=(torch.arange(30) + 5).clamp(max=30)
    )
    ours = policy.lm_head(policy.model(row.inputs, row.positions, row.key_end))
    torch.testing.assert_close(ours, hf(ids[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_an_export_is_complete_and_in_the_dtype_asked_for(tmp_path, world):
    policy = tiny_policy()
    (tmp_path / "start").mkdir()
    shutil.copy(world / "tokenizer.model", tmp_path / "start")
    (tmp_path / "start" / "tokenizer_config.json").write_text('{"any": "thing"}')
    save_model(policy, tmp_path / "out", tmp_path / "start")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "start" / name).read_bytes()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2 and generation["repetition_penalty"] == 1.03
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert policy.lm_head.weight.dtype == torch.float32  # the live weights are left alone
    again = load_model(Policy, tmp_path / "out", impl="torch")
    assert torch.equal(again.lm_head.weight, policy.lm_head.weight.bfloat16().float())
    save_model(policy, tmp_path / "out", tmp_path / "start")  # a second export replaces the first
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def saved(tmp_path, world):
    """A checkpoint in several shards, to be damaged."""
    save_model(tiny_policy(), tmp_path / "model", world, torch.float32, 60_000)
    return tmp_path / "model"


def edit_shard(directory, change):
    path = sorted(directory.glob("*.safetensors"))[0]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_shard_is_named(saved):
    victim = sorted(saved.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=f"shard {victim.name} is missing"):
        load_model(Policy, saved, impl="torch")


def test_a_strange_safetensors_file_is_refused(saved):
    save_file({"x": torch.zeros(1)}, saved / "consolidated.safetensors")
    with pytest.raises(UserError, match=r"consolidated.safetensors does not belong"):
        load_model(Policy, saved, impl="torch")


def test_missing_tensor_is_named(saved):
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"tensor model.norm.weight is missing"):
        load_model(Policy, saved, impl="torch")


def test_extra_tensor_is_named(saved):
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    name = "model.layers.0.self_attn.q_proj.bias"
    index["weight_map"][name] = next(iter(index["weight_map"].values()))
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"tensor {name} has no place in the model"):
        load_model(Policy, saved, impl="torch")


def test_index_that_promises_what_the_file_lacks(saved):
    edit_shard(saved, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(UserError, match=r"embed_tokens.weight is missing, though"):
        load_model(Policy, saved, impl="torch")


def test_a_stray_copy_of_a_tensor_is_not_loaded(saved):
    """The index decides which file a tensor is read from, not what else lies in the files."""
    last = sorted(saved.glob("*.safetensors"))[-1]
    tensors = load_file(last)
    tensors |= {"model.embed_tokens.weight": torch.zeros(97, 48), "junk": torch.zeros(1)}
    save_file(tensors, last)
    loaded = load_model(Policy, saved, impl="torch")
    assert torch.equal(loaded.model.embed_tokens.weight, tiny_policy().model.embed_tokens.weight)


def test_wrong_shape_is_named(saved):
    edit_shard(saved, lambda t: t.update({"model.embed_tokens.weight": torch.zeros(97, 47)}))
    with pytest.raises(UserError, match=r"embed_tokens.weight is \(97, 47\), config.json makes it"):
        load_model(Policy, saved, impl="torch")


def test_damaged_files_are_named(saved, tmp_path):
    sorted(saved.glob("*.safetensors"))[0].write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"safetensors is damaged"):
        load_model(Policy, saved, impl="torch")
    for damage in ("{}", '{"weight_map": ["x"]}', '{"weight_map": {"x": 1}}'):
        (saved / "model.safetensors.index.json").write_text(damage)
        with pytest.raises(UserError, match=r"index.json is damaged: 'weight_map' must map"):
            load_model(Policy, saved, impl="torch")
    for damage, message in (("{", "Expecting"), ("3", "a JSON object is needed")):
        (saved / "model.safetensors.index.json").write_text(damage)
        with pytest.raises(UserError, match=f"index.json is damaged: {message}"):
            load_model(Policy, saved, impl="torch")
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        tensor_files(tmp_path)
