"""Rows summed up key by key: tiles of queries by keys, for `KeyByKey` weightings.

Each block of queries meets its keys tile by tile and keeps a largest logit, a total and a sum of
values (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Rows of `TwoStage`
take two passes: totals first, then the second sums, without the tiles that add nothing to them.
The backward pass makes the tiles anew. Memory is O(tile + T + S), whatever the weighting.
Which tiles there are: `lenext.attention.compute.plan`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params, Rows
from lenext.attention.axes.by_key import KeyByKey, TwoStage
from lenext.attention.axes.method import Method
from lenext.attention.compute import naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, visible
from lenext.attention.compute.plan import (
    Plan,
    filled,
    over_tiles,
    padded,
    padded_places,
    plan_of,
    seen_of,
    tile_places,
    tile_rows,
    visible_keys,
)

# Queries, and keys, of a tile, where there are several rows at a time and where there is one; and
# its float32 entries over batch and heads, at the most, for memory's sake. Measured in
# experiments/benchmarks/block_size.py.
SMALLEST, USUAL, LARGEST = 128, 512, 1024
TILE_ENTRIES = 2**23
# Second values below this part of their row's largest, taken n times, are nothing in float32.
NOTHING = 2.0**-26
# The first values of a block of queries are kept for a second pass while they take no more: those
# of 4 heads and 16 384 keys. At 2048 to 8192 that takes two thirds of the time of making them anew.
KEPT_BYTES = 128 * 2**20


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


# Several products read a tile: XLA's CPU backend would make it anew, exps and all, for each.
_once = jax.lax.optimization_barrier


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


GATES = ("q_gates", "kv_gates")  # as `Places` and `Rows` have them


class _RowSums(NamedTuple):
    """What a row's weights are made with, each [B, N, T, 1].

    Attributes:
      largest: the largest visible logit (0 where nobody asks for it: no shift, no second stage).
      total: the (first) total of the values, or 1.
      divisor: what the last values are over: the total, the second one, or 1.
      centred: 1 where that divisor follows the logits, 0 where it does not.
    """

    largest: Float[Array, "B N T 1"]
    total: Float[Array, "B N T 1"]
    divisor: Float[Array, "B N T 1"]
    centred: Float[Array, "B N T 1"]


class _Tiles:
    """The arrays of a call in whole blocks, and what one tile of them gives."""

    def __init__(self, plan, q_sides, k_sides, v, params, gates, places, n):
        queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
        self.plan, self.params, self.weighting = plan, params, plan.weighting
        self.learned = params.get("weighting", {})  # of the weighting
        self.q_sides = tuple(filled(x, queries, 2) for x in q_sides)
        self.k_sides = tuple(padded(x, keys, 2) for x in k_sides)
        self.v = padded(v, keys, 2)
        self.n = filled(n, queries, 2)
        self.places = padded_places(plan, places._replace(**dict(zip(GATES, gates, strict=True))))
        self.batch, self.kv_heads, _, self.value_dim = v.shape

    def queries_of(self, x: Array, block: Array) -> Array:
        """Block `block` of an array [B, N, T, ...]."""
        size = self.plan.query_block
        return jax.lax.dynamic_slice_in_dim(x, block * size, size, 2)

    def keys_of(self, x: Array, tile: Array) -> Array:
        """Tile `tile` of an array [B, K, S, ...]."""
        size = self.plan.key_block
        return jax.lax.dynamic_slice_in_dim(x, tile * size, size, 2)

    def rows(self, block: Array, tile: Array | int) -> tuple[Places, Rows]:
        """Places and rows of one tile."""
        places = tile_places(self.plan, self.places, block, jnp.asarray(tile))
        return places, tile_rows(self.plan, places, self.queries_of(self.n, block))

    def sides(self, block: Array, tile: Array) -> list[tuple[Array, Array]]:
        """Both sides of each piece's products."""
        return [
            (self.queries_of(q, block), self.keys_of(k, tile))
            for q, k in zip(self.q_sides, self.k_sides, strict=True)
        ]

    def similarities(self, block: Array, tile: Array, needed: list[Array | None]) -> list[Array]:
        """The sides' products; zeros for a piece that no entry is of."""
        shape = (self.batch, self.plan.num_heads, self.plan.query_block, self.plan.key_block)
        return [
            _where_needed(here, lambda sides=sides: naive.products(*sides), shape)
            for here, sides in zip(needed, self.sides(block, tile), strict=True)
        ]

    def needed(self, rows: Rows) -> list[Array | None]:
        """For each piece of the position, whether any entry is of it; None for every one."""
        wheres = [piece.where for piece in self.plan.method.position.pieces(rows)]
        if len(wheres) == 1:
            return [None]
        needed, free = [], jnp.ones((1, 1, 1, 1), bool)
        for where in reversed(wheres):
            needed.append(jnp.any(free if where is None else free & where))
            free = jnp.zeros_like(free) if where is None else free & ~where
        return needed[::-1]

    def mask(self, block: Array, tile: Array, whole: bool) -> tuple[Array | None, Rows]:
        """Which entries of one tile are visible (None for all), and its rows."""
        places, rows = self.rows(block, tile)
        return None if whole else visible(self.plan.method, places, self.plan.causal), rows

    def seen(self, block: Array, tile: Array, whole: bool) -> tuple[Array, Array | None, Rows]:
        """Logits of one tile, which of them are visible (None for all), and their rows."""
        mask, rows = self.mask(block, tile, whole)
        similarities = self.similarities(block, tile, self.needed(rows))
        return naive.logits(similarities, self.plan.method, self.params, rows), mask, rows

    def where_seen(self, block: Array, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step` without tiles of which nothing is visible, nor masks where all is."""
        if self.plan.ordered:  # the tiles that are met are known to be so
            return step

        def some(tile, carry, whole):
            seen = seen_of(self.plan, self.rows(block, tile)[0])
            kind = jnp.where(seen.all, 2, seen.some.astype(jnp.int32))
            steps = [lambda: carry, lambda: step(tile, carry, False)]
            if self.plan.method.visibility.sees_all:
                steps.append(lambda: step(tile, carry, True))
            return step(tile, carry, True) if whole else jax.lax.switch(kind, steps)

        return some

    def combine(self, values: Array, tile: Array) -> Array:
        """The values' weighted sums over one tile of keys."""
        return naive.combine(values, self.keys_of(self.v, tile))

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Of the values of a block of queries, tile by tile."""
        plan = self.plan
        return plan.key_blocks, self.batch, plan.num_heads, plan.query_block, plan.key_block

    @property
    def keeps(self) -> bool:
        """Whether a second pass is given them, rather than making them anew.

        Not where a larger shift was still to come, nor where a tile may leave what was there.
        """
        fits = 4 * math.prod(self.kept_shape) <= KEPT_BYTES
        return fits and self.plan.ordered and not self.plan.shifted

    def per_row(self, fill: float, dim: int = 1) -> Array:
        """A number (or `dim`) for each row of a block."""
        shape = (self.batch, self.plan.num_heads, self.plan.query_block, dim)
        return jnp.full(shape, fill, jnp.float32)


def _where_needed(needed: Array | None, make: Callable[[], Array], shape: tuple[int, ...]) -> Array:
    if needed is None:
        return make()
    return jax.lax.cond(needed, make, lambda: jnp.zeros(shape, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q_sides, k_sides, v, params, gates, places, n):
    return _forward(plan, q_sides, k_sides, v, params, gates, places, n)[0]


def _forward(plan, q_sides, k_sides, v, params, gates, places, n):
    """Outputs [B, N, T, V], and the `_RowSums`."""
    tiles = _Tiles(plan, q_sides, k_sides, v, params, gates, places, n)
    twice = isinstance(plan.weighting, TwoStage)

    def of_block(kept, block):
        largest, total, out, tops, kept = _first_pass(tiles, block, kept, twice=twice)
        if not twice:
            centred = tiles.per_row(float(plan.weighting.normalised))
            return kept, (out / total, _RowSums(largest, total, total, centred))
        return kept, _second_pass(tiles, block, largest, total, tops, kept)

    # One array for all blocks, so that none has to be cleared.
    kept = jnp.zeros(tiles.kept_shape, jnp.float32) if twice and tiles.keeps else None
    _, blocks = jax.lax.scan(of_block, kept, plan.block_numbers)
    return jax.tree.map(functools.partial(_joined, plan), blocks)


def _joined(plan: Plan, x: Array) -> Array:
    """[blocks, B, N, block, V] to [B, N, T, V]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, : plan.queries]


def _first_pass(tiles: _Tiles, block: Array, kept: Array | None, *, twice: bool):
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
        values = _once(weighting.visible_values(logits, mask, shift, rows, tiles.learned))
        if weighting.normalised:
            total = total + jnp.sum(values, axis=-1, keepdims=True)
        out = None if out is None else out + tiles.combine(values, tile)
        kept = None if kept is None else kept.at[tile].set(values)
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


def _peak(plan: Plan, largest: Array, total: Array, rows: Rows, params: Params) -> Array:
    """The largest first weight of each row; 0 where it sees nothing."""
    total, params = jax.lax.stop_gradient((total, params))
    seen, shift = jnp.isfinite(largest), plan.shift_at(largest, params)
    return plan.weighting.visible_values(largest, seen, shift, rows, params) / total


def _last_values(plan: Plan, logits, mask, largest, total, rows, params):
    """Second-stage values, as a function of their logits and of their rows' first total."""
    shift = plan.shift_at(largest, params)
    values = plan.weighting.visible_values(logits, mask, shift, rows, params)
    return _last_of(plan, values, mask, largest, total, rows, params)


def _last_of(plan: Plan, values, mask, largest, total, rows, params):
    """Second-stage values, as a function of the first ones and of their rows' total."""
    weighting: Any = plan.weighting
    first = values * (1 / total)  # times a row's number, for one division a row
    last = weighting.last_values(first, _peak(plan, largest, total, rows, params), rows)
    return last if mask is None else jnp.where(mask, last, 0.0)


def _second_pass(
    tiles: _Tiles, block: Array, largest: Array, total: Array, tops: Array, kept: Array | None
):
    """Rows of a second stage, from the tiles that count beside their totals: outputs and sums."""
    weighting: Any = tiles.weighting
    _, rows = tiles.rows(block, 0)
    flat = weighting.flat_at(_peak(tiles.plan, largest, total, rows, tiles.learned), rows)
    seen = jnp.isfinite(tops)
    best = _last_values(tiles.plan, tops, seen, largest, total, rows, tiles.learned)
    least = NOTHING * jnp.max(best, axis=-1, keepdims=True)
    counts = jnp.any(seen & (flat | (best * rows.n > least)), axis=(0, 1, 2))

    def step(tile, carry, whole):
        def add():
            divisor, out = carry
            if kept is None:
                logits, mask, rows = tiles.seen(block, tile, whole)
                last = _last_values(tiles.plan, logits, mask, largest, total, rows, tiles.learned)
            else:
                mask, rows = tiles.mask(block, tile, whole)
                last = _last_of(tiles.plan, kept[tile], mask, largest, total, rows, tiles.learned)
            last = _once(last)
            divisor = divisor + jnp.sum(last, axis=-1, keepdims=True)
            return divisor, out + tiles.combine(last, tile)

        return jax.lax.cond(counts[tile], add, lambda: carry)

    start = tiles.per_row(0.0), tiles.per_row(0.0, tiles.value_dim)
    divisor, out = over_tiles(tiles.plan, tiles.places, block, step, start)
    usable = (divisor > 0) & ~flat
    divisor, centred = jnp.where(usable, divisor, 1.0), usable.astype(jnp.float32)
    return out / divisor, _RowSums(largest, total, divisor, centred)


def _attend_forward(plan, q_sides, k_sides, v, params, gates, places, n):
    out, sums = _forward(plan, q_sides, k_sides, v, params, gates, places, n)
    return out, (q_sides, k_sides, v, params, gates, places, n, out, sums)


def _attend_backward(plan, saved, d_out):
    """By tiles again: d values = (d weights - their mean over the row's weights) / divisor."""
    q_sides, k_sides, v, params, gates, places, n, out, sums = saved
    tiles = _Tiles(plan, q_sides, k_sides, v, params, gates, places, n)
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
    d_q_sides = jax.tree.map(functools.partial(_joined, plan), d_q_sides)
    d_k_sides, d_v = jax.tree.map(lambda x: x[..., : plan.keys].swapaxes(2, 3), (d_k_sides, d_v))
    d_kv_gates = jax.tree.map(lambda x: x[:, : plan.keys], d_kv_gates)

    def joined(x: Array) -> Array:
        """[blocks, B, block, N] to [B, T, N]."""
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, x.shape[3])[:, : plan.queries]

    d_gates = jax.tree.map(joined, d_q_gates), d_kv_gates
    return d_q_sides, d_k_sides, d_v, d_params, d_gates, None, None


def _block_backward(tiles: _Tiles, block, sums: _RowSums, d_out, mean, carry):
    """Adds one block's part to (d_k_sides, d_v, d_params, d_kv_gates); its d_q_sides, d_q_gates."""
    plan, weighting = tiles.plan, tiles.weighting
    shift, inverse = plan.shift_at(sums.largest, tiles.learned), 1 / sums.divisor
    twice = isinstance(weighting, TwoStage)

    def last_values(logits, mask, total, rows, params):
        if twice:
            return _last_values(plan, logits, mask, sums.largest, total, rows, params)
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
        places, rows = tiles.rows(block, tile)
        mask = None if whole else visible(plan.method, places, plan.causal)
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
        d_similarities, weights = _once((d_similarities, last * inverse))

        def added(whole_array, part, axis=3):
            at = tile * plan.key_block
            old = jax.lax.dynamic_slice_in_dim(whole_array, at, plan.key_block, axis)
            return jax.lax.dynamic_update_slice_in_dim(whole_array, old + part, at, axis)

        d_sides = [
            (
                _where_needed(here, lambda d=d, k=k: naive.combine(d, k), q.shape),
                _where_needed(
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


_attend.defvjp(_attend_forward, _attend_backward)
