"""A decoder: pre-norm transformer for causal language modelling, of Llama's kind."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lenext.attention import AnyMethod
from lenext.config import ModelConfig
from lenext.models.attention import Attention
from lenext.models.language_model import LanguageModel
from lenext.models.parts import (
    MLP,
    NORMS,
    CentredRMSNorm,
    Embedding,
    Head,
    Linears,
    RMSNorm,
    SelfAttention,
    dropped,
)
from lenext.models.stack import AttentionCall
from lenext.parallel.meshes import LINES


class DecoderLayer(nnx.Module):
    """x + attention(norm x), then x + MLP(norm x); or the sum of both on the same x.

    With `post_norm`, what is added to x is normalised, too.
    """

    def __init__(self, config: ModelConfig, method: AnyMethod, linear: Linears):
        hidden, norm, epsilon = config.hidden_size, NORMS[config.norm], config.norm_epsilon
        queries = CentredRMSNorm if norm is CentredRMSNorm else RMSNorm
        self.parallel = config.parallel_residual
        self.attention_norm = norm(hidden, epsilon)
        self.self_attention = SelfAttention(
            hidden_size=hidden,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.key_size,
            bias="qkvo" if config.use_bias else config.attention_bias,
            qk_norm=functools.partial(queries, config.key_size, epsilon)
            if config.qk_norm
            else None,
            method=method,
            causal=True,
            linear=linear,
        )
        self.attention_post_norm = norm(hidden, epsilon) if config.post_norm else None
        self.mlp_norm = norm(hidden, epsilon)
        self.mlp_post_norm = norm(hidden, epsilon) if config.post_norm else None
        self.mlp = MLP(
            hidden_size=hidden,
            intermediate_size=config.intermediate_size,
            kind=config.mlp,
            use_bias=config.use_bias,
            linear=linear,
        )
        self.dropout = nnx.Dropout(config.dropout)

    @property
    def attention(self) -> Attention:
        """The seam, where methods are swapped."""
        return self.self_attention.attention

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall, *, dropout_key: Array | None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one layer on; and what else `call` gives."""
        out, extra = self.self_attention(self.attention_norm(x), call)
        out = out if self.attention_post_norm is None else self.attention_post_norm(out)
        after = x + dropped(self.dropout, out, dropout_key, 0)
        inner = self.mlp(self.mlp_norm(x if self.parallel else after))
        inner = inner if self.mlp_post_norm is None else self.mlp_post_norm(inner)
        return after + dropped(self.dropout, inner, dropout_key, 1), extra


class Decoder(LanguageModel):
    """Token embedding, pre-norm layers, a last norm and a head.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "causal_lm"
    norm_epsilon: ClassVar[float] = 1e-6

    def __init__(
        self, config: ModelConfig, methods: AnyMethod | Sequence[AnyMethod], *, rngs: nnx.Rngs
    ):
        config = self.settled(config)
        hidden = config.hidden_size
        self.embedding = Embedding(config.vocab_size, hidden, config, rngs, split=LINES)
        self.position_embedding = (
            Embedding(config.max_positions, hidden, config, rngs) if config.max_positions else None
        )
        linear = Linears(config, rngs)
        super().__init__(config, methods, lambda method: DecoderLayer(config, method, linear))
        self.norm = NORMS[config.norm](hidden, config.norm_epsilon)
        head = functools.partial(linear, hidden, config.vocab_size, use_bias=False, kind="head")
        self.head = None if config.tied_head else head()

    def embed(self, tokens, positions, token_types):
        """What enters the first layer.

        Raises:
          ValueError: more tokens than there are learned positions; or token types.
        """
        if token_types is not None:
            raise ValueError("token_types: should be None, a decoder has none")
        x = self.embedding(tokens)
        if self.config.scaled_embedding:
            x = x * math.sqrt(self.config.hidden_size)
        if self.position_embedding is None:
            return x
        length, limit = tokens.shape[1], self.config.max_positions
        if length > limit:
            raise ValueError(f"{length} tokens: the model has {limit} learned positions")
        at = jnp.arange(length, dtype=jnp.int32) if positions is None else positions
        return x + self.position_embedding(at).reshape(-1, length, x.shape[-1])

    def finish(self, x):  # noqa: D102
        return self.norm(x)

    def head_weights(self) -> Head:  # noqa: D102
        if self.head is None:
            return Head(self.embedding.embedding[...], None, "vd", self.config.logit_softcap)
        return Head(self.head.kernel[...], None, "dv", self.config.logit_softcap)
