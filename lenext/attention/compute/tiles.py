"""Rows summed up key by key: tiles of queries by keys, for `KeyByKey` weightings.

Each block of queries meets its keys tile by tile and keeps a largest logit, a total and a sum of
values (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Rows of `TwoStage`
take two passes: totals first, then the second sums, without the tiles that add nothing to them.
The backward pass (`tiles_backward`) makes the tiles anew. Memory is O(tile + T + S), whatever the
weighting; rows of two stages take up to `one_tile.KEPT_BYTES` more.
Which tiles there are: `lenext.attention.compute.plan`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params
from lenext.attention.axes.by_key import KeyByKey, TwoStage
from lenext.attention.axes.method import Method
from lenext.attention.compute import naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.one_tile import (
    RowSums,
    Tiles,
    joined_blocks,
    once,
    peak,
    second_of,
    second_values,
)
from lenext.attention.compute.places import Places
from lenext.attention.compute.plan import over_tiles, plan_of, tile_rows, visible_keys
from lenext.attention.compute.tiles_backward import attend_backward

# Queries, and keys, of a tile, where there are several rows at a time and where there is one; and
# its float32 entries over batch and heads, at the most, for memory's sake. Measured in
# experiments/benchmarks/block_size.py.
SMALLEST, USUAL, LARGEST = 128, 512, 1024
TILE_ENTRIES = 2**23
# Second values below this part of their row's largest, taken n times, are nothing in float32.
NOTHING = 2.0**-26


def suits(method: Method) -> bool:
    """Whether the method's rows can be summed up key by key."""
    weighting = method.weighting
    if isinstance(weighting, TwoStage):
        # The largest weight, which a second stage is told, is looked for at the largest logit.
        return weighting.rises and type(weighting).__call__ is TwoStage.__call__
    # Whoever makes rows in a way of its own gets them complete.
    return isinstance(weighting, KeyByKey) and type(weighting).__call__ is KeyByKey.__call__


