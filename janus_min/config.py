"""The shapes of a Mistral, read from a Hugging Face `config.json`."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from janus_min.errors import UserError


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
            raise UserError(f"{path} not found: a Hugging Face model directory is needed")
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
    is_encoder_decoder id2label label2id problem_type mean std normalize_reward
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
