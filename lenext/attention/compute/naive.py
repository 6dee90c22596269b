"""The definition: complete rows for the queries at hand against the keys at hand.

A method's logits are the products of two sides: queries, turned by their position and scaled by
their row's temperature, and keys, turned by theirs; one pair of sides for each `Piece` of the
position. The sides take O(T + S) memory and are made once, whoever then makes the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lenext.attention.axes.method import Method, Params, Rows
from lenext.attention.axes.position import rotate
from lenext.attention.compute.places import Places, count, rows_at, visible

QuerySides = tuple[Float[Array, "B N T I"], ...]
KeySides = tuple[Float[Array, "B K S I"], ...]


class Scores(NamedTuple):
    """Complete rows of logits (float32; meaningless where `mask` is False)."""

    logits: Float[Array, "B N T S"]
    mask: Bool[Array, "#B 1 T S"]
    rows: Rows


def query_sides(
    q: Float[Array, "B T N H"], method: Method, params: Params, rows: Rows
) -> QuerySides:
    """Queries as their products with `key_sides` want them: one for each piece, heads first."""
    q = q.astype(jnp.float32)
    turned = method.position.arrange(q)
    factor = method.temperature(rows, q, params.get("temperature", {}))
    return tuple(
        factor * method.similarity.of_queries(rotate(turned, piece.q_phase)).swapaxes(1, 2)
        for piece in method.position.pieces(rows)
    )


def key_sides(k: Float[Array, "B S K H"], method: Method, rows: Rows) -> KeySides:
    """Keys as their products with `query_sides` want them."""
    turned = method.position.arrange(k.astype(jnp.float32))
    return tuple(
        method.similarity.of_keys(rotate(turned, piece.k_phase)).swapaxes(1, 2)
        for piece in method.position.pieces(rows)
    )


def products(q: Float[Array, "B N T I"], k: Float[Array, "B K S I"]) -> Float[Array, "B N T S"]:
    """q_i . k_j for grouped queries: query head h meets key head h // (N / K)."""
    (b, n, t, h), (kv_heads, s) = q.shape, k.shape[1:3]
    grouped = q.reshape(b, kv_heads, n // kv_heads, t, h)
    out = jnp.einsum("bkgth,bksh->bkgts", grouped, k, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, n, t, s)


def logits(
    similarities: Sequence[Float[Array, "B N T S"]], method: Method, params: Params, rows: Rows
) -> Float[Array, "B N T S"]:
    """Logits of the rows against the keys at hand, hidden ones too, of the sides' products."""
    value = jnp.zeros((), jnp.float32)
    position = method.position
    for piece, similarity in zip(position.pieces(rows), similarities, strict=True):
        value = similarity if piece.where is None else jnp.where(piece.where, similarity, value)
    gain, bias = position.gain(rows), position.bias(rows, params.get("position", {}))
    value = value if gain is None else gain * value
    return value if bias is None else value + bias


def scores(
    q: Float[Array, "B T N H"],
    k_sides: KeySides,
    method: Method,
    params: Params,
    places: Places,
    *,
    causal: bool,
    length: int,
) -> Scores:
    """Complete rows of the queries at hand; `length` as in `rows_at`."""
    mask = visible(method, places, causal)
    rows = rows_at(
        method, places, count(mask), causal=causal, length=length,
        num_heads=q.shape[2], head_dim=q.shape[3],
    )  # fmt: skip
    similarities = [
        products(*sides)
        for sides in zip(query_sides(q, method, params, rows), k_sides, strict=True)
    ]
    return Scores(logits(similarities, method, params, rows), mask, rows)


def sides_of_keys(
    k: Float[Array, "B S K H"],
    method: Method,
    places: Places,
    *,
    causal: bool,
    length: int,
    num_heads: int,
) -> KeySides:
    """`key_sides` of a whole array of keys."""
    first = places._replace(
        q_positions=places.q_positions[:, :1],
        q_starts=None if places.q_starts is None else places.q_starts[:, :1],
        q_lengths=None if places.q_lengths is None else places.q_lengths[:, :1],
    )
    rows = rows_at(
        method, first, jnp.ones((1, 1, 1, 1), jnp.int32), causal=causal, length=length,
        num_heads=num_heads, head_dim=k.shape[3],
    )  # fmt: skip
    return key_sides(k, method, rows)


def weights(scored: Scores, method: Method) -> Float[Array, "B N T S"]:
    """The rows' weights, float32."""
    return method.weighting(scored.logits, scored.mask, scored.rows)


def combine(
    weights: Float[Array, "B N T S"], v: Float[Array, "B K S V"]
) -> Float[Array, "B N T V"]:
    """Weighted sums of the values, for grouped queries, in float32; heads first."""
    (b, n, t, s), (kv_heads, dim) = weights.shape, v.shape[1::2]
    grouped = weights.reshape(b, kv_heads, n // kv_heads, t, s)
    v = v.astype(jnp.float32)
    out = jnp.einsum("bkgts,bksv->bkgtv", grouped, v, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, n, t, dim)
