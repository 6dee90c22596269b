"""The definition: complete rows for the queries at hand against the keys at hand.

A method's logits are the products of two sides: queries, turned by their position and scaled by
their row's temperature, and keys, turned by theirs; one pair of sides for each `Piece` of the
position. The sides take O(T + S) memory and are made once, whoever then makes the rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lenext.attention.axes.axis import Params, Position, Rows, Similarity, rotate
from lenext.attention.axes.method import Method, init_params
from lenext.attention.checked import checked
from lenext.attention.compute.places import Places, count, located, rows_at, visible

FEW = 16  # queries of a key head

QuerySides = tuple[Float[Array, "B N T I"], ...]
KeySides = tuple[Float[Array, "B K S I"], ...]


class Scores(NamedTuple):
    """Complete rows of logits (float32; meaningless where `mask` is False)."""

    logits: Float[Array, "B N T S"]
    mask: Bool[Array, "#B 1 T S"]
    rows: Rows
    params: Params


def query_sides(
    q: Float[Array, "B T N H"], method: Method, params: Params, rows: Rows
) -> QuerySides:
    """Queries as their products with `key_sides` want them: one for each piece, heads first."""
    factor = method.temperature(rows, q.astype(jnp.float32), params.get("temperature", {}))
    sizes = dict(zip("BTN", q.shape[:3], strict=True))
    factor = checked(factor, method.temperature, "temperature", "B? N? T? 1", sizes)
    return tuple(factor * side for side in _sides(q, method, rows, "q"))


def key_sides(k: Float[Array, "B S K H"], method: Method, rows: Rows) -> KeySides:
    """Keys as their products with `query_sides` want them."""
    return tuple(_sides(k, method, rows, "k"))


def _sides(x: Array, method: Method, rows: Rows, side: str) -> list[Array]:
    """What position and similarity make of queries ("q") or keys ("k"): [B, heads, tokens, I]."""
    position, similarity = method.position, method.similarity
    form = {"q": "B T N H", "k": "B S K H"}[side]
    sizes = dict(zip(form.split(), x.shape, strict=True)) | {
        "P": position.turned(x.shape[3]) // 2,
        "I": inner_size(similarity, x.shape[3]),
    }
    x = checked(position.arrange(x.astype(jnp.float32)), position, "arrange", form, sizes)
    lengths = {"q": rows.q_lengths, "k": rows.kv_lengths}[side]
    x = checked(position.amplify(x, rows, lengths), position, "amplify", form, sizes)
    pieces = position.pieces(rows)
    if not pieces:
        raise ValueError(f"pieces of {type(position).__name__} returned none: should be some")
    make, name = {
        "q": (similarity.of_queries, "of_queries"),
        "k": (similarity.of_keys, "of_keys"),
    }[side]
    sides: list[Array] = []
    phases = [{"q": piece.q_phase, "k": piece.k_phase}[side] for piece in pieces]
    for number, phase in enumerate(phases):
        before = first_alike(phases, number)
        if before < number:
            sides.append(sides[before])
            continue
        if phase is not None:
            of_tokens = {"q": "B? T? P", "k": "B? S? P"}[side]
            checked(phase, position, f"{side}_phase", of_tokens, sizes, jnp.uint32)
        made = checked(make(rotate(x, phase)), similarity, name, form[:-1] + "I", sizes)
        sides.append(made.swapaxes(1, 2))
    return sides


def first_alike(phases: Sequence[Any], number: int) -> int:
    """The first piece whose phases are the very same array, so that its side is."""
    return next(i for i, phase in enumerate(phases) if phase is phases[number])


def distinct(sides: KeySides) -> KeySides:
    """Those that differ: pieces that turn keys alike share one."""
    return tuple(side for i, side in enumerate(sides) if first_alike(sides, i) == i)


def of_pieces(kept: Sequence[Any], method: Method, rows: Rows) -> tuple[Any, ...]:
    """The side of each piece, of the `distinct` ones; the rows are any of the method's."""
    phases = [piece.k_phase for piece in method.position.pieces(rows)]
    firsts = [first_alike(phases, i) for i in range(len(phases))]
    return tuple(kept[sorted(set(firsts)).index(first)] for first in firsts)


def inner_size(similarity: Similarity, head_dim: int) -> int:
    """I, the size of the vectors that a similarity multiplies: traced, not computed."""
    x = jax.ShapeDtypeStruct((1, 1, 1, head_dim), jnp.float32)
    q, k = (
        checked(jax.eval_shape(make, x), similarity, name, "1 1 1 I", {}).shape[3]
        for name, make in [("of_queries", similarity.of_queries), ("of_keys", similarity.of_keys)]
    )
    if q != k:
        raise ValueError(
            f"of_queries and of_keys of {type(similarity).__name__} returned {q} and {k} "
            "dimensions: should be as many"
        )
    return q


