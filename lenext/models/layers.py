"""What models share: the attention seam, RMS normalisation, the run through the layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, attend, init_params, row_statistics
from lenext.parallel.meshes import on_shares, sequence_shares, split_tokens


def rms_norm(x: Float[Array, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) along the last axis, in float32, without gain."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def dense(linear: nnx.Linear, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
    """`linear` on every token.

    Over one axis of tokens: XLA's CPU backend is four times slower at the weights' gradient when
    it contracts two.
    """
    batch, length, width = x.shape
    if sequence_shares(length) > 1:  # one axis of tokens could not be split as they are
        return linear(x)
    return linear(x.reshape(batch * length, width)).reshape(batch, length, -1)


class Head(NamedTuple):
    """What makes logits of hidden states.

    Attributes:
      matrix: float32.
      bias: float32, or None.
      axes: of the matrix, "vd" (an embedding) or "dv" (a linear map).
    """

    matrix: Float[Array, "..."]
    bias: Float[Array, " V"] | None
    axes: str

    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Float32 logits: the product is of hidden's type, its sums are float32."""
        # A linear map takes one axis of tokens, as in `dense`; an embedding is no faster for it.
        x = hidden.reshape(-1, hidden.shape[-1]) if self.axes == "dv" else hidden
        matrix = self.matrix.astype(hidden.dtype)
        logits = jnp.einsum(
            f"...d,{self.axes}->...v", x, matrix, preferred_element_type=jnp.float32
        ).reshape(*hidden.shape[:-1], -1)
        if self.bias is None:
            return logits
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class Context(NamedTuple):
    """What attention is told of a sequence beside q, k and v.

    Attributes:
      mask: False marks padding.
      positions: of every token, in tokens; default 0..T-1. One axis where all sequences agree.
      segment_ids: documents of a pack.
      length: tokens in each document, see `lenext.attention.count_tokens`; None: T.
      probe: indices of query rows to look at.
      look: at those rows, by a function of `row_statistics`' arguments.
    """

    mask: Bool[Array, "B T"] | None = None
    positions: Int[Array, "..."] | None = None
    segment_ids: Int[Array, "B T"] | None = None
    length: int | Int[Array, "..."] | None = None
    probe: Int[Array, " R"] | None = None
    look: Callable[..., Any] = row_statistics


class KVCache(NamedTuple):
    """Keys (before rotation) and values of one layer, as far as later rows may still see them.

    Attributes:
      k: keys.
      v: values.
      positions: absolute position of each place; -1 where it is empty.
    """

    k: Float[Array, "B C K H"]
    v: Float[Array, "B C K V"]
    positions: Int[Array, " C"]


