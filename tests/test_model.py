"""Our Mistral beside transformers' Mistral, on checkpoints that transformers wrote."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_min import model as model_module
from janus_min.checkpoint import load_model
from janus_min.config import ModelConfig
from janus_min.errors import UserError
from janus_min.model import (
    Policy,
    RewardModel,
    RMSNorm,
    initialise,
    initialise_head,
    rotary_table,
)
from janus_min.row import build_row, laid_tokens
from tests.conftest import random_examples, tiny_config, tiny_policy
from tests.peers import transformers

SIZES = dict(
    vocab_size=97,  # odd on purpose
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.2,
)
SHARD_SHARE = 0.4  # of the bytes in each file: three files
KINDS = {
    "v0.1, window": dict(sliding_window=6, rope_theta=1e4, shards=1),
    "v0.2, no window": dict(sliding_window=None, rope_theta=1e6, shards=1),
    "three shards": dict(sliding_window=None, rope_theta=1e6, shards=3),
    "one key/value head": dict(sliding_window=None, rope_theta=1e4, shards=1, groups=1),
    "no grouping, wide heads": dict(
        sliding_window=None, rope_theta=1e4, shards=1, groups=4, head_dim=16
    ),
}


def write_mistral(directory, *, sliding_window, rope_theta, shards, groups=2, head_dim=None):
    """A random Mistral as transformers writes it. Returns transformers' model."""
    torch.manual_seed(0)
    sizes = SIZES | dict(num_key_value_heads=groups, head_dim=head_dim)
    config = transformers.MistralConfig(
        **sizes,
        sliding_window=sliding_window,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        attn_implementation="eager",
    )
    hf = transformers.MistralForCausalLM(config)
    with torch.no_grad():  # norms that are not all 1
        for name, parameter in hf.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    total = sum(parameter.nbytes for parameter in hf.parameters())
    hf.save_pretrained(directory, max_shard_size="1GB" if shards == 1 else int(total * SHARD_SHARE))
    assert len(list(directory.glob("*.safetensors"))) == shards
    return hf


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """The same checkpoint in transformers and here."""
    directory = tmp_path_factory.mktemp("mistral")
    hf = write_mistral(directory, **KINDS[request.param])
    return hf, load_model(Policy, directory, impl="torch"), directory


def document_logps(hf, example):
    """transformers' log-probabilities of an example's response tokens, in a batch of its own."""
    ids = torch.tensor([*example.prompt, *example.responses[0]])[None]
    logps = hf(ids).logits[0].log_softmax(-1)
    P = len(example.prompt)
    return torch.stack([logps[t - 1, ids[0, t]] for t in range(P, ids.shape[1])])


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_hidden_states_logps_and_gradients_equal_transformers(both, impl):
    hf, policy, directory = both
    policy = load_model(Policy, directory, impl=impl)
    examples = random_examples(6, longest=12)
    row = build_row(examples, policy.config.sliding_window)

    hidden = policy.model(row.inputs, row.positions, row.key_end)
    alone = [torch.tensor([*e.prompt, *e.responses[0]])[None] for e in examples]
    wanted_hidden = torch.cat([hf.model(ids).last_hidden_state[0] for ids in alone])
    torch.testing.assert_close(hidden, wanted_hidden, rtol=1e-5, atol=1e-5)

    logps = policy(row)
    wanted = torch.cat([document_logps(hf, example) for example in examples])
    torch.testing.assert_close(logps[row.targets >= 0], wanted, rtol=1e-5, atol=1e-5)

    weights = torch.linspace(0.5, 1.5, len(wanted))  # every token counts differently
    hf.zero_grad()
    (wanted * weights).sum().backward()
    (logps[row.targets >= 0] * weights).sum().backward()
    theirs = dict(hf.named_parameters())
    for name, parameter in policy.named_parameters():
        scale = theirs[name].grad.abs().max()
        error = (parameter.grad - theirs[name].grad).abs().max()
        assert error <= 1e-4 * max(1.0, scale), f"{name}: {error} of {scale}"


