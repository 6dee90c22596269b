"""The backward pass of `tiles`: each tile is made anew, and gives its part of every gradient."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute import naive
from lenext.attention.compute.one_tile import (
    GATES,
    RowSums,
    Tiles,
    joined_blocks,
    once,
    second_values,
    where_needed,
)
from lenext.attention.compute.plan import filled, over_tiles, padded


def attend_backward(plan, saved, d_out):
    """By tiles again: d values = (d weights - their mean over the row's weights) / divisor."""
    q_sides, k_sides, v, params, gates, places, n, out, sums = saved
    tiles = Tiles(plan, q_sides, k_sides, v, params, gates, places, n)
    queries = plan.query_blocks * plan.query_block
    mean = sums.centred * jnp.sum(out * d_out, axis=-1, keepdims=True)
    d_out, mean = (padded(x, queries, 2) for x in (d_out, mean))
    sums = jax.tree.map(lambda x: filled(x, queries, 2), sums)

    def of_block(carry, block):
        here = jax.tree.map(lambda x: tiles.queries_of(x, block), (sums, d_out, mean))
        return _block_backward(tiles, block, here[0], here[1], here[2], carry)

    # Gradients of keys and values with the tokens last: so none of the products in the loop has
    # to turn a tile around.
    d_keys = [jnp.zeros_like(x.swapaxes(2, 3)) for x in (*tiles.k_sides, tiles.v)]
    start = (
        tuple(d_keys[:-1]), d_keys[-1],
        *jax.tree.map(jnp.zeros_like, (params, tiles.places.kv_gates)),
    )  # fmt: skip
    carry, (d_q_sides, d_q_gates) = jax.lax.scan(of_block, start, plan.block_numbers)
    d_k_sides, d_v, d_params, d_kv_gates = carry
    d_q_sides = jax.tree.map(functools.partial(joined_blocks, plan), d_q_sides)
    d_k_sides, d_v = jax.tree.map(lambda x: x[..., : plan.keys].swapaxes(2, 3), (d_k_sides, d_v))
    d_kv_gates = jax.tree.map(lambda x: x[:, : plan.keys], d_kv_gates)

    def joined(x: Array) -> Array:
        """[blocks, B, block, N] to [B, T, N]."""
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, x.shape[3])[:, : plan.queries]

    d_gates = jax.tree.map(joined, d_q_gates), d_kv_gates
    return d_q_sides, d_k_sides, d_v, d_params, d_gates, None, None