class Attention(nnx.Module):
    """The seam between a model and `lenext.attention`: a method as data, and its learned parts."""

    def __init__(self, method: Method, *, num_heads: int, head_dim: int, causal: bool):
        self.num_heads, self.head_dim, self.causal = num_heads, head_dim, causal
        self.implementation = "auto"
        self.set_method(method)

    def set_method(self, method: Method) -> None:
        """Takes another method; learned parts that it does not share start at initial values."""
        old = getattr(self, "method", None)
        parts: dict[str, Any] = init_params(method, self.num_heads, self.head_dim)
        self.method = method
        self.learned = nnx.data(
            {
                axis: self.learned[axis]
                if old is not None and getattr(old, axis) == getattr(method, axis)
                else jax.tree.map(nnx.Param, values)
                for axis, values in parts.items()
            }
        )

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K V"],
        context: Context,
    ) -> tuple[Float[Array, "B T N V"], Any]:
        """Attention, and what a look at the probed rows gives; None if there are none."""
        shared = self._shared()
        out = self._attend(q, k, v, context, shared["params"])
        shared |= {"kv_mask": context.mask, "kv_segment_ids": context.segment_ids}
        shared |= {"length": q.shape[1] if context.length is None else context.length}
        if context.probe is None:
            return out, None
        at = context.probe
        positions = jnp.arange(q.shape[1]) if context.positions is None else context.positions
        segment_ids = None if context.segment_ids is None else context.segment_ids[:, at]
        seen = context.look(
            q[:, at], k, self.method, q_positions=positions[..., at], kv_positions=positions,
            q_segment_ids=segment_ids, **shared,
        )  # fmt: skip
        return out, seen

    def _attend(self, q: Array, k: Array, v: Array, context: Context, params: Any) -> Array:
        """Attention of all queries to all keys; on a mesh, of each device's queries.

        Where tokens are split, keys and values are gathered, as complete rows want them whatever
        the method. (A ring of partial rows, arXiv 2310.01889, would move as many bytes and serve
        some methods only.)
        """
        tokens = q.shape[1]
        length = tokens if context.length is None else context.length
        places = {"positions": context.positions, "segment_ids": context.segment_ids}
        places = {name: x for name, x in places.items() if x is not None}
        if "positions" in places:  # one row of them where all sequences agree
            places["positions"] = places["positions"].reshape(-1, tokens)
        if not isinstance(length, int) and self.method.follows_length:
            by_row = length if length.ndim == 2 else length.reshape(-1, 1)
            lengths = {"length": jnp.broadcast_to(by_row, (by_row.shape[0], tokens))}
        else:
            lengths = {}
        mask = {} if context.mask is None else {"mask": context.mask}

        def attended(rows, params, gather):
            q, k, v, places, mask, lengths = rows
            some = q.shape[1]
            k, v, kv_places, lengths = gather((k, v, places | mask, lengths))
            if some < tokens and "positions" not in places:
                first = jax.lax.axis_index("sequence") * some
                places = places | {"positions": first + jnp.arange(some)}
            return attend(
                q, k, v, self.method, causal=self.causal, params=params,
                implementation=self.implementation, **({"length": length} | lengths),
                **{f"q_{name}": x for name, x in places.items()},
                **{f"kv_{name}": x for name, x in kv_places.items()},
            )  # fmt: skip

        return on_shares(attended, (q, k, v, places, mask, lengths), params)

    def _shared(self) -> dict[str, Any]:
        params = jax.tree.map(lambda p: p[...], self.learned, is_leaf=_is_param)
        return {"causal": self.causal, "params": params}

    def empty_cache(self, batch: int, capacity: int, kv_heads: int, dtype: Any) -> KVCache:
        """A cache for sequences of up to `capacity` tokens, or the window's size if that is less.

        The first key always has a place: where a document starts is read off the keys.
        """
        keeps = self.method.visibility.keeps()
        size = capacity if keeps is None else min(capacity, max(1, keeps[0]) + keeps[1])
        shape = (batch, size, kv_heads, self.head_dim)
        # An array each: steps may donate them.
        k, v = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        return KVCache(k, v, jnp.full((size,), -1, jnp.int32))

    def step(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K V"],
        positions: Int[Array, " T"],
        length: Int[Array, ""] | int,
        cache: KVCache,
    ) -> tuple[Float[Array, "B T N V"], KVCache]:
        """Attention of the next T tokens to the cache and each other; and the cache with them.

        `length` is that of the text, in tokens, for methods that follow it.
        """
        joined = KVCache(
            jnp.concatenate([cache.k, k], axis=1),
            jnp.concatenate([cache.v, v], axis=1),
            jnp.concatenate([cache.positions, positions]),
        )
        batch, places = q.shape[0], joined.positions
        out = attend(
            q, joined.k, joined.v, self.method, q_positions=positions, kv_positions=places,
            kv_mask=jnp.broadcast_to(places >= 0, (batch, places.size)), length=length,
            implementation=self.implementation, **self._shared(),
        )  # fmt: skip
        # The first keys keep their places, the others go round; later ones take the place of those
        # that no row to come can see. What does not stay is sent beyond the end, and dropped.
        size = cache.positions.size
        keeps = self.method.visibility.keeps()
        first = size if keeps is None else min(size, max(1, keeps[0]))
        turn = max(1, size - first)
        place = jnp.where(positions < first, positions, first + (positions - first) % turn)
        stays = (positions < first) | (positions > positions[-1] - turn)
        place = jnp.where(stays, place, size)
        return out, KVCache(
            cache.k.at[:, place].set(k, mode="drop"),
            cache.v.at[:, place].set(v, mode="drop"),
            cache.positions.at[place].set(positions, mode="drop"),
        )


def _is_param(x: Any) -> bool:
    return isinstance(x, nnx.Param)


def split_dropout(key: Array | None, depth: int) -> tuple[Array | None, Array | None]:
    """A key for the embeddings and one for each layer; None and None where dropout is off."""
    if key is None:
        return None, None
    keys = jax.random.split(key, depth + 1)
    return keys[0], keys[1:]


def run_layers(
    layers: Sequence[nnx.Module],
    x: Float[Array, "B T D"],
    keys: Array | None,
    apply: Callable[[Any, Any, Any], tuple[Array, Any]],
    *,
    remat: bool = False,
    unroll: bool = False,
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs x through layers by a scan, so that depth costs no compilation.

    Layers keep parameters of their own, which are stacked here: a copy of the weights, nothing
    beside the products they enter. The scan's body is the shortest pattern of layers that repeats
    (one layer where all have the same method); layers that repeat nothing run one by one.

    Args:
      layers: of one structure but for their attention methods.
      x: what enters the first.
      keys: one random key a layer, or None.
      apply: (layer, x, key) to the next x and figures to collect (a pytree, or None).
      remat: the backward pass computes a group of layers anew from what entered it.
      unroll: no loop is left of the scan, so that a backward pass need not gather what all layers
        keep for it; compilation then grows with the depth.

    Returns:
      What leaves the last layer, and the figures with the layers as a new first axis.
    """
    graphdefs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    depth = len(layers)
    period = next(
        p
        for p in range(1, depth + 1)
        if depth % p == 0 and all(graphdefs[i] == graphdefs[i % p] for i in range(depth))
    )

    def stack(*trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def body(x, group):
        figures = []
        for graphdef, (state, key) in zip(graphdefs[:period], group, strict=True):
            x, seen = apply(nnx.merge(graphdef, state), split_tokens(x), key)
            figures.append(seen)
        return x, stack(*figures)

    slots = [
        (stack(*states[slot::period]), None if keys is None else keys[slot::period])
        for slot in range(period)
    ]
    # A scan keeps the forward pass from being merged with its repetition by itself.
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    x, figures = jax.lax.scan(body, x, slots, unroll=unroll or 1)
    return x, jax.tree.map(lambda f: f.reshape(depth, *f.shape[2:]), figures)
