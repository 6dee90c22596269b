"""A decoder: pre-norm transformer for causal language modelling, of Llama's kind."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, row_statistics
from lenext.models.layers import (
    Attention,
    Context,
    Head,
    KVCache,
    dense,
    rms_norm,
    run_layers,
    split_dropout,
)

Ar = Array | np.ndarray

EPSILON = 1e-6
INIT_STDDEV = 0.02


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a `Decoder`.

    Attributes:
      vocab_size: V.
      hidden_size: D, width of the residual stream.
      intermediate_size: width inside the MLP.
      num_layers: depth.
      num_heads: N, query heads.
      num_kv_heads: K, heads of keys and values; N is a multiple of it.
      head_dim: H.
      mlp: "gated" (SwiGLU) or "plain" (GELU).
      qk_norm: RMS normalisation, with a gain, of every query and key (arXiv 2302.05442).
      tied_head: the head is the embedding.
      dropout: rate on embeddings and on what layers add.
      use_bias: biases on the dense maps.
      remat: the backward pass computes each layer anew instead of keeping what it needs.
      dtype: compute type; parameters, normalisation and attention rows stay float32.
    """

    vocab_size: int
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int = 12
    head_dim: int = 64
    mlp: str = "gated"
    qk_norm: bool = False
    tied_head: bool = True
    dropout: float = 0.0
    use_bias: bool = False
    remat: bool = False
    dtype: str = "float32"


class RMSNorm(nnx.Module):
    """RMS normalisation with a gain (arXiv 1910.07467)."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Along the last axis, in float32, given back in x's type."""
        gain = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (rms_norm(x.astype(jnp.float32), EPSILON) * gain).astype(x.dtype)


AttentionCall = Callable[[Attention, Array, Array, Array], tuple[Array, Any]]
"""(attention, q, k, v) to outputs and whatever else there is: statistics, or a cache."""


