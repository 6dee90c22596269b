"""An encoder of post-norm transformer layers for masked language modelling, of RoFormer's kind."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lenext.attention import AnyMethod
from lenext.config import ModelConfig
from lenext.models.attention import Attention
from lenext.models.language_model import LanguageModel
from lenext.models.parts import (
    MLP,
    Embedding,
    Head,
    LayerNorm,
    Linears,
    SelfAttention,
    dense,
    dropped,
)
from lenext.models.stack import AttentionCall
from lenext.parallel.meshes import LINES


class EncoderLayer(nnx.Module):
    """norm(x + attention x), then norm(x + MLP x); biases everywhere."""

    def __init__(self, config: ModelConfig, method: AnyMethod, linear: Linears):
        hidden = config.hidden_size
        self.self_attention = SelfAttention(
            hidden_size=hidden,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.key_size,
            bias="qkvo",
            qk_norm=None,
            method=method,
            causal=False,
            linear=linear,
        )
        self.attention_norm = LayerNorm(hidden, config.norm_epsilon)
        self.mlp = MLP(
            hidden_size=hidden,
            intermediate_size=config.intermediate_size,
            kind="erf",
            use_bias=True,
            linear=linear,
        )
        self.mlp_norm = LayerNorm(hidden, config.norm_epsilon)
        self.dropout = nnx.Dropout(config.dropout)

    @property
    def attention(self) -> Attention:
        """The seam, where methods are swapped."""
        return self.self_attention.attention

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall, *, dropout_key: Array | None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one layer on; and what else `call` gives."""
        out, extra = self.self_attention(x, call)
        x = self.attention_norm(x + dropped(self.dropout, out, dropout_key, 0))
        return self.mlp_norm(x + dropped(self.dropout, self.mlp(x), dropout_key, 1)), extra


class Encoder(LanguageModel):
    """Token and type embeddings, post-norm layers, and BERT's head, tied to the embedding.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "masked_lm"
    token_embedding: ClassVar[str] = "word_embedding.embedding"

    def __init__(
        self, config: ModelConfig, methods: AnyMethod | Sequence[AnyMethod], *, rngs: nnx.Rngs
    ):
        config = self.settled(config)
        hidden, epsilon = config.hidden_size, config.norm_epsilon
        self.word_embedding = Embedding(config.vocab_size, hidden, config, rngs, split=LINES)
        self.type_embedding = Embedding(config.type_vocab_size, hidden, config, rngs)
        self.embedding_norm = LayerNorm(hidden, epsilon)
        linear = Linears(config, rngs)
        super().__init__(config, methods, lambda method: EncoderLayer(config, method, linear))
        self.transform = linear(hidden, hidden, use_bias=True, kind="head")
        self.transform_norm = LayerNorm(hidden, epsilon)
        self.head_bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def embed(self, tokens, positions, token_types):  # noqa: D102
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        return self.embedding_norm(self.word_embedding(tokens) + self.type_embedding(types))

    def finish(self, x):  # noqa: D102
        x = jax.nn.gelu(dense(self.transform, x), approximate=False)
        return self.transform_norm(x)

    def head_weights(self) -> Head:  # noqa: D102
        return Head(self.word_embedding.embedding[...], self.head_bias[...], "vd")
