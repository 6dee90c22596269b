"""GAU-alpha: a bidirectional encoder of gated attention units, for masked language modelling."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, Pattern, count_tokens, row_statistics
from lenext.models.layers import (
    Attention,
    Context,
    Head,
    dense,
    rms_norm,
    run_layers,
    split_dropout,
)

Ar = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class GAUConfig:
    """Sizes of a `GAUEncoder`.

    Attributes:
      vocab_size: V.
      hidden_size: D, width of the residual stream.
      intermediate_size: E, width of the gate u and of the values v.
      key_size: H, size of the one shared key and query head.
      num_layers: depth.
      type_vocab_size: token types (GAU-alpha's segments of a sentence pair).
      norm_epsilon: added to the mean square before its root.
      dropout: rate on embeddings and layer outputs.
      use_bias: biases on the dense maps and offsets on q and k.
      remat: the backward pass computes each layer anew instead of keeping what it needs.
      dtype: compute type; parameters, normalisation and attention rows stay float32.
    """

    vocab_size: int
    hidden_size: int = 768
    intermediate_size: int = 1536
    key_size: int = 128
    num_layers: int = 24
    type_vocab_size: int = 2
    norm_epsilon: float = 1e-12
    dropout: float = 0.0
    use_bias: bool = False
    remat: bool = False
    dtype: str = "float32"


class ScaleOffset(nnx.Module):
    """Per-dimension gain (and offset) that makes q or k of the shared z."""

    def __init__(self, dim: int, *, use_bias: bool):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.offset = nnx.Param(jnp.zeros((dim,), jnp.float32)) if use_bias else None

    def __call__(self, z: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
        """Z times the gain, plus the offset if there is one."""
        out = z * self.scale[...].astype(z.dtype)[None, None]
        return out if self.offset is None else out + self.offset[...].astype(z.dtype)[None, None]


class GAULayer(nnx.Module):
    """One gated attention unit (arXiv 2202.10447, as in GAU-alpha), post-norm."""

    def __init__(self, config: GAUConfig, method: Method, *, rngs: nnx.Rngs):
        self.config = config
        dims = config.hidden_size, config.intermediate_size, config.key_size
        hidden, intermediate, key = dims
        dense = {"use_bias": config.use_bias, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.i_dense = nnx.Linear(hidden, 2 * intermediate + key, **dense)
        self.o_dense = nnx.Linear(intermediate, hidden, **dense)
        self.q_scale = ScaleOffset(key, use_bias=config.use_bias)
        self.k_scale = ScaleOffset(key, use_bias=config.use_bias)
        self.attention = Attention(method, num_heads=1, head_dim=key, causal=False)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        *,
        dropout_key: Array | None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one unit on; and what a look at the probed rows gives."""
        e = self.config.intermediate_size
        u, v, z = jnp.split(jax.nn.silu(dense(self.i_dense, x)), [e, 2 * e], axis=-1)
        q, k = self.q_scale(z), self.k_scale(z)
        out, seen = self.attention(q[:, :, None], k[:, :, None], v[:, :, None], context)
        out = dense(self.o_dense, u * out[:, :, 0])
        out = self.dropout(out, deterministic=dropout_key is None, rngs=dropout_key)
        return rms_norm(x + out, self.config.norm_epsilon), seen


class GAUEncoder(nnx.Module):
    """Token and type embeddings, gated attention units, and a head tied to the embedding.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "masked_lm"

    def __init__(self, config: GAUConfig, methods: Method | Sequence[Method], *, rngs: nnx.Rngs):
        self.config = config
        methods = Pattern.of(methods).over(config.num_layers)
        embed = {
            "features": config.hidden_size,
            "embedding_init": nnx.initializers.normal(0.02),
            "rngs": rngs,
        }
        self.word_embedding = nnx.Embed(config.vocab_size, **embed)
        self.type_embedding = nnx.Embed(config.type_vocab_size, **embed)
        self.dropout = nnx.Dropout(config.dropout)
        self.layers = nnx.List(GAULayer(config, method, rngs=rngs) for method in methods)

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
        """Hidden states, and what is seen of the attention rows `probe`.

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
          default `RowStatistics` of shape [layers, B, 1, R].
        """
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        dropout_key, keys = split_dropout(dropout_key, len(self.layers))
        x = self.word_embedding(tokens) + self.type_embedding(types)
        x = rms_norm(x, self.config.norm_epsilon)
        x = self.dropout(x, deterministic=dropout_key is None, rngs=dropout_key)

        length = count_tokens(mask, segment_ids, tokens.shape[1])
        context = Context(mask, positions, segment_ids, length, probe, look)

        def apply(layer: GAULayer, x: Array, key: Array | None):
            return layer(x, context, dropout_key=key)

        x = x.astype(self.config.dtype)
        return run_layers(self.layers, x, keys, apply, remat=self.config.remat, unroll=unroll)

    def head_weights(self) -> Head:
        """What makes logits of hidden states."""
        return Head(self.word_embedding.embedding[...], None, "vd")

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
