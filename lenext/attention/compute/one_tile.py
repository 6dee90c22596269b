"""One tile of queries by keys, as the passes over them (`tiles`, `tiles_backward`) take it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params, Rows
from lenext.attention.compute import naive
from lenext.attention.compute.places import Places, visible
from lenext.attention.compute.plan import (
    Plan,
    filled,
    padded,
    padded_places,
    seen_of,
    tile_places,
    tile_rows,
)

# The first values of a block of queries are kept for a second pass, from the first key on, while
# they take no more; all are at 4 heads and 16 384 keys. Making them anew takes 1.5 times as long.
KEPT_BYTES = 128 * 2**20
GATES = ("q_gates", "kv_gates")  # as `Places` and `Rows` have them

# Several products read a tile: XLA's CPU backend would make it anew, exps and all, for each.
once = jax.lax.optimization_barrier


class RowSums(NamedTuple):
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


class Tiles:
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
            where_needed(here, lambda sides=sides: naive.products(*sides), shape)
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

    def room_for_values(self) -> Array | None:
        """Zeros, where the values of a block of queries are to be kept for a second pass, by tile.

        Of the first tiles alone where there is no room for more. None where they are to be made
        anew: a larger shift may be still to come, or a tile leave what was there.
        """
        plan = self.plan
        shape = self.batch, plan.num_heads, plan.query_block, plan.key_block
        count = min(plan.key_blocks, KEPT_BYTES // (4 * math.prod(shape)))
        if plan.shifted or not plan.ordered or not count:
            return None
        return jnp.zeros((count, *shape), jnp.float32)

    def per_row(self, fill: float, dim: int = 1) -> Array:
        """A number (or `dim`) for each row of a block."""
        shape = (self.batch, self.plan.num_heads, self.plan.query_block, dim)
        return jnp.full(shape, fill, jnp.float32)


def where_needed(needed: Array | None, make: Callable[[], Array], shape: tuple[int, ...]) -> Array:
    """What `make` gives, of this shape; zeros where it is not needed. None: it always is."""
    if needed is None:
        return make()
    return jax.lax.cond(needed, make, lambda: jnp.zeros(shape, jnp.float32))


def joined_blocks(plan: Plan, x: Array) -> Array:
    """[blocks, B, N, block, V] to [B, N, T, V]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, : plan.queries]


def peak(plan: Plan, largest: Array, total: Array, rows: Rows, params: Params) -> Array:
    """The largest first weight of each row; 0 where it sees nothing."""
    total, params = jax.lax.stop_gradient((total, params))
    seen, shift = jnp.isfinite(largest), plan.shift_at(largest, params)
    return plan.weighting.visible_values(largest, seen, shift, rows, params) / total


def second_values(plan: Plan, logits, mask, largest, total, rows, params):
    """Second-stage values, as a function of their logits and of their rows' first total."""
    shift = plan.shift_at(largest, params)
    values = plan.weighting.visible_values(logits, mask, shift, rows, params)
    return second_of(plan, values, mask, largest, total, rows, params)


def second_of(plan: Plan, values, mask, largest, total, rows, params):
    """Second-stage values, as a function of the first ones and of their rows' total."""
    weighting: Any = plan.weighting
    first = values * (1 / total)  # times a row's number, for one division a row
    last = weighting.last_values(first, peak(plan, largest, total, rows, params), rows)
    return last if mask is None else jnp.where(mask, last, 0.0)
