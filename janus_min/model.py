"""Mistral (arXiv 2310.06825), exactly as its published checkpoints expect it.

A decoder of pre-norm blocks: RMSNorm (arXiv 1910.07467), grouped-query attention (arXiv 2305.13245)
with rotary positions (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), an output head of its own.
It computes on packed rows (`row.py`): there is no batch axis and no padding.

Parameter names, the half-split rotary layout and the order of casts in RMSNorm are Hugging Face's,
so that a checkpoint needs no translation. Left out: dropout, biases and tied heads, which Mistral
has not.

The alphabet of all shapes in this project:

    N   tokens of a row           D   width                 H   query heads
    S   responses in a row        F   width of the MLP      G   key/value heads
    V   vocabulary                Dh  width of a head       B, T   slots and positions of the cache
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_min.errors import UserError
from janus_min.row import Row
from kernels.attention import attention
from kernels.linear_cross_entropy import token_logps


@dataclass(frozen=True)
class ModelConfig:
    """The fields of `config.json` that decide what is computed. None of them has a default."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # G
    head_dim: int  # Dh
    max_position_embeddings: int  # longest document
    rms_norm_eps: float
    rope_theta: float  # 1e4 in v0.1, 1e6 in v0.2
    sliding_window: int | None  # 4096 in v0.1, None in v0.2

    @staticmethod
    def from_json(path: Path) -> "ModelConfig":
        """Reads a Hugging Face `config.json`; UserError for all that is not implemented here."""
        if not path.is_file():
            raise UserError(f"{path} not found: --model needs a Hugging Face model directory")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(config, dict):
            raise UserError(f"{path}: a JSON object is needed")
        for field, value in MUST_BE.items():
            given = config.get(field) if field == "model_type" else config.get(field, value)
            if given != value:
                raise UserError(
                    f"{path}: {field} is {json.dumps(given)}, needed is {json.dumps(value)}"
                )
        values = {"head_dim": None} | config | {"rope_theta": _theta(config, path)}
        names = [field.name for field in fields(ModelConfig)]
        if unknown := sorted(config.keys() - {*names, *MUST_BE, *INERT}):
            raise UserError(f"{path}: field {unknown[0]!r} is not implemented for a Mistral")
        if missing := [name for name in names if name not in values]:
            raise UserError(f"{path}: field {missing[0]!r} is missing")
        for name in names:
            _check_number(path, name, values[name])
        if values["head_dim"] is None:  # as in the published configs
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        result = ModelConfig(**{name: values[name] for name in names})
        if result.num_attention_heads % result.num_key_value_heads or result.head_dim % 2:
            raise UserError(
                f"{path}: num_attention_heads must be a multiple of num_key_value_heads, "
                "and head_dim even"
            )
        return result

    def to_json(self) -> dict:
        """A `config.json` for transformers, old and new: theta stands in both of its places."""
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}
        return (
            asdict(self)
            | rope
            | MUST_BE
            | {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}
        )


# What a Mistral is, where a config says it at all; any other value is another architecture.
MUST_BE = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
# Fields that do not change what is computed, or that are read elsewhere.
INERT = set(
    """
    architectures bos_token_id eos_token_id pad_token_id unk_token_id initializer_range use_cache
    torch_dtype dtype transformers_version _name_or_path rope_parameters rope_scaling pretraining_tp
    output_attentions output_hidden_states return_dict max_length chunk_size_feed_forward
    is_encoder_decoder id2label label2id problem_type mean std
    """.split()
)


def _theta(config: dict, path: Path) -> float:
    """The base of the rotary angles, from either place where a config may hold it."""
    if config.get("rope_scaling"):
        raise UserError(f"{path}: rope_scaling is set, needed is null")
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.keys() - {"rope_type", "rope_theta"}:
        raise UserError(f"{path}: rope_parameters may hold rope_type and rope_theta, nothing else")
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{path}: rope_type is {rope['rope_type']!r}, needed is 'default'")
    found = [t for t in (config.get("rope_theta"), rope.get("rope_theta")) if t is not None]
    if not found or found[0] != found[-1]:
        raise UserError(
            f"{path}: one rope_theta is needed, at the top or in rope_parameters, found "
            f"{found or 'none'}; v0.1 has 1e4, v0.2 has 1e6"
        )
    return found[0]


def _check_number(path: Path, name: str, value: object) -> None:
    """Every field is a positive number, whole where it counts something; two may be null."""
    kinds = (int, float) if name in ("rms_norm_eps", "rope_theta") else (int,)
    absent = name in ("sliding_window", "head_dim") and value is None
    if not absent and (type(value) not in kinds or not value > 0):
        kind = "a positive number" if float in kinds else "a positive whole number"
        raise UserError(f"{path}: {name} is {json.dumps(value)}, needed is {kind}")


class RMSNorm(nn.Module):
    """weight · x / √(mean(x²) + ε): fp32 inside, rounded before the weight, as Hugging Face's."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, (x.shape[-1],), eps=self.eps)


def rotary_table(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of position · θ^(−2j/Dh), each (N, 1, Dh) in fp32: Dh/2 angles, twice.

    Computed anew for each row and always in fp32: bf16 cannot tell positions above 256 apart.
    """
    exponent = (
        torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    )
    angles = positions[:, None].float() * (1.0 / config.rope_theta**exponent)  # (N, Dh/2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (N, heads, Dh): the pair (x_j, x_{j+Dh/2}) is turned by its angle j."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class KeyValueCache(Protocol):
    """What generation puts in the place of attention over a row (`sampling.py`)."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, key_end: Tensor, impl: str
    ) -> Tensor: ...


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: ModelConfig, layer: int, impl: str):
        super().__init__()
        D, Dh = config.hidden_size, config.head_dim
        self.head_dim, self.layer, self.impl = Dh, layer, impl
        self.q_proj = nn.Linear(D, config.num_attention_heads * Dh, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * Dh, D, bias=False)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        key_end: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), table)  # (N, H, Dh)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), table)  # (N, G, Dh)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (N, G, Dh)
        if cache is None:
            mixed = attention(q, k, v, key_end, self.impl)
        else:
            mixed = cache.attend(self.layer, q, k, v, key_end, self.impl)
        return self.o_proj(mixed.flatten(-2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, impl: str):
        super().__init__()
        self.self_attn = Attention(config, layer, impl)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        key_end: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table, key_end, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Token ids to hidden states; what the language model and the reward model have in common."""

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer, impl) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, inputs: Tensor, positions: Tensor, key_end: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        """inputs, positions, key_end (N,) -> hidden states (N, D), normalised."""
        x = self.embed_tokens(inputs)
        table = rotary_table(positions, self.config)
        for block in self.layers:
            x = block(x, table, key_end, cache)
        return self.norm(x)


class Policy(nn.Module):
    """The language model π: the trunk and a head over the vocabulary."""

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        self.config, self.impl = config, impl
        self.model = Trunk(config, impl)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, row: Row) -> Tensor:
        """log π(target | what the position sees), in nats, (N,); 0 where there is no target."""
        hidden = self.model(row.inputs, row.positions, row.key_end)
        return token_logps(hidden, self.lm_head.weight, row.targets, self.impl)


def initialise(model: nn.Module, seed: int) -> None:
    """Random weights to train from nothing: normal with std 0.02, norms 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02, generator=generator)
