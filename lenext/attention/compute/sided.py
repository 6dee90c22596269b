"""Attention to keys of which the sides are made: what `attend` and caches have in common.

A cache keeps sides (see `lenext.attention.compute.naive`), not keys: they are made once, as a token
comes, so that a later token meets them in a product and nothing else.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention.axes.axis import Numbers, Params
from lenext.attention.axes.method import Method
from lenext.attention.compute import naive, tiles
from lenext.attention.compute.blocks import map_blocks
from lenext.attention.compute.call import Call
from lenext.attention.compute.choice import Choice, choose
from lenext.attention.compute.naive import KeySides
from lenext.attention.compute.places import Places, rows_at

KeptSides = tuple[Float[Array, "BK S I"], ...]


def attend_sides(
    q: Float[Array, "B T N H"],
    k_sides: KeySides,
    v: Float[Array, "B K S V"],
    params: Params,
    places: Places,
    *,
    call: Call,
    choice: Choice,
) -> Float[Array, "B T N V"]:
    """Outputs in q's type, by the definition, in blocks or in tiles; values are heads first."""
    method = call.method
    if choice.by_tiles:
        assert choice.block_size is not None  # "blockwise" has one
        out = tiles.attend_tiles(q, k_sides, v, call, params, places, tile=choice.block_size)
        return out.astype(q.dtype)

    def outputs(scored: naive.Scores, v: Array) -> Array:
        return naive.combine(naive.weights(scored, method), v).swapaxes(1, 2).astype(q.dtype)

    if choice.implementation == "naive":
        scored = naive.scores(
            q, k_sides, method, params, places, causal=call.causal, length=call.length
        )
        return outputs(scored, v)
    assert choice.block_size is not None
    return map_blocks(
        outputs, q, k_sides, v, method, params, places,
        causal=call.causal, ordered=call.ordered and not call.part, length=call.length,
        block_size=choice.block_size,
    )  # fmt: skip


def sides_to_keep(
    k: Float[Array, "B T K H"], method: Method, positions: Int[Array, " T"], *, num_heads: int
) -> KeptSides:
    """What a cache keeps of keys at these positions, for causal rows of one document from 0 on.

    Keys as they are, heads first, where the method follows a length, which grows.
    """
    places = _at(positions, positions)
    sides = (
        (k.swapaxes(1, 2),)
        if method.follows_length
        else naive.sides_of_keys(k, method, places, causal=True, length=1, num_heads=num_heads)
    )
    return tuple(together(side) for side in naive.distinct(sides))


def together(x: Float[Array, "B K S *I"]) -> Float[Array, "BK S *I"]:
    """Batch and heads as one axis, as caches have them: XLA writes into these without a copy."""
    return x.reshape(-1, *x.shape[2:])


def attend_kept(
    q: Float[Array, "B T N H"],
    kept: KeptSides,
    v: Float[Array, "BK S V"],
    method: Method,
    *,
    q_positions: Int[Array, " T"],
    kv_positions: Int[Array, " S"],
    q_gates: dict[str, Numbers],
    kv_gates: dict[str, dict[str, Float[Array, "BN S"]]],
    length: Int[Array, ""] | int,
    params: Params,
    implementation: str,
) -> Float[Array, "B T N V"]:
    """Causal attention to what `sides_to_keep` made, in q's type.

    Args:
      q: queries.
      kept: of the keys; zeros where a place holds none.
      v: values, likewise, batch and heads `together`.
      method: that of `kept`.
      q_positions: of the queries.
      kv_positions: of the keys; -1 where a place holds none.
      q_gates: of the queries, see `lenext.attention.Gates`.
      kv_gates: of the keys, zeros where a place holds none, batch and query heads `together`.
      length: of the text, in tokens, for methods that follow it.
      params: the method's learned parts.
      implementation: as in `attend`.
    """
    batch, (keys, dim) = q.shape[0], v.shape[1:]
    heads = v.shape[0] // batch
    kept, v = jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[1:]), (kept, v))
    places = _at(q_positions, kv_positions)._replace(
        kv_mask=(kv_positions >= 0)[None], q_gates=q_gates,
        kv_gates=jax.tree.map(lambda x: x.reshape(batch, -1, keys).swapaxes(1, 2), kv_gates),
    )  # fmt: skip
    if method.follows_length:
        lengths = jnp.asarray(length, jnp.int32)
        places = places._replace(
            q_lengths=jnp.broadcast_to(lengths, (1, q_positions.size)),
            kv_lengths=jnp.broadcast_to(lengths, (1, keys)),
        )
        (k,) = kept
        kept = naive.sides_of_keys(
            k.swapaxes(1, 2), method, places, causal=True, length=1, num_heads=q.shape[2]
        )
    else:
        rows = rows_at(
            method, places, jnp.ones((1, 1, q_positions.size, 1), jnp.int32), causal=True,
            length=1, num_heads=q.shape[2], head_dim=q.shape[3],
        )  # fmt: skip
        kept = naive.of_pieces(kept, method, rows)
    call = Call(
        method, q.shape, (batch, keys, heads, q.shape[3]), (batch, keys, heads, dim),
        jnp.result_type(q.dtype, v.dtype).name, causal=True, ordered=False, masked=True, length=1,
    )  # fmt: skip
    choice = choose(call, wanted=implementation, block_size=None, backend=jax.default_backend())
    return _attend_kept(q, kept, v, params, places, call=call, choice=choice)


_attend_kept = functools.partial(jax.jit, static_argnames=("call", "choice"))(attend_sides)


def _at(q_positions: Array, kv_positions: Array) -> Places:
    """Places in one document that starts at 0."""
    q, kv = q_positions[None], kv_positions[None]
    return Places(q, kv, q_starts=jnp.zeros_like(q), kv_starts=jnp.zeros_like(kv))