def test_interleaved_rotary_embedding_would_be_noticed(both, monkeypatch):
    """The layout of Mistral's own `consolidated` files, which Hugging Face's files do not have."""
    hf, policy, _ = both

    def interleaved(x, table):
        cos, sin = (part[..., : x.shape[-1] // 2].repeat_interleave(2, -1) for part in table)
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin

    monkeypatch.setattr(model_module, "rotate", interleaved)
    examples = random_examples(3)
    row = build_row(examples, policy.config.sliding_window)
    wanted = torch.cat([document_logps(hf, example) for example in examples])
    assert (policy(row)[row.targets >= 0] - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("window", [None, 4])
def test_a_document_does_not_notice_what_is_packed_around_it(window):
    policy = tiny_policy(sliding_window=window)
    examples = random_examples(5)
    row = build_row(examples, window)
    together = policy(row)
    start = 0
    for example in examples:
        alone = policy(build_row([example], window))
        stop = start + laid_tokens(example)
        torch.testing.assert_close(together[start:stop], alone, rtol=0, atol=1e-5)
        start = stop


def test_changing_one_document_leaves_the_others_bitwise_equal():
    policy = tiny_policy()
    examples = random_examples(4)
    before = policy(build_row(examples, None))
    examples[0].prompt[1:] = 5
    after = policy(build_row(examples, None))
    rest = slice(laid_tokens(examples[0]), None)
    assert torch.equal(before[rest], after[rest]) and not torch.equal(before, after)


def test_window_of_mistral_is_itself_and_the_w_minus_1_tokens_before():
    row = build_row(random_examples(1, seed=3), window=4)
    N = len(row.inputs)
    for q in range(N):
        seen = [k for k in range(q + 1) if q < row.key_end[k]]
        assert seen == [k for k in range(q + 1) if q - k < 4]


def test_rotary_table_is_exact_at_the_end_of_the_context():
    config = tiny_config(head_dim=128, rope_theta=1e6)
    cos, sin = rotary_table(torch.tensor([8191]), config)
    exponent = torch.arange(0, 128, 2, dtype=torch.float64) / 128
    angles = 8191 / 1e6**exponent
    assert cos.dtype == torch.float32
    assert (cos[0, 0, :64].double() - angles.cos()).abs().max() < 1e-3
    assert (sin[0, 0, 64:].double() - angles.sin()).abs().max() < 1e-3


def test_rotary_positions_stay_fp32_in_a_bf16_model():
    """In bf16 the positions 8190 and 8191 would be one and the same, and so would their outputs."""
    policy = tiny_policy(dtype=torch.bfloat16, max_position_embeddings=8192)
    row = build_row(random_examples(1, seed=2), None)
    shifted = row._replace(positions=row.positions + 8190)
    stretched = row._replace(positions=row.positions * 2 + 8190)
    base, same, other = (policy(r) for r in (row, shifted, stretched))
    assert base.dtype == torch.float32
    difference = (base - same).abs().max()  # only differences of positions count
    assert difference < 0.1 * (base - other).abs().max()


def test_bf16_stays_close_to_transformers_in_bf16(tmp_path):
    """Kernels round in different places: the distributions agree, not the bits."""
    hf = write_mistral(tmp_path, **KINDS["v0.2, no window"]).bfloat16()
    policy = load_model(Policy, tmp_path, impl="torch", dtype=torch.bfloat16)
    examples = random_examples(6)
    row = build_row(examples, None)
    ours = policy.lm_head(policy.model(row.inputs, row.positions, row.key_end))
    ids = [torch.tensor([*e.prompt, *e.responses[0]])[None] for e in examples]
    theirs = torch.cat([hf(i).logits[0] for i in ids])
    ours, theirs = (x.float().log_softmax(-1) for x in (ours, theirs))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    assert divergence.mean() < 1e-3


def test_rms_norm_rounds_before_the_weight_as_transformers_does():
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm

    torch.manual_seed(0)
    x = torch.randn(64, 48).bfloat16()
    ours, theirs = RMSNorm(48, 1e-5).bfloat16(), MistralRMSNorm(48, 1e-5).bfloat16()
    with torch.no_grad():
        ours.weight.uniform_(0.1, 3)
        theirs.weight.copy_(ours.weight)
    assert torch.equal(ours(x), theirs(x))


def test_initialisation_depends_on_the_seed_alone():
    first, second, third = tiny_policy(), tiny_policy(), tiny_policy()
    initialise(third, seed=1)
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)
    assert (third.model.norm.weight == 1).all()
    assert third.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


class DrawsOnCPU(TorchDispatchMode):
    """Counts what is drawn at random, and insists that it is drawn on the CPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "normal" in str(func):
            assert args[0].device.type == "cpu"
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_random_weights_are_drawn_on_the_cpu_for_every_device():
    """A generator of the CPU fills no tensor of a GPU; "meta" stands for one."""
    model = RewardModel(tiny_config(), "torch").to("meta")
    with DrawsOnCPU() as draws:
        initialise(model, seed=0)
        initialise_head(model, seed=0)
    assert draws.count == 1 + 2 * 7 + 1 + 1  # embedding, two blocks, value head, and that again


# config.json


def config_json(**changes):
    return tiny_config().to_json() | changes


def read(tmp_path, content) -> ModelConfig:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ModelConfig.from_json(path)


def test_theta_is_read_from_either_place(tmp_path):
    base = config_json()
    top = {k: v for k, v in base.items() if k != "rope_parameters"} | {"rope_theta": 1e6}
    nested = {k: v for k, v in base.items() if k != "rope_theta"}
    nested["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert read(tmp_path, top) == read(tmp_path, nested) == tiny_config(rope_theta=1e6)


def test_config_survives_writing_and_transformers(tmp_path):
    config = tiny_config(rope_theta=1e6, sliding_window=4096)
    content = config.to_json()
    assert content["rope_theta"] == content["rope_parameters"]["rope_theta"] == 1e6
    assert read(tmp_path, config.to_json()) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == 1e6 and theirs.sliding_window == 4096
    theirs.save_pretrained(tmp_path)
    assert ModelConfig.from_json(tmp_path / "config.json") == config


def test_the_published_config_of_v02_is_read(tmp_path):
    published = dict(
        architectures=["MistralForCausalLM"],
        attention_dropout=0.0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_act="silu",
        hidden_size=4096,
        initializer_range=0.02,
        intermediate_size=14336,
        max_position_embeddings=32768,
        model_type="mistral",
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        transformers_version="4.39.1",
        use_cache=True,
        vocab_size=32000,
    )
    config = read(tmp_path, published)
    assert config.head_dim == 128 and config.sliding_window is None and config.rope_theta == 1e6
    with torch.device("meta"):
        policy = model_module.Policy(config, "torch")
    assert sum(parameter.numel() for parameter in policy.parameters()) == 7_241_732_096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, 'model_type is "llama", needed is "mistral"'),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", needed is "silu"'),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, needed is false"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, needed is 0.0"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is set, needed is null"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', needed is 'default'"),
        (
            {"rope_parameters": {"type": "yarn"}},
            "rope_parameters may hold rope_type and rope_theta",
        ),
        ({"rope_parameters": [1]}, "rope_parameters may hold rope_type and rope_theta"),
        ({"rope_theta": None, "rope_parameters": None}, "one rope_theta is needed, .* found none"),
        ({"rope_theta": 1e6}, r"one rope_theta is needed, .* found \[1000000.0, 10000.0\]"),
        (
            {"rope_theta": [1], "rope_parameters": None},
            r"rope_theta is \[1\], needed is a positive",
        ),
        ({"model_type": None}, 'model_type is null, needed is "mistral"'),
        ({"hidden_size": "48", "head_dim": None}, 'hidden_size is "48", needed is a positive'),
        ({"num_attention_heads": "4"}, 'num_attention_heads is "4", needed is a positive whole'),
        ({"hidden_size": 48.5}, "hidden_size is 48.5, needed is a positive whole number"),
        ({"vocab_size": None}, "vocab_size is null, needed is a positive whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, needed is a positive whole"),
        ({"sliding_window": 0}, "sliding_window is 0, needed is a positive whole number"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps is "1e-5", needed is a positive number'),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of"),
        ({"head_dim": 13}, "and head_dim even"),
        ({"num_experts": 8}, "field 'num_experts' is not implemented"),
        ({"quantization_config": {}}, "field 'quantization_config' is not implemented"),
    ],
)
def test_configs_of_something_else_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, config_json(**changes))


def test_config_without_a_field_or_file_is_refused(tmp_path):
    content = config_json()
    del content["sliding_window"]
    with pytest.raises(UserError, match="field 'sliding_window' is missing"):
        read(tmp_path, content)
    with pytest.raises(UserError, match="is not valid JSON"):
        read(tmp_path, "{")
    with pytest.raises(UserError, match="a JSON object is needed"):
        read(tmp_path, "3")
    with pytest.raises(UserError, match="not found: a Hugging Face model directory is needed"):
        ModelConfig.from_json(tmp_path / "nothing" / "config.json")
