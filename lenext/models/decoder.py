"""A decoder: pre-norm transformer for causal language modelling, of Llama's kind."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, Pattern, count_tokens, row_statistics
from lenext.models.blocks import (
    INIT_STDDEV,
    MLP,
    NORMS,
    AttentionCall,
    Linears,
    SelfAttention,
    dropped,
)
from lenext.models.layers import Attention, Context, Head, KVCache, run_layers, split_dropout

Ar = Array | np.ndarray


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
      norm: "rms", with a gain, or "layer", with a gain and an offset.
      norm_epsilon: added to the mean square before its root.
      qk_norm: RMS normalisation, with a gain, of every query and key (arXiv 2302.05442).
      max_positions: learned embeddings of absolute positions, added to the tokens'; 0 for none.
      tied_head: the head is the embedding.
      dropout: rate on embeddings and on what layers add.
      use_bias: biases on the dense maps.
      attention_bias: on which maps of attention even so, of "qkvo".
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
    norm: str = "rms"
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    max_positions: int = 0
    tied_head: bool = True
    dropout: float = 0.0
    use_bias: bool = False
    attention_bias: str = ""
    remat: bool = False
    dtype: str = "float32"


class DecoderLayer(nnx.Module):
    """x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, config: DecoderConfig, method: Method, linear: Linears):
        hidden, norm, epsilon = config.hidden_size, NORMS[config.norm], config.norm_epsilon
        self.attention_norm = norm(hidden, epsilon)
        self.self_attention = SelfAttention(
            hidden_size=hidden,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias="qkvo" if config.use_bias else config.attention_bias,
            qk_norm=epsilon if config.qk_norm else None,
            method=method,
            causal=True,
            linear=linear,
        )
        self.mlp_norm = norm(hidden, epsilon)
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
        x = x + dropped(self.dropout, out, dropout_key, 0)
        return x + dropped(self.dropout, self.mlp(self.mlp_norm(x)), dropout_key, 1), extra


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
        methods = Pattern.of(methods).over(config.num_layers)
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            embedding_init=nnx.initializers.normal(INIT_STDDEV),
            rngs=rngs,
        )
        self.position_embedding = (
            nnx.Embed(
                config.max_positions,
                config.hidden_size,
                embedding_init=nnx.initializers.normal(INIT_STDDEV),
                rngs=rngs,
            )
            if config.max_positions
            else None
        )
        self.dropout = nnx.Dropout(config.dropout)
        linear = Linears(config.num_layers, config.dtype, rngs)
        self.layers = nnx.List(DecoderLayer(config, method, linear) for method in methods)
        self.norm = NORMS[config.norm](config.hidden_size, config.norm_epsilon)
        self.head = (
            None
            if config.tied_head
            else linear(config.hidden_size, config.vocab_size, use_bias=False)
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
        x = self._embed(tokens, positions)
        x = self.dropout(x, deterministic=dropout_key is None, rngs=dropout_key)
        length = count_tokens(mask, segment_ids, tokens.shape[1])
        context = Context(mask, positions, segment_ids, length, probe, look)

        def apply(layer: DecoderLayer, x: Array, key: Array | None):
            def call(attention: Attention, q: Array, k: Array, v: Array):
                return attention(q, k, v, context)

            return layer(x, call, dropout_key=key)

        remat = self.config.remat
        x, rows = run_layers(self.layers, x, keys, apply, remat=remat, unroll=unroll)
        return self.norm(x), rows

    def _embed(self, tokens: Int[Array, "B T"], positions: Array | None) -> Array:
        """What enters the first layer, in the compute type.

        Raises:
          ValueError: more tokens than there are learned positions.
        """
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            length, limit = tokens.shape[1], self.config.max_positions
            if length > limit:
                raise ValueError(f"{length} tokens: the model has {limit} learned positions")
            at = jnp.arange(length) if positions is None else positions
            learned = self.position_embedding(at)
            x = x + learned.reshape(-1, length, x.shape[-1])
        return x.astype(self.config.dtype)

    def head_weights(self) -> Head:
        """What makes logits of hidden states."""
        if self.head is None:
            return Head(self.embedding.embedding[...], None, "vd")
        return Head(self.head.kernel[...], None, "dv")

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
        self,
        tokens: Int[Array, "B T"],
        first: Int[Array, ""],
        caches: list[KVCache],
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B V"], list[KVCache]]:
        """Logits for the token after the last, and caches that hold the T tokens given.

        Args:
          tokens: the next T tokens of every sequence: all of a prompt, a part of it, or one.
          first: position of the first of them.
          caches: from `empty_caches` or the step before.
          length: of the text, in tokens, for methods that follow it; default: up to the last of
            these tokens. Where a prompt comes in parts, that of all of it.
        """
        length = first + tokens.shape[1] if length is None else length
        positions = first + jnp.arange(tokens.shape[1])
        x = self._embed(tokens, positions)
        after = []
        # One by one: a scan would copy all weights together for every token.
        for layer, cache in zip(self.layers, caches, strict=True):

            def call(attention: Attention, q: Array, k: Array, v: Array, cache: KVCache = cache):
                return attention.step(q, k, v, positions, length, cache)

            x, cache = layer(x, call, dropout_key=None)
            after.append(cache)
        return self.logits(self.norm(x[:, -1:]))[:, 0], after
