"""An encoder of post-norm transformer layers for masked language modelling, of RoFormer's kind."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, Pattern, count_tokens, row_statistics
from lenext.models.blocks import INIT_STDDEV, MLP, LayerNorm, Linears, SelfAttention, dropped
from lenext.models.layers import Attention, Context, Head, dense, run_layers, split_dropout

Ar = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an `Encoder`.

    Attributes:
      vocab_size: V.
      hidden_size: D, width of the residual stream.
      intermediate_size: width inside the MLP.
      num_layers: depth.
      num_heads: N.
      head_dim: H.
      type_vocab_size: token types (segments of a sentence pair).
      norm_epsilon: added to the variance before its root.
      dropout: rate on embeddings and on what layers add.
      remat: the backward pass computes each layer anew instead of keeping what it needs.
      dtype: compute type; parameters, normalisation and attention rows stay float32.
    """

    vocab_size: int
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int = 64
    type_vocab_size: int = 2
    norm_epsilon: float = 1e-12
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"


class EncoderLayer(nnx.Module):
    """norm(x + attention x), then norm(x + MLP x); biases everywhere."""

    def __init__(self, config: EncoderConfig, method: Method, linear: Linears):
        hidden = config.hidden_size
        self.self_attention = SelfAttention(
            hidden_size=hidden,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.head_dim,
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
        self, x: Float[Array, "B T D"], context: Context, *, dropout_key: Array | None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one layer on; and what a look at the probed rows gives."""

        def call(attention: Attention, q: Array, k: Array, v: Array):
            return attention(q, k, v, context)

        out, seen = self.self_attention(x, call)
        x = self.attention_norm(x + dropped(self.dropout, out, dropout_key, 0))
        return self.mlp_norm(x + dropped(self.dropout, self.mlp(x), dropout_key, 1)), seen


class Encoder(nnx.Module):
    """Token and type embeddings, post-norm layers, and BERT's head, tied to the embedding.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "masked_lm"

    def __init__(
        self, config: EncoderConfig, methods: Method | Sequence[Method], *, rngs: nnx.Rngs
    ):
        self.config = config
        methods = Pattern.of(methods).over(config.num_layers)
        embed = {
            "features": config.hidden_size,
            "embedding_init": nnx.initializers.normal(INIT_STDDEV),
            "rngs": rngs,
        }
        self.word_embedding = nnx.Embed(config.vocab_size, **embed)
        self.type_embedding = nnx.Embed(config.type_vocab_size, **embed)
        self.embedding_norm = LayerNorm(config.hidden_size, config.norm_epsilon)
        self.dropout = nnx.Dropout(config.dropout)
        linear = Linears(config.num_layers, config.dtype, rngs)
        self.layers = nnx.List(EncoderLayer(config, method, linear) for method in methods)
        self.transform = linear(config.hidden_size, config.hidden_size, use_bias=True)
        self.transform_norm = LayerNorm(config.hidden_size, config.norm_epsilon)
        self.head_bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def encode(
        self,
        tokens: Int[Array, "B T"],
        *,
        token_types: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "..."] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        dropout_key: Array | None = None,
        unroll: bool = False,
        probe: Int[Array, " R"] | None = None,
        look: Callable[..., Any] = row_statistics,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Hidden states that the head reads, and what is seen of the attention rows `probe`.

        Args:
          tokens: token ids.
          token_types: ids of token types; default 0.
          mask: False marks padding.
          positions: [B, T] or [T], in tokens; default 0..T-1.
          segment_ids: documents of a pack, which do not see each other; ids are only compared.
          dropout_key: turns dropout on.
          unroll: compiles every layer, not one for all: for backward passes, see `run_layers`.
          probe: indices of the query rows to look at.
          look: at those rows: a function of the arguments of `lenext.attention.row_statistics`,
            whose result gets the layers as a new first axis.

        Returns:
          Hidden states in the compute type, and what `look` gives (None without `probe`): by
          default `RowStatistics` of shape [layers, B, N, R].
        """
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        dropout_key, keys = split_dropout(dropout_key, len(self.layers))
        x = self.embedding_norm(self.word_embedding(tokens) + self.type_embedding(types))
        x = self.dropout(x, deterministic=dropout_key is None, rngs=dropout_key)
        length = count_tokens(mask, segment_ids, tokens.shape[1])
        context = Context(mask, positions, segment_ids, length, probe, look)

        def apply(layer: EncoderLayer, x: Array, key: Array | None):
            return layer(x, context, dropout_key=key)

        x = x.astype(self.config.dtype)
        remat = self.config.remat
        x, rows = run_layers(self.layers, x, keys, apply, remat=remat, unroll=unroll)
        x = jax.nn.gelu(dense(self.transform, x), approximate=False)
        return self.transform_norm(x), rows

    def head_weights(self) -> Head:
        """What makes logits of hidden states."""
        return Head(self.word_embedding.embedding[...], self.head_bias[...], "vd")

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits over the vocabulary for hidden states."""
        return self.head_weights()(hidden.astype(self.config.dtype))

    def __call__(
        self, tokens: Int[Ar, "B T"], *, mask: Bool[Ar, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Float32 logits for every token."""
        mask = None if mask is None else jnp.asarray(mask)
        hidden, _ = self.encode(jnp.asarray(tokens), mask=mask)
        return self.logits(hidden)
