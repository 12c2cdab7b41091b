"""A policy laid out for generation: the function of `model.py`, with fewer and faster products.

Queries, keys and values come from one product, and so do both halves of the MLP: a step with a few
tokens reads all weights for little arithmetic, and on a GPU waits for every launch. On a CPU the
matrices are stored as its libraries read them fastest: fp32 by MKL on Intel's CPUs and by oneDNN on
others, bf16 by oneDNN if the CPU has instructions for it. With 16 tokens fp32 is up to 1.4 times as
fast as a plain product on Intel's, and 2.5 to 4 times on an AMD EPYC. Others are stored transposed.
`model.Policy` is the specification.
"""

import math
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_min.cache import Attend, Store
from janus_min.model import Block, Policy, RMSNorm, rotary_table

PACKS = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
)
ROWS = 256  # tokens for which weights are laid out: as fast as any for fewer, nearly so for more


def made_by_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Intel made this CPU: Linux has a file that says so, Windows tells `platform`."""
    try:
        return "GenuineIntel" in cpuinfo.read_text()
    except OSError:
        return "GenuineIntel" in platform.processor()


INTEL = made_by_intel()


class Packed:
    """x ↦ x·Wᵀ with W (out, in) as MKL packs it: (N, in) to (N, out), fp32 on a CPU."""

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS)
        # The operator asks a plain matrix for W's shape, and would multiply by it if it were told
        # another number of rows than x has.
        self.shape = weight.new_empty(1).expand(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        N = x.numel() // x.shape[-1]
        return torch.ops.mkl._mkl_linear(x, self.weight, self.shape, None, N)


class Blocked:
    """The same with W in blocks of oneDNN's choice, fp32 or bf16."""

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


class Transposed:
    """The same with Wᵀ in memory, for what this CPU's libraries have no layout for."""

    def __init__(self, weight: Tensor):
        self.weight = weight.T.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Plain:
    """The same with W as it is: cuBLAS takes it either way."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def layout(weight: Tensor) -> type[Packed | Blocked | Transposed | Plain]:
    """What is fast for this matrix, where it is."""
    if weight.is_cuda:
        return Plain
    if PACKS and weight.dtype == torch.float32:
        return Packed if INTEL else Blocked
    bf16 = PACKS and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # with AVX-512
    return Blocked if bf16 and weight.dtype == torch.bfloat16 else Transposed


def product(*parts: nn.Linear, take: bool) -> Callable[[Tensor], Tensor]:
    """The products with all parts as one, in the layout that is fast where they are. With `take`,
    the parts lose their weights, so that there are not two of each in memory.
    """
    weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
    laid = layout(weight)(weight)
    if take:
        for part in parts:
            part.weight = None
    return laid


class DecoderBlock:
    """x + attention(norm(x)), then x + mlp(norm(x)), both sums in the place of x."""

    def __init__(self, block: Block, layer: int, take: bool):
        attention, mlp = block.self_attn, block.mlp
        self.layer, self.head_dim = layer, attention.head_dim
        self.heads = [
            part.out_features // self.head_dim
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        norms = block.input_layernorm, block.post_attention_layernorm
        self.norms = [normalisation(norm) for norm in norms]
        self.qkv = product(attention.q_proj, attention.k_proj, attention.v_proj, take=take)
        self.o = product(attention.o_proj, take=take)
        self.gate_up = product(mlp.gate_proj, mlp.up_proj, take=take)
        self.down = product(mlp.down_proj, take=take)

    def __call__(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = self.split(x, table)
        x += self.o(attend(self.layer, q, k, v).flatten(-2))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)  # (N, F) each
        x += self.down(F.silu(gate).mul_(up))
        return x

    def split(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, Dh), keys and values (N, G, Dh)."""
        H, G, _ = self.heads
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (-1, self.head_dim))  # (N, H + 2G, Dh)
        q, k = turned(qkv[:, : H + G], table).split([H, G], dim=1)
        return q, k, qkv[:, H + G :]


class Norm:
    """`model.RMSNorm`, w · x / √(|x|²/D + ε), in fewer passes over x. Inside, 16 bits are 32."""

    def __init__(self, norm: RMSNorm):
        self.weight = norm.weight.detach()
        self.wide = torch.promote_types(self.weight.dtype, torch.float32)
        self.scale = 1 / math.sqrt(len(self.weight))
        self.floor = torch.tensor(math.sqrt(norm.eps), dtype=self.wide)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.wide)
        return (x / length.mul_(self.scale).hypot_(self.floor)).mul_(self.weight).to(x.dtype)


def normalisation(norm: RMSNorm) -> Callable[[Tensor], Tensor]:
    """The norm as it is fast: a GPU has a kernel for it."""
    return norm if norm.weight.is_cuda else Norm(norm)


def turned(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`model.rotate` of x (N, heads, Dh) by cosines (N, 1, Dh) and sines (N, 1, Dh/2)."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    whole = x * cos
    for half, other, sign in zip(whole.chunk(2, dim=-1), (second, first), (-1, 1)):
        half.addcmul_(other, sin, value=sign)  # in place: fewer passes than a sum
    return whole.to(x.dtype)


class Decoder:
    """Token ids to hidden states and logits, with a cache in the place of a row's attention."""

    def __init__(self, policy: Policy, take: bool = False):
        """With `take` the policy's weights move here, and it cannot be used any more."""
        self.config, self.impl = policy.config, policy.impl
        self.embedding = policy.model.embed_tokens.weight.detach()
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        with torch.no_grad():
            self.blocks = [
                DecoderBlock(block, layer, take) for layer, block in enumerate(policy.model.layers)
            ]
            self.norm = normalisation(policy.model.norm)
            self.head = product(policy.lm_head, take=take)
        # Rotary angles of all positions, in fp32 as everywhere.
        places = torch.arange(self.config.max_position_embeddings, device=self.device)
        self.cos, sin = rotary_table(places, self.config)
        self.sin = sin.chunk(2, dim=-1)[0].contiguous()  # the other half is the same

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions (N,) -> hidden states (N, D), normalised."""
        x, table = self.enter(tokens, positions)
        for block in self.blocks:
            x = block(x, table, attend)
        return self.norm(x)

    def remember(self, tokens: Tensor, positions: Tensor, attend: Attend, store: Store) -> None:
        """The same for the keys and values alone: the last block makes them of what comes into it,
        and nobody reads what would come out.
        """
        x, table = self.enter(tokens, positions)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, table, attend)
        _, k, v = last.split(x, table)
        store(last.layer, k, v)

    def enter(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Embedded tokens (N, D), and what turns queries and keys at their positions."""
        x = F.embedding(tokens, self.embedding)
        return x, (self.cos[positions], self.sin[positions])
