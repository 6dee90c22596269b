"""What a call in tiles meets: which tiles a block of queries sees, and the places in them.

Where positions are the defaults, or the queries a part of them, a block of queries only meets the
tiles that it can see: causal rows stop at the diagonal, windows begin where they begin, and sinks
are in the first tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lenext.attention.axes.axis import Params, Rows
from lenext.attention.axes.by_key import KeyByKey
from lenext.attention.compute import naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, count, rows_at, visible

Tree = Any


@dataclasses.dataclass(frozen=True)
class Plan(Call):
    """A call cut into tiles.

    Attributes:
      query_block: queries a tile.
      key_block: keys a tile.
    """

    query_block: int
    key_block: int

    @property
    def query_blocks(self) -> int:
        """Blocks of queries."""
        return -(-self.queries // self.query_block)

    @property
    def block_numbers(self) -> Int[Array, " blocks"]:
        """The numbers of the blocks of queries."""
        return jnp.arange(self.query_blocks, dtype=jnp.int32)

    @property
    def key_blocks(self) -> int:
        """Tiles of a complete row."""
        return -(-self.keys // self.key_block)

    @property
    def weighting(self) -> KeyByKey:
        """The method's, which `suits`."""
        weighting = self.method.weighting
        if not isinstance(weighting, KeyByKey):
            raise TypeError(f"{type(weighting).__name__} takes complete rows")
        return weighting

    @property
    def rounded(self) -> bool:
        """Whether kernels round weights to the 16 bits of the values, and none wants a shift."""
        return jnp.dtype(self.dtype).itemsize < 4 and not self.shifted

    @property
    def shifted(self) -> bool:
        """Whether values want a shift: some logit may be beyond what does without one."""
        method, within = self.method, self.weighting.unshifted_within
        if within == math.inf:
            return False
        factor = method.temperature.largest(self.keys, self.head_dim)
        if method.gated or not method.similarity.largest * factor <= within:
            return True
        _, gain, bias = naive.position_shapes(method, self.num_heads, self.head_dim)
        return gain is not None or bias is not None

    def shift_at(self, largest: Float[Array, "B N T 1"], params: Params) -> Float[Array, "B N T 1"]:
        """Of rows of these largest logits."""
        return self.weighting.shift_at(largest, params) if self.shifted else jnp.zeros_like(largest)

    @property
    def window(self) -> tuple[int, int] | None:
        """First keys of a document and last ones that rows see, where tiles can follow that."""
        keeps = self.method.visibility.keeps()
        # Sinks stand in the first tile only where there is one document, from key 0 on.
        known = self.ordered and keeps is not None and keeps[0] <= self.key_block
        return keeps if known and not (self.masked and keeps and keeps[0]) else None

    @property
    def sees_all(self) -> bool:
        """Whether nothing hides a key but causality, where positions are the defaults."""
        known = self.ordered or not self.causal
        return known and not self.masked and self.method.visibility.sees_all

    def first_query(self, places: Places) -> Int[Array, ""] | int:
        """The position of the first query, where the plan is `ordered`."""
        return places.q_positions[0, 0] if self.part else self.keys - self.queries

    def tiles(
        self, block: Array, first_query: Array | int | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """(first, whole, stop, sinks): what a block of queries meets.

        Tiles [first, whole) are visible throughout, [whole, stop) and, where `sinks` is 1, tile 0
        are so in part. `first_query` is told where the queries are not the last.
        """
        zero, stop = jnp.zeros((), jnp.int32), jnp.full((), self.key_blocks, jnp.int32)
        whole = jnp.full((), self.keys // self.key_block, jnp.int32)
        first, sinks = zero, zero
        if self.ordered:
            start = self.keys - self.queries if first_query is None else first_query
            query = start + block * self.query_block
            last = query + self.query_block - 1
            if self.causal:
                stop = jnp.minimum(last // self.key_block + 1, stop)
                whole = jnp.minimum((query + 1) // self.key_block, whole)
            if self.window is not None:
                few, reach = self.window
                first = jnp.maximum(query - reach + 1, 0) // self.key_block
                if not self.causal:
                    stop = jnp.minimum((last + reach - 1) // self.key_block + 1, stop)
                if few:
                    sinks = (first > 0).astype(jnp.int32)
        if not self.sees_all:
            whole = first
        return first, jnp.minimum(whole, stop), stop, sinks


def plan_of(call: Call, tile: int) -> Plan:
    """The plan of a call in tiles of `tile` queries and keys."""
    query_block, key_block = _even(call.queries, tile), _even(call.keys, tile)
    return Plan(**vars(call), query_block=query_block, key_block=key_block)


def _even(length: int, tile: int) -> int:
    """At most `tile`, so that blocks are alike; a multiple of 16 where there are several."""
    blocks = -(-length // min(tile, length))
    size = -(-length // blocks)
    return min(tile, length, -(-size // 16) * 16)


def tile_rows(plan: Plan, places: Places, n: Int[Array, "#B 1 T 1"]) -> Rows:
    """The rows of one tile, at its places."""
    return rows_at(
        plan.method, places, n, causal=plan.causal, length=plan.length,
        num_heads=plan.num_heads, head_dim=plan.head_dim,
    )  # fmt: skip


def padded(x: Array, size: int, axis: int, *, mode: str = "constant") -> Array:
    """`x` filled up to `size` along an axis, with zeros."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, mode=mode)


# Queries are filled up with the last one, whose row is as finite as itself.
filled = functools.partial(padded, mode="edge")


def padded_places(plan: Plan, places: Places) -> Places:
    """Whole blocks of both, with padding keys masked."""
    queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
    mask = places.kv_mask
    if mask is None and keys > plan.keys:
        mask = jnp.ones((1, plan.keys), bool)
    places = places._replace(kv_mask=mask)
    return Places(
        **_each(places, "q_", lambda x: filled(x, queries, 1)),
        **_each(places, "kv_", lambda x: padded(x, keys, 1)),
    )


def _each(places: Places, side: str, f: Callable[[Array], Array]) -> dict[str, Any]:
    """f of all arrays of the queries ("q_"), or of the keys ("kv_")."""
    return {
        name: jax.tree.map(f, x) for name, x in places._asdict().items() if name.startswith(side)
    }


def _block(places: Places, start: Array, size: int, side: str) -> dict[str, Any]:
    return _each(places, side, lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1))


def tile_places(plan: Plan, places: Places, block: Array, tile: Array) -> Places:
    """The places of one tile of `padded_places`."""
    queries = _block(places, block * plan.query_block, plan.query_block, "q_")
    keys = _block(places, tile * plan.key_block, plan.key_block, "kv_")
    return Places(**queries, **keys)


class Seen(NamedTuple):
    """What the ranges in which a tile's queries and keys lie say, each True or False.

    Attributes:
      some: False where no query sees any key; True is no promise.
      all: True where every query sees every key; False is no promise.
    """

    some: Bool[Array, ""]
    all: Bool[Array, ""]


def seen_of(plan: Plan, places: Places) -> Seen:
    """For the places of a tile. Where positions are the defaults, `Plan.tiles` knows already."""
    least, most = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max
    real = jnp.ones_like(places.kv_positions, bool) if places.kv_mask is None else places.kv_mask

    def of_keys(x: Array) -> tuple[Array, Array]:
        return jnp.min(jnp.where(real, x, most)), jnp.max(jnp.where(real, x, least))

    first, last = jnp.min(places.q_positions), jnp.max(places.q_positions)
    low, high = of_keys(places.kv_positions)
    some, all_ = jnp.any(real), jnp.all(real) & plan.method.visibility.sees_all
    if plan.causal:
        some, all_ = some & (low <= last), all_ & (high <= first)
    keeps = plan.method.visibility.keeps()
    if keeps is not None:
        near = high > first - keeps[1]
        if not plan.causal:
            near &= low < last + keeps[1]
        if keeps[0]:
            near |= jnp.any(real & (places.kv_ordinals < keeps[0]))
        some &= near
    if places.q_segment_ids is not None and places.kv_segment_ids is not None:
        low, high = of_keys(places.kv_segment_ids)
        first, last = jnp.min(places.q_segment_ids), jnp.max(places.q_segment_ids)
        some &= (low <= last) & (high >= first)
        all_ &= (low == high) & (first == last) & (low == first)
    return Seen(some, all_)


def visible_keys(plan: Plan, places: Places) -> Int[Array, "#B 1 T 1"]:
    """n of every row: known beforehand, or counted over the tiles that the rows meet."""
    if plan.sees_all:
        last = jnp.arange(plan.queries, dtype=jnp.int32) + plan.first_query(places) + 1
        n = last if plan.causal else jnp.full((plan.queries,), plan.keys, jnp.int32)
        return n[None, None, :, None]
    padded = padded_places(plan, places._replace(q_gates=None, kv_gates=None))

    def of_block(block):
        def add(tile, n):
            places = tile_places(plan, padded, block, tile)
            return jax.lax.cond(
                seen_of(plan, places).some,
                lambda: n + count(visible(plan.method, places, plan.causal)),
                lambda: n,
            )

        batch = max(x.shape[0] for x in jax.tree.leaves(padded))
        n = jnp.zeros((batch, 1, plan.query_block, 1), jnp.int32)
        return over_tiles(plan, padded, block, lambda tile, n, _: add(tile, n), n)

    n = jnp.moveaxis(jax.lax.map(of_block, plan.block_numbers), 0, 2)
    return n.reshape(n.shape[0], 1, -1, 1)[:, :, : plan.queries]


def over_tiles(
    plan: Plan, places: Places, block: Array, step: Callable[[Array, Tree, bool], Tree], carry: Tree
) -> Tree:
    """Folds step(tile, carry, whole) over the tiles that a block of queries meets."""
    first, whole, stop, sinks = plan.tiles(block, plan.first_query(places))
    if plan.sees_all:
        carry = jax.lax.fori_loop(first, whole, lambda j, c: step(j, c, True), carry)
    if plan.window is not None and plan.window[0]:
        # Before the first, in place of the tile one lower: the sinks'.
        def at(j, c):
            return step(jnp.where(j < first, 0, j), c, False)

        return jax.lax.fori_loop(first - sinks, stop, at, carry)
    return jax.lax.fori_loop(whole, stop, lambda j, c: step(j, c, False), carry)