def _block_backward(tiles: Tiles, block, sums: RowSums, d_out, mean, carry):
    """Adds one block's part to (d_k_sides, d_v, d_params, d_kv_gates); its d_q_sides, d_q_gates."""
    plan, weighting = tiles.plan, tiles.weighting
    shift, inverse = plan.shift_at(sums.largest, tiles.learned), 1 / sums.divisor
    twice = isinstance(weighting, TwoStage)

    def last_values(logits, mask, total, rows, params):
        if twice:
            return second_values(plan, logits, mask, sums.largest, total, rows, params)
        return weighting.visible_values(logits, mask, shift, rows, params)

    def d_values(tile):
        return (naive.products(d_out, tiles.keys_of(tiles.v, tile)) - mean) * inverse

    d_total = jnp.zeros_like(sums.total)
    if twice and weighting.normalised:  # the first total is one of its own

        def add(tile, d_total, whole):
            logits, mask, rows = tiles.seen(block, tile, whole)
            _, pull = jax.vjp(
                lambda total: last_values(logits, mask, total, rows, tiles.learned), sums.total
            )
            return d_total + pull(d_values(tile))[0]

        d_total = over_tiles(plan, tiles.places, block, add, d_total)

    def step(tile, carry, whole):
        d_q, d_q_gates, d_k_sides, d_v, d_params, d_kv_gates = carry
        mask, rows = tiles.mask(block, tile, whole)
        needed = tiles.needed(rows)

        def logits_of(similarities, params, gates):
            here = dataclasses.replace(rows, **dict(zip(GATES, gates, strict=True)))
            return naive.logits(similarities, plan.method, params, here)

        logits, pull_logits = jax.vjp(
            logits_of, tiles.similarities(block, tile, needed), tiles.params,
            (rows.q_gates, rows.kv_gates),
        )  # fmt: skip

        def values(logits, params):
            last = last_values(logits, mask, sums.total, rows, params)
            # What the first total follows: counted apart, since it is held fixed in the last.
            first = weighting.visible_values(logits, mask, shift, rows, params) if twice else None
            return last, first

        (last, first), pull = jax.vjp(values, logits, tiles.learned)
        d_first = None if first is None else jnp.broadcast_to(d_total, first.shape)
        d_logits, d_learned = pull((d_values(tile), d_first))
        d_similarities, d_params_here, (d_q_gates_here, d_kv_gates_here) = pull_logits(d_logits)
        d_params_here = _with_weighting(d_params_here, d_learned)
        d_similarities, weights = once((d_similarities, last * inverse))

        def added(whole_array, part, axis=3):
            at = tile * plan.key_block
            old = jax.lax.dynamic_slice_in_dim(whole_array, at, plan.key_block, axis)
            return jax.lax.dynamic_update_slice_in_dim(whole_array, old + part, at, axis)

        d_sides = [
            (
                where_needed(here, lambda d=d, k=k: naive.combine(d, k), q.shape),
                where_needed(
                    here, lambda d=d, q=q: _keys_gradient(d, q, tiles.kv_heads),
                    k.swapaxes(2, 3).shape,
                ),
            )
            for here, d, (q, k) in zip(
                needed, d_similarities, tiles.sides(block, tile), strict=True
            )
        ]  # fmt: skip
        return (
            tuple(x + d for x, (d, _) in zip(d_q, d_sides, strict=True)),
            jax.tree.map(jnp.add, d_q_gates, d_q_gates_here),
            tuple(added(x, d) for x, (_, d) in zip(d_k_sides, d_sides, strict=True)),
            added(d_v, _keys_gradient(weights, d_out, tiles.kv_heads)),
            jax.tree.map(jnp.add, d_params, d_params_here),
            jax.tree.map(functools.partial(added, axis=1), d_kv_gates, d_kv_gates_here),
        )

    d_q = tuple(jnp.zeros_like(tiles.queries_of(x, block)) for x in tiles.q_sides)
    _, rows = tiles.rows(block, 0)
    d_q_gates = jax.tree.map(jnp.zeros_like, rows.q_gates)
    d_q, d_q_gates, *carry = over_tiles(plan, tiles.places, block, step, (d_q, d_q_gates, *carry))
    if tiles.learned and weighting.normalised:  # the total has a part that is of no tile
        _, pull = jax.vjp(lambda params: weighting.rest_at(shift, params), tiles.learned)
        (d_learned,) = pull(d_total if twice else -mean * inverse)
        carry[2] = _with_weighting(carry[2], d_learned)
    return tuple(carry), (d_q, d_q_gates)


def _with_weighting(d_params: Any, d_learned: Any) -> Any:
    """Gradients of all learned parts with those of the weighting's added."""
    if not d_learned:
        return d_params
    return d_params | {"weighting": jax.tree.map(jnp.add, d_params["weighting"], d_learned)}


def _keys_gradient(
    d_tile: Float[Array, "B N T S"], queries: Float[Array, "B N T D"], kv_heads: int
) -> Float[Array, "B K D S"]:
    """Sum over the queries, and the heads of a group: the tokens last."""
    batch, heads = d_tile.shape[:2]
    grouped = (batch, kv_heads, heads // kv_heads)
    return jnp.einsum(
        "bkgtd,bkgts->bkds",
        queries.reshape(*grouped, *queries.shape[2:]),
        d_tile.reshape(*grouped, *d_tile.shape[2:]),
        precision=jax.lax.Precision.HIGHEST,
    )