def position_shapes(method: Method, num_heads: int, head_dim: int) -> tuple[list[Any], Any, Any]:
    """Each piece's `where`, the gain and the bias, as shapes or None: traced, not computed.

    On three queries and three keys, none of them masked: where causal, there are no more pieces.
    """

    def traced():
        three = jnp.arange(3, dtype=jnp.int32)[None, :]
        places, n = located(Places(three, three)), jnp.full((1, 1, 3, 1), 3, jnp.int32)
        rows = rows_at(
            method, places, n, causal=False, length=3, num_heads=num_heads, head_dim=head_dim
        )
        params = init_params(method, num_heads, head_dim).get("position", {})
        position = method.position
        wheres = [piece.where for piece in position.pieces(rows)]
        return wheres, position.gain(rows), position.bias(rows, params)

    return jax.eval_shape(traced)


def products(q: Float[Array, "B N T I"], k: Float[Array, "B K S I"]) -> Float[Array, "B N T S"]:
    """q_i . k_j for grouped queries: query head h meets key head h // (N / K)."""
    (b, n, t, h), (kv_heads, s) = q.shape, k.shape[1:3]
    group, k = n // kv_heads, k.astype(jnp.float32)
    if group * t <= FEW:
        # With the keys first: else XLA's CPU backend would turn them all around for a few queries.
        few, keys = q.reshape(b * kv_heads, group * t, h), k.reshape(b * kv_heads, s, h)
        out = jnp.einsum("ksh,kth->kst", keys, few, precision=jax.lax.Precision.HIGHEST)
        return out.swapaxes(1, 2).reshape(b, n, t, s)
    grouped = q.reshape(b, kv_heads, group, t, h)
    out = jnp.einsum("bkgth,bksh->bkgts", grouped, k, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, n, t, s)


def logits(
    similarities: Sequence[Float[Array, "B N T S"]], method: Method, params: Params, rows: Rows
) -> Float[Array, "B N T S"]:
    """Logits of the rows against the keys at hand, hidden ones too, of the sides' products."""
    value = jnp.zeros((), jnp.float32)
    position, sizes = method.position, dict(zip("BNTS", similarities[0].shape, strict=True))
    for piece, similarity in zip(position.pieces(rows), similarities, strict=True):
        if piece.where is None:
            value = similarity
        else:
            where = checked(piece.where, position, "where", "B? 1 T? S?", sizes, jnp.bool_)
            value = jnp.where(where, similarity, value)
    gain, bias = position.gain(rows), position.bias(rows, params.get("position", {}))
    if gain is not None:
        value = gain_of(position, gain, "B? N? T? S?", sizes) * value
    value = checked(
        method.similarity.bounded(value), method.similarity, "bounded", "B N T S", sizes
    )
    if bias is not None:
        bias = checked(bias, position, "bias", "B? N? T? S?", sizes)
        factor = method.temperature.of_bias(rows)
        if factor is not None:
            bias = bias * checked(factor, method.temperature, "of_bias", "B? N? T? 1", sizes)
        value = value + bias
    return value


def gain_of(position: Position, gain: Any, form: str, sizes: dict[str, int]) -> Array | float:
    """The gain of a position, checked: a number, or an array as `form` says."""
    return gain if jnp.ndim(gain) == 0 else checked(gain, position, "gain", form, sizes)


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
    return Scores(logits(similarities, method, params, rows), mask, rows, params)


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
        q_gates=None,
    )
    rows = rows_at(
        method, first, jnp.ones((1, 1, 1, 1), jnp.int32), causal=causal, length=length,
        num_heads=num_heads, head_dim=k.shape[3],
    )  # fmt: skip
    return key_sides(k, method, rows)


def weights(scored: Scores, method: Method) -> Float[Array, "B N T S"]:
    """The rows' weights, float32."""
    params = scored.params.get("weighting", {})
    made = method.weighting(scored.logits, scored.mask, scored.rows, params)
    sizes = dict(zip("BNTS", scored.logits.shape, strict=True))
    return checked(made, method.weighting, "weighting", "B N T S", sizes)


def combine(
    weights: Float[Array, "B N T S"], v: Float[Array, "B K S V"]
) -> Float[Array, "B N T V"]:
    """Weighted sums of the values, for grouped queries, in float32; heads first."""
    (b, n, t, s), (kv_heads, dim) = weights.shape, v.shape[1::2]
    group, v = n // kv_heads, v.astype(jnp.float32)
    if group * t <= FEW:
        few, values = weights.reshape(b * kv_heads, group * t, s), v.reshape(b * kv_heads, s, dim)
        out = jnp.einsum("kts,ksv->ktv", few, values, precision=jax.lax.Precision.HIGHEST)
        return out.reshape(b, n, t, dim)
    grouped = weights.reshape(b, kv_heads, group, t, s)
    out = jnp.einsum("bkgts,bksv->bkgtv", grouped, v, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, n, t, dim)