def default_tile(batch: int, num_heads: int, window: int | None) -> int:
    """Queries, and keys, of a tile: a power of two, no more than a window asks for."""
    rows = max(1, batch * num_heads)
    side = 2 ** (max(1, math.isqrt(TILE_ENTRIES // min(TILE_ENTRIES, rows))).bit_length() - 1)
    side = min(side, LARGEST if rows == 1 else USUAL)
    if window is not None:
        side = min(side, 2 ** max(0, window - 1).bit_length())
    return max(side, SMALLEST)


def attend_tiles(
    q: Float[Array, "B T N H"],
    k_sides: naive.KeySides,
    v: Float[Array, "B K S V"],
    call: Call,
    params: Params,
    places: Places,
    *,
    tile: int,
) -> Float[Array, "B T N V"]:
    """Attention by tiles of `tile` queries and keys, float32. See `attend`.

    Args:
      q: queries.
      k_sides: of the keys.
      v: values, heads first.
      call: theirs, by a method that `suits`.
      params: the method's learned parts.
      places: positions, padding, documents, `located`.
      tile: queries, and keys, of a tile.
    """
    method, plan = call.method, plan_of(call, tile)
    n = visible_keys(plan, places)
    rows = tile_rows(plan, places, n)
    q_sides = naive.query_sides(q, method, params, rows)
    # Float32 before the tiles: gradients are summed over them, which 16 bits do not bear.
    k_sides, v = jax.tree.map(lambda x: x.astype(jnp.float32), (k_sides, v))
    inside = {axis: x for axis, x in params.items() if axis in ("position", "weighting")}
    gates = places.q_gates or {}, places.kv_gates or {}
    places = places._replace(q_gates=None, kv_gates=None)
    out: Any = _attend(plan, q_sides, k_sides, v, inside, gates, places, n)
    return out.swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q_sides, k_sides, v, params, gates, places, n):
    return _forward(plan, q_sides, k_sides, v, params, gates, places, n)[0]


def _forward(plan, q_sides, k_sides, v, params, gates, places, n):
    """Outputs [B, N, T, V], and the `RowSums`."""
    tiles = Tiles(plan, q_sides, k_sides, v, params, gates, places, n)
    twice = isinstance(plan.weighting, TwoStage)

    def of_block(kept, block):
        largest, total, out, tops, kept = _first_pass(tiles, block, kept, twice=twice)
        if not twice:
            centred = tiles.per_row(float(plan.weighting.normalised))
            return kept, (out / total, RowSums(largest, total, total, centred))
        return kept, _second_pass(tiles, block, largest, total, tops, kept)

    # One array for all blocks, so that none has to be cleared.
    kept = tiles.room_for_values() if twice else None
    _, blocks = jax.lax.scan(of_block, kept, plan.block_numbers)
    return jax.tree.map(functools.partial(joined_blocks, plan), blocks)


def _first_pass(tiles: Tiles, block: Array, kept: Array | None, *, twice: bool):
    """(largest, total, sums of values, None, None), or (…, None, each tile's largest, values)."""
    weighting, plan = tiles.weighting, tiles.plan
    tracked = plan.shifted or twice

    def step(tile, carry, whole):
        largest, total, out, tops, kept = carry
        logits, mask, rows = tiles.seen(block, tile, whole)
        top = largest
        if tracked:
            seen = True if mask is None else mask
            top = jnp.max(logits, axis=-1, keepdims=True, where=seen, initial=-jnp.inf)
            tops = None if tops is None else tops.at[..., tile].set(top[..., 0])
            top = jnp.maximum(largest, top)
        before, shift = (plan.shift_at(x, tiles.learned) for x in (largest, top))
        if plan.shifted:
            carried = jnp.where(jnp.isfinite(largest), jnp.exp(before - shift), 0.0)
            total = total * carried
            out = None if out is None else out * carried
        values = once(weighting.visible_values(logits, mask, shift, rows, tiles.learned))
        if weighting.normalised:
            total = total + jnp.sum(values, axis=-1, keepdims=True)
        out = None if out is None else out + tiles.combine(values, tile)
        kept = None if kept is None else kept.at[tile].set(values, mode="drop")
        return top, total, out, tops, kept

    start = (
        tiles.per_row(-jnp.inf if tracked else 0.0),
        tiles.per_row(0.0),
        None if twice else tiles.per_row(0.0, tiles.value_dim),
        tiles.per_row(-jnp.inf, tiles.plan.key_blocks) if twice else None,
        kept,
    )
    step = tiles.where_seen(block, step)
    largest, total, out, tops, kept = over_tiles(tiles.plan, tiles.places, block, step, start)
    shift = plan.shift_at(largest, tiles.learned)
    total = total + weighting.rest_at(shift, tiles.learned)
    usable = total > 0 if weighting.normalised else jnp.zeros_like(total, dtype=bool)
    return largest, jnp.where(usable, total, 1.0), out, tops, kept


def _second_pass(
    tiles: Tiles, block: Array, largest: Array, total: Array, tops: Array, kept: Array | None
):
    """Rows of a second stage, from the tiles that count beside their totals: outputs and sums."""
    weighting: Any = tiles.weighting
    _, rows = tiles.rows(block, 0)
    flat = weighting.flat_at(peak(tiles.plan, largest, total, rows, tiles.learned), rows)
    seen = jnp.isfinite(tops)
    best = second_values(tiles.plan, tops, seen, largest, total, rows, tiles.learned)
    least = NOTHING * jnp.max(best, axis=-1, keepdims=True)
    counts = jnp.any(seen & (flat | (best * rows.n > least)), axis=(0, 1, 2))

    def step(tile, carry, whole):
        def made_anew():
            logits, mask, rows = tiles.seen(block, tile, whole)
            return second_values(tiles.plan, logits, mask, largest, total, rows, tiles.learned)

        def made_of(kept):
            mask, rows = tiles.mask(block, tile, whole)
            return second_of(tiles.plan, kept[tile], mask, largest, total, rows, tiles.learned)

        def add():
            divisor, out = carry
            if kept is None:
                last = made_anew()
            elif len(kept) == tiles.plan.key_blocks:
                last = made_of(kept)
            else:
                last = jax.lax.cond(tile < len(kept), lambda: made_of(kept), made_anew)
            last = once(last)
            divisor = divisor + jnp.sum(last, axis=-1, keepdims=True)
            return divisor, out + tiles.combine(last, tile)

        return jax.lax.cond(counts[tile], add, lambda: carry)

    start = tiles.per_row(0.0), tiles.per_row(0.0, tiles.value_dim)
    divisor, out = over_tiles(tiles.plan, tiles.places, block, step, start)
    usable = (divisor > 0) & ~flat
    divisor, centred = jnp.where(usable, divisor, 1.0), usable.astype(jnp.float32)
    return out / divisor, RowSums(largest, total, divisor, centred)


def _attend_forward(plan, q_sides, k_sides, v, params, gates, places, n):
    out, sums = _forward(plan, q_sides, k_sides, v, params, gates, places, n)
    return out, (q_sides, k_sides, v, params, gates, places, n, out, sums)


_attend.defvjp(_attend_forward, attend_backward)
