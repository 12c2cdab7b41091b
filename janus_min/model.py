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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from janus_min.config import ModelConfig
from janus_min.parallel import local, own_rows
from janus_min.row import Row
from kernels.attention import attention, tile_tables
from kernels.linear_cross_entropy import token_logps
from kernels.tiles import Tiles


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


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        D, Dh = config.hidden_size, config.head_dim
        self.head_dim, self.impl = Dh, impl
        self.q_proj = nn.Linear(D, config.num_attention_heads * Dh, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * Dh, D, bias=False)
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        key_end: Tensor | Tiles,
    ) -> Tensor:
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), table)  # (N, H, Dh)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), table)  # (N, G, Dh)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (N, G, Dh)
        return self.o_proj(self.attention(q, k, v, key_end, self.impl).flatten(-2))


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

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        self.self_attn = Attention(config, impl)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.checkpointing = False

    def forward(self, *inputs: object) -> Tensor:
        """`compute`, of which with checkpointing only the inputs are kept for the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            settings = dict(use_reentrant=False, preserve_rng_state=False)
            return checkpoint(self.compute, *inputs, **settings)
        return self.compute(*inputs)

    def compute(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        key_end: Tensor | Tiles,
    ) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = x + self.self_attn(self.input_layernorm(x), table, key_end)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Token ids to hidden states; what the language model and the reward model have in common."""

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        self.config, self.impl = config, impl
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, impl) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        key_end: Tensor,
    ) -> Tensor:
        """inputs, positions, key_end (N,) -> hidden states (N, D), normalised."""
        x = self.embed_tokens(inputs)
        table = rotary_table(positions, self.config)
        if self.impl == "triton":
            key_end = tile_tables(key_end, x.dtype)  # once for all layers
        for block in self.layers:
            x = block(x, table, key_end)
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


class RewardModel(nn.Module):
    """The trunk and a head of one number, laid out as the published janus-rm-7b."""

    def __init__(self, config: ModelConfig, impl: str):
        super().__init__()
        self.config = config
        self.model = Trunk(config, impl)
        self.value_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.mean, self.std = 0.0, 1.0  # of the rewards on held-out pairs, from `config.json`

    def forward(self, row: Row) -> Tensor:
        """The reward of each response, read at its last token, EOS: (S,), at least fp32."""
        hidden = self.model(row.inputs, row.positions, row.key_end)[row.ends]
        # bf16 would round rewards near 3 to multiples of 1/64: ties in best-of-n.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.to(dtype) @ self.value_head.weight[0].to(dtype)

    def normalise(self, rewards: Tensor) -> Tensor:
        """Rewards on the scale of the held-out pairs: mean 0 and standard deviation 1 there.

        For whoever uses the model; training compares rewards as they come.
        """
        return (rewards - self.mean) / self.std


def set_up_blocks(model: nn.Module, *, checkpointing: bool, compile: bool) -> None:
    """Trades memory and start-up time for speed; neither changes what is computed.

    With `checkpointing` (arXiv 1604.06174) only the input of a block is kept for the backward pass,
    which computes the block again. With `compile` its code is compiled, for all blocks once.
    """
    for block in model.model.layers:
        block.checkpointing = checkpointing
        if compile:
            if block.self_attn.impl != "triton":
                # It depends on where documents end: it would be compiled anew for each row.
                block.self_attn.attention = torch.compiler.disable(attention)
            block.compute = torch.compile(block.compute)


def initialise(model: nn.Module, seed: int) -> None:
    """Random weights to train from nothing: normal with std 0.02, norms 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(local(parameter))
        else:
            _draw(parameter, 0.02, generator)


def initialise_head(model: RewardModel, seed: int) -> None:
    """A random value head, normal with std 1 / (D + 1): rewards near 0, as in OpenRLHF."""
    generator = torch.Generator().manual_seed(seed)
    _draw(model.value_head.weight, 1 / (model.config.hidden_size + 1), generator)


@torch.no_grad()
def _draw(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fills in normal numbers: the same ones on every device, and however many ranks there are.

    Each rank draws all of them on the CPU and keeps its own rows.
    """
    drawn = torch.empty(parameter.shape).normal_(0, std, generator=generator)
    local(parameter).copy_(drawn[own_rows(parameter)])
