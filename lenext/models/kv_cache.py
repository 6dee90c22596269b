"""What decoding keeps of the tokens before: keys and values, as far as a method still sees them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention import AnyMethod, HeadMethods, Method
from lenext.attention.axes.gates import gates_form
from lenext.attention.compute.attend import key_heads
from lenext.attention.compute.sided import sides_to_keep
from lenext.attention.compute.tiles import USUAL


class KVCache(NamedTuple):
    """Keys and values of one layer, as far as later rows may still see them.

    Attributes:
      k: what `sides_to_keep` makes of the keys: rotated, where no length is followed.
      v: values, batch and heads `together`.
      positions: absolute position of each place; -1 where it is empty, and all else are zeros.
      gates: what the method made of the layer's input at the keys, batch and query heads together.
    """

    k: tuple[Float[Array, "BK C I"], ...]
    v: Float[Array, "BK C V"]
    positions: Int[Array, " C"]
    gates: dict[str, dict[str, Float[Array, "BN C"]]]


LayerCache = tuple[KVCache, ...]
"""Of one layer: one for all heads, or one for each share of them that has a method of its own."""


def cache_size(method: Method, capacity: int) -> int:
    """Tokens of which a layer keeps keys and values, of sequences of up to `capacity` tokens."""
    keeps = method.visibility.keeps()
    size = capacity if keeps is None else min(capacity, sum(keeps))
    # Whole tiles: to fill up the last one would copy all.
    return size if size < USUAL else -(-size // USUAL) * USUAL


def empty_cache(
    method: AnyMethod, batch: int, capacity: int, *, num_heads: int, num_kv_heads: int,
    head_dim: int, dtype: Any,
) -> LayerCache:  # fmt: skip
    """A layer's cache for sequences of up to `capacity` tokens under a method, see `cache_size`."""
    if isinstance(method, HeadMethods):
        parts = [
            empty_cache(
                own, batch, capacity, num_heads=span.stop - span.start, head_dim=head_dim,
                num_kv_heads=len(key_heads(span, num_heads // num_kv_heads)), dtype=dtype,
            )
            for own, span in method.of_heads(num_heads).values()
        ]  # fmt: skip
        return sum(parts, ())
    size = cache_size(method, capacity)
    v = jnp.zeros((batch * num_kv_heads, size, head_dim), dtype)
    k = jax.ShapeDtypeStruct((batch, size, num_kv_heads, head_dim), jnp.float32)
    positions = jnp.full((size,), -1, jnp.int32)
    sides = jax.eval_shape(lambda k: sides_to_keep(k, method, positions, num_heads=num_heads), k)
    gates = jax.tree.map(
        lambda x: jnp.zeros((batch * num_heads, size), x.dtype),
        gates_form(method, num_heads).keys,
    )
    # An array each: steps may donate them.
    return (KVCache(tuple(jnp.zeros(x.shape, dtype) for x in sides), v, positions, gates),)


def _tokens(x: Array) -> int:
    """The axis of tokens of what a cache holds: positions, keys or values."""
    return 0 if x.ndim == 1 else 1


def joined(cache: KVCache, new: KVCache) -> KVCache:
    """All of the one, and then of the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=_tokens(x[0])), cache, new)


def written(cache: KVCache, new: KVCache, method: Method) -> KVCache:
    """The cache with these tokens, which follow one another.

    The first keys keep their places, the others go round; later ones take the place of those that
    no row to come can see. What does not stay is sent beyond the end, and dropped.
    """
    size, positions = cache.positions.size, new.positions
    keeps = method.visibility.keeps()
    first = size if keeps is None else min(size, keeps[0])
    turn = max(1, size - first)
    place = jnp.where(positions < first, positions, first + (positions - first) % turn)
    if positions.size == 1 or keeps is None:
        # As a slice it is written where it is, without a copy of the rest.
        return jax.tree.map(
            lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, place[0], _tokens(x)),
            cache, new,
        )  # fmt: skip
    stays = (positions < first) | (positions > positions[-1] - turn)
    place = jnp.where(stays, place, size)

    def put(x: Array, own: Array) -> Array:
        at = place if x.ndim == 1 else (slice(None), place)
        return x.at[at].set(own, mode="drop")

    return jax.tree.map(put, cache, new)
