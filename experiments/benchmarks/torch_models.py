"""Our models once more, in plain PyTorch: the peers of `training_step`.

Parameters have our names, so that a copy is a `load_state_dict`. What the benchmark does not train
(biases, dropout, grouped heads, a head of its own) is not here; such a config's weights do not fit.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from lenext.config import Config

BASE = 10000.0


class Rotation(nn.Module):
    """RoPE on interleaved pairs of [B, N, T, H], angles computed once for all positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, dim: int):
        super().__init__()
        frequencies = BASE ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x with its pairs turned, first members before second ones."""
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.cat(
            [first * self.cos - second * self.sin, first * self.sin + second * self.cos], dim=-1
        )


class RMSNorm(nn.Module):
    """With a gain."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Along the last axis."""
        return F.rms_norm(x, self.scale.shape, self.scale, eps=1e-6)


class SelfAttention(nn.Module):
    """Causal, through torch's fused attention."""

    def __init__(self, width: int, heads: int, dim: int):
        super().__init__()
        self.dim = dim
        linear = functools.partial(nn.Linear, bias=False)
        self.q_proj = linear(width, heads * dim)
        self.k_proj = linear(width, heads * dim)
        self.v_proj = linear(width, heads * dim)
        self.o_proj = linear(heads * dim, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """What attention adds to x."""
        q, k, v = (
            p(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(rotation(q), rotation(k), v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the MLP adds to x."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden_size
        self.attention_norm = RMSNorm(width)
        self.self_attention = SelfAttention(width, config.num_heads, config.key_size)
        self.mlp_norm = RMSNorm(width)
        self.mlp = MLP(width, config.intermediate_size)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x, one layer on."""
        x = x + self.self_attention(self.attention_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """`lenext.models.Decoder` with softmax, SwiGLU and a tied head."""

    def __init__(self, config: Config, vocab_size: int, length: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.rotation = Rotation(length, config.key_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] for the token after each of [B, T]."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.rotation)
        return F.linear(self.norm(x), self.embedding.weight)


class Scale(nn.Module):
    """A gain a dimension."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x times the gain."""
        return x * self.scale


class GAULayer(nn.Module):
    """A gated attention unit, post-norm."""

    def __init__(self, config: Config):
        super().__init__()
        self.sizes = [config.intermediate_size, config.intermediate_size, config.key_size]
        self.i_dense = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.o_dense = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.q_scale = Scale(config.key_size)
        self.k_scale = Scale(config.key_size)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x, one unit on."""
        u, v, z = F.silu(self.i_dense(x)).split(self.sizes, dim=-1)
        q, k = rotation(self.q_scale(z)), rotation(self.k_scale(z))
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return plain_norm(x + self.o_dense(u * out))


class GAUEncoder(nn.Module):
    """`lenext.models.GAUEncoder` with softmax."""

    def __init__(self, config: Config, vocab_size: int, length: int):
        super().__init__()
        self.word_embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.type_embedding = nn.Embedding(2, config.hidden_size)
        self.rotation = Rotation(length, config.key_size)
        self.layers = nn.ModuleList(GAULayer(config) for _ in range(config.num_layers))

    def forward(self, tokens: Tensor, predicted: Tensor) -> Tensor:
        """Logits [B, P, V] at the places `predicted` [B, P] of tokens [B, T], all of type 0."""
        x = plain_norm(self.word_embedding(tokens) + self.type_embedding.weight[0])
        for layer in self.layers:
            x = layer(x, self.rotation)
        x = x.take_along_dim(predicted[:, :, None], dim=1)
        return F.linear(x, self.word_embedding.weight)


def plain_norm(x: Tensor) -> Tensor:
    """RMS normalisation without gain."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-12)


FAMILIES: dict[str, Any] = {"decoder": Decoder, "gau": GAUEncoder}
KINDS = {"kernel": "weight", "embedding": "weight", "scale": "scale"}


def twin(config: Config, vocab_size: int, params: Mapping[str, np.ndarray]) -> nn.Module:
    """The model of a whole config, with `params`, our model's by public names, copied into it.

    Raises:
      RuntimeError: the config describes what is not written here.
    """
    model = FAMILIES[config.model.family](config.model, vocab_size, config.data.train_length)
    state = {}
    for name, x in params.items():
        owners, _, kind = name.rpartition(".")
        value = torch.from_numpy(np.array(x))
        # Ours are [inputs, outputs].
        state[f"{owners}.{KINDS.get(kind, kind)}"] = value.T if kind == "kernel" else value
    model.load_state_dict(state, strict=True)
    return model


def make_step(
    model: nn.Module, optimizer: Config, batch: dict[str, np.ndarray], *, compiled: bool
) -> Callable[[], float]:
    """A call of it is a training step on `batch` and gives the loss before it, in nats a target.

    Args:
      model: from `twin`; trained in place.
      optimizer: the section of the config: AdamW at its peak rate, no schedule, matrices decayed,
        gradients clipped.
      batch: as `lenext.models.token_figures` takes it.
      compiled: through torch.compile, forward and backward.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=optimizer.learning_rate, betas=(optimizer.b1, optimizer.b2), fused=True
    )
    call = torch.compile(model) if compiled else model
    data = {
        name: torch.from_numpy(x if name == "weights" else x.astype(np.int64))
        for name, x in batch.items()
    }
    targets, weights = data.pop("targets").flatten(), data.pop("weights").flatten()

    def step() -> float:
        logits = call(**data)
        losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optimizer.clip_norm)
        adamw.step()
        return loss.item()

    return step
