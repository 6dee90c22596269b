"""What the models of all families share: the way from token ids to hidden states to logits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import AnyMethod, Pattern, count_tokens, methods_of, row_statistics
from lenext.config import ModelConfig
from lenext.models.attention import Attention, Context
from lenext.models.chunks import CHUNK, LONG, chunks_suit, run_in_chunks
from lenext.models.kv_cache import LayerCache
from lenext.models.parts import Head
from lenext.models.stack import run_layers, stack

Ar = Array | np.ndarray


class LanguageModel(nnx.Module):
    """Embeddings, a stack of layers, a last step, and a head.

    A family derives a class in a file of its own, names it in `lenext.models.build.FAMILIES`, and
    says: its embedding, `embed`; its layer; its last step, `finish`, where there is one; and what
    makes logits, `head_weights`. What a parameter is to others (how it is split over a mesh, and
    its kind) is said where it is made, see `lenext.models.parts.declared`.

    Args:
      config: sizes and types, `settled`.
      methods: one attention method, or a pattern that repeats over the layers.
      layer: makes a layer (see `lenext.models.stack.Layer`) with a method.

    Attributes:
      objective: what it is trained and judged by, a name in `lenext.models.objectives`.
      token_embedding: public name of the parameter whose rows are the tokens'.
      norm_epsilon: of the family, where a config says 0.
      layers: the stack.
    """

    objective: ClassVar[str]
    token_embedding: ClassVar[str] = "embedding.embedding"
    norm_epsilon: ClassVar[float] = 1e-12

    def __init__(
        self,
        config: ModelConfig,
        methods: AnyMethod | Sequence[AnyMethod],
        layer: Callable[[AnyMethod], Any],
    ):
        self.config = config
        self.dropout = nnx.Dropout(config.dropout)
        self.layers = stack(layer, Pattern.of(methods).over(config.num_layers))

    @classmethod
    def settled(cls, config: ModelConfig) -> ModelConfig:
        """The config with what its zeros stand for, but the vocabulary's."""
        return dataclasses.replace(
            config,
            num_kv_heads=config.num_kv_heads or config.num_heads,
            norm_epsilon=config.norm_epsilon or cls.norm_epsilon,
        )

    @property
    def methods(self) -> tuple[AnyMethod, ...]:
        """The method of each layer, first to last."""
        layers = self.layers if isinstance(self.layers, nnx.List) else [self.layers]
        return tuple(method for layer in layers for method in layer.attention.by_layer)

    @property
    def attention_channels(self) -> int:
        """Channels of a layer's queries and values, of all heads."""
        return 2 * self.config.num_heads * self.config.key_size

    def embed(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "..."] | None,
        token_types: Int[Array, "B T"] | None,
    ) -> Float[Array, "B T D"]:
        """What enters the first layer, before dropout."""
        raise NotImplementedError

    def finish(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What the head reads, of what leaves the last layer."""
        return x

    def head_weights(self) -> Head:
        """What makes logits of hidden states."""
        raise NotImplementedError

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
        in_parts: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Hidden states that the head reads, and what is seen of the attention rows `probe`.

        Args:
          tokens: token ids.
          token_types: ids of token types, in families that have them; default 0.
          mask: False marks padding.
          positions: [B, T] or [T], in tokens; default 0..T-1.
          segment_ids: documents of a pack, which do not see each other; ids are only compared.
          dropout_key: turns dropout on.
          unroll: compiles every layer, not one for all: for backward passes, see `run_layers`.
          probe: indices of the query rows to look at.
          look: at those rows: a function of the arguments of `lenext.attention.row_statistics`,
            whose result gets the layers as a new first axis.
          in_parts: no gradient is wanted, so that long sequences may go through a layer part by
            part, in less memory: see `lenext.models.chunks`.

        Returns:
          Hidden states in the compute type, and what `look` gives (None without `probe`): by
          default `RowStatistics` of shape [layers, B, N, R].
        """
        first_key, keys = None, None
        if dropout_key is not None:
            split = jax.random.split(dropout_key, self.config.num_layers + 1)
            first_key, keys = split[0], split[1:]
        x = self.embed(tokens, positions, token_types)
        x = self.dropout(x, deterministic=dropout_key is None, rngs=first_key)
        length = count_tokens(mask, segment_ids, tokens.shape[1])
        context = Context(mask, positions, segment_ids, length, probe, look)
        long = in_parts and keys is None and tokens.shape[1] > LONG
        in_parts = long and chunks_suit(self.methods, context)

        def call(attention: Attention, q: Array, k: Array, v: Array, x: Array) -> tuple[Array, Any]:
            return attention(q, k, v, x, context)

        def apply(layer: Any, x: Array, key: Array | None) -> tuple[Array, Any]:
            if in_parts:
                return run_in_chunks(layer, x, context, size=CHUNK)
            return layer(x, call, dropout_key=key)

        x, seen = run_layers(
            self.layers, x.astype(self.config.dtype), keys, apply,
            remat=self.config.remat, unroll=unroll,
        )  # fmt: skip
        return self.finish(x), seen

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
        """Float32 logits: for every token, or for the one after it in a causal model."""
        given = {"mask": mask, "positions": positions, "segment_ids": segment_ids}
        hidden, _ = self.encode(jnp.asarray(tokens), **jax.tree.map(jnp.asarray, given))
        return self.logits(hidden)

    def empty_caches(self, batch: int, capacity: int) -> list[LayerCache]:
        """One cache a layer, for `step` over sequences of up to `capacity` tokens.

        Raises:
          ValueError: the layers are stacked.
        """
        return [
            layer.attention.empty_cache(batch, capacity, self.config.dtype)
            for layer in self._layers_apart()
        ]

    def _layers_apart(self) -> Sequence[Any]:
        if not isinstance(self.layers, nnx.List):
            raise ValueError("layers are stacked: decoding wants lenext.models.take_apart(model)")
        return self.layers

    def step(
        self,
        tokens: Int[Array, "B T"],
        first: Int[Array, ""],
        caches: list[LayerCache],
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B V"], list[LayerCache]]:
        """Logits for the token after the last, and caches that hold the T tokens given.

        Of a causal model whose layers were taken apart (`lenext.models.take_apart`): a loop through
        a stack would copy each layer's weights for every token.

        Args:
          tokens: the next T tokens of every sequence: all of a prompt, a part of it, or one.
          first: position of the first of them.
          caches: from `empty_caches` or the step before.
          length: of the text, in tokens, for methods that follow it; default: up to the last of
            these tokens. Where a prompt comes in parts, that of all of it.
        """
        hidden, after = self.extend(tokens, first, caches, length)
        return self.logits(hidden[:, -1:])[:, 0], after

    def extend(
        self,
        tokens: Int[Array, "B T"],
        first: Int[Array, ""],
        caches: list[LayerCache],
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], list[LayerCache]]:
        """Hidden states that the head reads of the T tokens given, and caches that hold these.

        Arguments as of `step`.
        """
        length = first + tokens.shape[1] if length is None else length
        positions = first + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self.embed(tokens, positions, None).astype(self.config.dtype)
        after: list[LayerCache] = []
        shared: dict[Any, Array] = {}
        for layer, cache in zip(self._layers_apart(), caches, strict=True):
            # Caches filled alike hold the same positions: as one array, what follows from it (the
            # keys' rotation, masks) is computed once for all of these layers.
            methods = methods_of(layer.attention.methods[0])
            alike = [
                (one.positions.size, method.visibility.keeps())
                for one, method in zip(cache, methods, strict=True)
            ]
            cache = tuple(
                one._replace(positions=shared.setdefault(key, one.positions))
                for one, key in zip(cache, alike, strict=True)
            )

            def call(
                attention: Attention, q: Array, k: Array, v: Array, x: Array,
                cache: LayerCache = cache,
            ):  # fmt: skip
                return attention.step(q, k, v, x, positions, length, cache)

            x, cache = layer(x, call, dropout_key=None)
            after.append(cache)
        return self.finish(x), after