class SelfAttention(nnx.Module):
    """Projections around the attention seam; queries in groups share a head of keys and values."""

    def __init__(self, config: DecoderConfig, method: Method, *, rngs: nnx.Rngs):
        self.config = config
        width, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
        make = functools.partial(_linear, config, rngs=rngs)
        self.q_proj = make(config.hidden_size, heads * width)
        self.k_proj = make(config.hidden_size, kv_heads * width)
        self.v_proj = make(config.hidden_size, kv_heads * width)
        self.o_proj = make(heads * width, config.hidden_size, into_residual=True)
        self.q_norm = RMSNorm(width) if config.qk_norm else None
        self.k_norm = RMSNorm(width) if config.qk_norm else None
        self.attention = Attention(method, num_heads=heads, head_dim=width, causal=True)

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What attention adds to x, and what else `call` gives."""
        shape = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (dense(p, x).reshape(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, extra = call(self.attention, q, k, v)
        return dense(self.o_proj, out.reshape(*x.shape[:2], -1)), extra


class MLP(nnx.Module):
    """down(silu(gate x) * up x), or down(gelu(up x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        make = functools.partial(_linear, config, rngs=rngs)
        gated = config.mlp == "gated"
        self.gate_proj = make(config.hidden_size, config.intermediate_size) if gated else None
        self.up_proj = make(config.hidden_size, config.intermediate_size)
        self.down_proj = make(config.intermediate_size, config.hidden_size, into_residual=True)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What the MLP adds to x."""
        up = dense(self.up_proj, x)
        inner = (
            jax.nn.gelu(up)
            if self.gate_proj is None
            else jax.nn.silu(dense(self.gate_proj, x)) * up
        )
        return dense(self.down_proj, inner)


class DecoderLayer(nnx.Module):
    """x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, config: DecoderConfig, method: Method, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size)
        self.self_attention = SelfAttention(config, method, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size)
        self.mlp = MLP(config, rngs=rngs)
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
        x = x + self._dropped(out, dropout_key, 0)
        return x + self._dropped(self.mlp(self.mlp_norm(x)), dropout_key, 1), extra

    def _dropped(self, x: Array, key: Array | None, place: int) -> Array:
        rngs = None if key is None else jax.random.fold_in(key, place)
        return self.dropout(x, deterministic=key is None, rngs=rngs)


class Decoder(nnx.Module):
    """Token embedding, pre-norm layers, a last norm and a head.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "causal_lm"

    def __init__(
        self, config: DecoderConfig, methods: Method | Sequence[Method], *, rngs: nnx.Rngs
    ):
        self.config = config
        pattern = (methods,) if isinstance(methods, Method) else tuple(methods)
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            embedding_init=nnx.initializers.normal(INIT_STDDEV),
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(config.dropout)
        self.layers = nnx.List(
            DecoderLayer(config, pattern[i % len(pattern)], rngs=rngs)
            for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size)
        self.head = (
            None
            if config.tied_head
            else _linear(config, config.hidden_size, config.vocab_size, rngs=rngs)
        )

    def encode(
        self,
        tokens: Int[Array, "B T"],
        *,
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
        dropout_key, keys = split_dropout(dropout_key, len(self.layers))
        x = self.embedding(tokens).astype(self.config.dtype)
        x = self.dropout(x, deterministic=dropout_key is None, rngs=dropout_key)
        context = Context(mask, positions, segment_ids, probe, look)

        def apply(layer: DecoderLayer, x: Array, key: Array | None):
            def call(attention: Attention, q: Array, k: Array, v: Array):
                return attention(q, k, v, context)

            return layer(x, call, dropout_key=key)

        remat = self.config.remat
        x, rows = run_layers(self.layers, x, keys, apply, remat=remat, unroll=unroll)
        return self.norm(x), rows

    def head_weights(self) -> Head:
        """What makes logits of hidden states."""
        if self.head is None:
            return Head(self.embedding.embedding[...], None, "vd")
        bias = self.head.bias
        return Head(self.head.kernel[...], None if bias is None else bias[...], "dv")

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits over the vocabulary for hidden states."""
        return self.head_weights()(hidden.astype(self.config.dtype))

    def __call__(
        self,
        tokens: Int[Ar, "B T"],
        *,
        mask: Bool[Ar, "B T"] | None = None,
        positions: Int[Ar, "..."] | None = None,
        segment_ids: Int[Ar, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits for the token after each."""
        given = {"mask": mask, "positions": positions, "segment_ids": segment_ids}
        hidden, _ = self.encode(jnp.asarray(tokens), **jax.tree.map(jnp.asarray, given))
        return self.logits(hidden)

    def empty_caches(self, batch: int, capacity: int) -> list[KVCache]:
        """One cache a layer, for `step` over sequences of up to `capacity` tokens."""
        config = self.config
        return [
            layer.attention.empty_cache(batch, capacity, config.num_kv_heads, config.dtype)
            for layer in self.layers
        ]

    def step(
        self, tokens: Int[Array, "B T"], first: Int[Array, ""], caches: list[KVCache]
    ) -> tuple[Float[Array, "B V"], list[KVCache]]:
        """Logits for the token after the last, and caches that hold the T tokens given.

        Args:
          tokens: the next T tokens of every sequence: all of a prompt, a part of it, or one.
          first: position of the first of them.
          caches: from `empty_caches` or the step before.

        A factor that follows the whole length (`pi`, `ntk`, `yarn` without `scale`) would follow
        the cache's size here: fix it beforehand, with `lenext.attention.pin_scale`.
        """
        positions = first + jnp.arange(tokens.shape[1])
        x = self.embedding(tokens).astype(self.config.dtype)
        after = []
        # One by one: a scan would copy all weights together for every token.
        for layer, cache in zip(self.layers, caches, strict=True):

            def call(attention: Attention, q: Array, k: Array, v: Array, cache: KVCache = cache):
                return attention.step(q, k, v, positions, cache)

            x, cache = layer(x, call, dropout_key=None)
            after.append(cache)
        return self.logits(self.norm(x[:, -1:]))[:, 0], after


def _linear(
    config: DecoderConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs, into_residual: bool = False
) -> nnx.Linear:
    """Maps into the residual stream start smaller, by the number of them (GPT-2's way)."""
    stddev = INIT_STDDEV / (2 * config.num_layers) ** 0.5 if into_residual else INIT_STDDEV
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=config.use_bias,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nnx.initializers.normal(stddev),
        rngs=rngs,
    )
