"""Rows summed up key by key: tiles of queries by keys, for `KeyByKey` weightings.

Each block of queries meets its keys tile by tile and keeps a largest logit, a total and a sum of
values (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Re-weighted rows
take two passes: totals first, then the sharpened sums, without the tiles that add nothing to them.
The backward pass makes the tiles anew. Memory is O(tile + T + S), whatever the weighting.

Where positions are the defaults, a block of queries only meets the tiles that it can see: causal
rows stop at the diagonal, windows begin where they begin, and sinks are in the first tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention import naive
from lenext.attention.method import Method, Params, Rows
from lenext.attention.places import Places, count, rows_at, visible
from lenext.attention.weighting import KeyByKey, Reweighted

# Float32 entries of a tile over batch and heads. Measured in experiments/benchmarks/block_size.py.
TILE_ENTRIES = 2**20
SMALLEST, LARGEST = 128, 1024
# Re-weighted shares of a row below this are nothing beside its total, 1 or more, in float32.
NOTHING = 2.0**-26

Tree = Any


def suits(method: Method) -> bool:
    """Whether the method's rows can be summed up key by key."""
    weighting = method.weighting
    # What sharpens looks for the largest value at the largest logit, where this phi has none.
    falls = isinstance(weighting, Reweighted) and weighting.phi == "gelu_shifted"
    return isinstance(weighting, KeyByKey) and not falls


def default_tile(batch: int, num_heads: int, window: int | None) -> int:
    """Queries, and keys, of a tile: a power of two, no more than a window asks for."""
    side = math.isqrt(TILE_ENTRIES // max(1, min(TILE_ENTRIES, batch * num_heads)))
    side = 2 ** (max(1, side).bit_length() - 1)
    if window is not None:
        side = min(side, 2 ** max(0, window - 1).bit_length())
    return min(max(side, SMALLEST), LARGEST)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a call before it runs.

    Attributes:
      method: the method.
      causal: whether a row sees later keys.
      ordered: positions are the defaults (keys 0..S-1, queries the last T of them).
      hidden: padding or documents hide some keys.
      queries: T.
      keys: S.
      query_block: queries a tile.
      key_block: keys a tile.
      num_heads: N.
      head_dim: H.
    """

    method: Method
    causal: bool
    ordered: bool
    hidden: bool
    queries: int
    keys: int
    query_block: int
    key_block: int
    num_heads: int
    head_dim: int

    @property
    def query_blocks(self) -> int:
        """Blocks of queries."""
        return -(-self.queries // self.query_block)

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
    def window(self) -> tuple[int, int] | None:
        """First keys of a document and last ones that rows see, where tiles can follow that."""
        keeps = self.method.visibility.keeps()
        # Sinks stand in the first tile only where there is one document, from key 0 on.
        known = self.ordered and keeps is not None and keeps[0] <= self.key_block
        return keeps if known and not (self.hidden and keeps and keeps[0]) else None

    @property
    def sees_all(self) -> bool:
        """Whether nothing hides a key but causality, where positions are the defaults."""
        nowhere = jnp.zeros((1, 1, 1, 1), jnp.int32)
        known = self.ordered or not self.causal
        return known and not self.hidden and self.method.visibility(nowhere, nowhere) is None

    def tiles(self, block: Array) -> tuple[Array, Array, Array, Array]:
        """(first, whole, stop, sinks): what a block of queries meets.

        Tiles [first, whole) are visible throughout, [whole, stop) and, where `sinks` is 1, tile 0
        are so in part.
        """
        zero, stop = jnp.zeros((), jnp.int32), jnp.full((), self.key_blocks, jnp.int32)
        whole = jnp.full((), self.keys // self.key_block, jnp.int32)
        first, sinks = zero, zero
        if self.ordered:
            query = self.keys - self.queries + block * self.query_block
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


def attend_tiles(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    method: Method,
    params: Params,
    places: Places,
    *,
    causal: bool,
    ordered: bool,
    tile: int,
) -> Float[Array, "B T N V"]:
    """Attention by tiles of `tile` queries and keys, float32. See `lenext.attention.attend`.

    Args:
      q: queries.
      k: keys.
      v: values.
      method: one that `suits`.
      params: its learned parts.
      places: positions, padding, documents, `located`.
      causal: whether a row sees later keys.
      ordered: the positions are the defaults.
      tile: queries, and keys, of a tile.
    """
    plan = Plan(
        method, causal, ordered,
        hidden=places.kv_mask is not None or places.kv_segment_ids is not None,
        queries=q.shape[1], keys=k.shape[1],
        query_block=_even(q.shape[1], tile), key_block=_even(k.shape[1], tile),
        num_heads=q.shape[2], head_dim=q.shape[3],
    )  # fmt: skip
    n = _visible_keys(plan, places)
    rows = _rows(plan, places, n)
    q_sides = naive.query_sides(q, method, params, rows)
    k_sides = naive.key_sides(k, method, rows)
    v = v.astype(jnp.float32).swapaxes(1, 2)
    biased = {"position": params["position"]} if "position" in params else {}
    out = _attend(plan, q_sides, k_sides, v, biased, places, n)
    return out.swapaxes(1, 2)


def _even(length: int, tile: int) -> int:
    """At most `tile`, so that blocks are alike; a multiple of 16 where there are several."""
    blocks = -(-length // min(tile, length))
    size = -(-length // blocks)
    return min(tile, length, -(-size // 16) * 16)


def _rows(plan: Plan, places: Places, n: Int[Array, "#B 1 T 1"]) -> Rows:
    return rows_at(
        plan.method, places, n, causal=plan.causal, key_length=plan.keys,
        num_heads=plan.num_heads, head_dim=plan.head_dim,
    )  # fmt: skip


def _padded(x: Array, size: int, axis: int, *, mode: str = "constant") -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, mode=mode)


# Several products read a tile: XLA's CPU backend would make it anew, exps and all, for each.
_once = jax.lax.optimization_barrier

# Queries are filled up with the last one, whose row is as finite as itself.
_filled = functools.partial(_padded, mode="edge")


def _padded_places(plan: Plan, places: Places) -> Places:
    """Whole blocks of both, with padding keys masked."""
    queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
    mask = places.kv_mask
    if mask is None and keys > plan.keys:
        mask = jnp.ones((1, plan.keys), bool)
    places = places._replace(kv_mask=mask)
    whole = {
        name: _filled(x, queries, 1) if name.startswith("q_") else _padded(x, keys, 1)
        for name, x in places._asdict().items()
        if x is not None
    }
    return Places(**whole)


def _block(places: Places, start: Array, size: int, side: str) -> dict[str, Any]:
    return {
        name: None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, 1)
        for name, x in places._asdict().items()
        if name.startswith(side)
    }


def _tile_places(plan: Plan, places: Places, block: Array, tile: Array) -> Places:
    """The places of one tile of `_padded_places`."""
    queries = _block(places, block * plan.query_block, plan.query_block, "q_")
    keys = _block(places, tile * plan.key_block, plan.key_block, "kv_")
    return Places(**queries, **keys)


def _visible_keys(plan: Plan, places: Places) -> Int[Array, "#B 1 T 1"]:
    """n of every row: known beforehand, or counted over the tiles that the rows meet."""
    if plan.sees_all:
        last = jnp.arange(plan.queries) + plan.keys - plan.queries + 1
        n = last if plan.causal else jnp.full((plan.queries,), plan.keys)
        return n[None, None, :, None].astype(jnp.int32)
    padded = _padded_places(plan, places)

    def of_block(block):
        def add(tile, n):
            return n + count(
                visible(plan.method, _tile_places(plan, padded, block, tile), plan.causal)
            )

        leaves = [x for x in padded if x is not None]
        batch = max(x.shape[0] for x in leaves)
        n = jnp.zeros((batch, 1, plan.query_block, 1), jnp.int32)
        return _over_tiles(plan, block, lambda tile, n, _: add(tile, n), n)

    n = jnp.moveaxis(jax.lax.map(of_block, jnp.arange(plan.query_blocks)), 0, 2)
    return n.reshape(n.shape[0], 1, -1, 1)[:, :, : plan.queries]


def _over_tiles(
    plan: Plan, block: Array, step: Callable[[Array, Tree, bool], Tree], carry: Tree
) -> Tree:
    """Folds step(tile, carry, whole) over the tiles that a block of queries meets."""
    first, whole, stop, sinks = plan.tiles(block)
    if plan.sees_all:
        carry = jax.lax.fori_loop(first, whole, lambda j, c: step(j, c, True), carry)
    if plan.window is not None and plan.window[0]:
        # Before the first, in place of the tile one lower: the sinks'.
        def at(j, c):
            return step(jnp.where(j < first, 0, j), c, False)

        return jax.lax.fori_loop(first - sinks, stop, at, carry)
    return jax.lax.fori_loop(whole, stop, lambda j, c: step(j, c, False), carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q_sides, k_sides, v, params, places, n):
    return _forward(plan, q_sides, k_sides, v, params, places, n)[0]


class _Tiles:
    """The arrays of a call in whole blocks, and what one tile of them gives."""

    def __init__(self, plan, q_sides, k_sides, v, params, places, n):
        queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
        self.plan, self.params = plan, params
        self.q_sides = tuple(_filled(x, queries, 2) for x in q_sides)
        self.k_sides = tuple(_padded(x, keys, 2) for x in k_sides)
        self.v = _padded(v, keys, 2)
        self.n = _filled(n, queries, 2)
        self.places = _padded_places(plan, places)
        self.batch, self.kv_heads, _, self.value_dim = v.shape

    def queries_of(self, x: Array, block: Array) -> Array:
        """Block `block` of an array [B, N, T, ...]."""
        size = self.plan.query_block
        return jax.lax.dynamic_slice_in_dim(x, block * size, size, 2)

    def keys_of(self, x: Array, tile: Array) -> Array:
        """Tile `tile` of an array [B, K, S, ...]."""
        size = self.plan.key_block
        return jax.lax.dynamic_slice_in_dim(x, tile * size, size, 2)

    def rows(self, block: Array, tile: Array) -> tuple[Places, Rows]:
        """Places and rows of one tile."""
        places = _tile_places(self.plan, self.places, block, tile)
        return places, _rows(self.plan, places, self.queries_of(self.n, block))

    def mask(self, places: Places, whole: bool) -> Array | None:
        """What is visible in a tile; None for all."""
        return None if whole else visible(self.plan.method, places, self.plan.causal)

    def similarities(self, block: Array, tile: Array) -> list[Array]:
        """The products of both sides in one tile."""
        return [
            naive.products(self.queries_of(q, block), self.keys_of(k, tile))
            for q, k in zip(self.q_sides, self.k_sides, strict=True)
        ]

    def logits(self, block: Array, tile: Array, rows: Rows) -> Array:
        """Logits of one tile."""
        similarities = self.similarities(block, tile)
        return naive.logits(similarities, self.plan.method, self.params, rows)

    def combine(self, values: Array, tile: Array) -> Array:
        """The values' weighted sums over one tile of keys."""
        return naive.combine(values, self.keys_of(self.v, tile))

    def per_row(self, fill: float, dim: int = 1) -> Array:
        """A number (or `dim`) for each row of a block."""
        return jnp.full((self.batch, self.plan.num_heads, self.plan.query_block, dim), fill)


def _forward(plan, q_sides, k_sides, v, params, places, n):
    """Outputs [B, N, T, V], and what each row's weights are made with."""
    tiles = _Tiles(plan, q_sides, k_sides, v, params, places, n)
    weighting = plan.weighting
    twice = isinstance(weighting, Reweighted)

    def first_pass(block):
        def step(tile, carry, whole):
            largest, total, out, tops = carry
            place, rows = tiles.rows(block, tile)
            logits = tiles.logits(block, tile, rows)
            mask = tiles.mask(place, whole)
            if weighting.shifted:
                seen = True if mask is None else mask
                top = jnp.max(logits, axis=-1, keepdims=True, where=seen, initial=-jnp.inf)
                tops = tops if tops is None else tops.at[..., tile].set(top[..., 0])
                top = jnp.maximum(largest, top)
                before, shift = weighting.shift_at(largest), weighting.shift_at(top)
                carried = jnp.where(jnp.isfinite(largest), jnp.exp(before - shift), 0.0)
                largest, total = top, total * carried
                out = out if out is None else out * carried
            else:
                shift = largest
            values = _once(weighting.visible_values(logits, mask, shift, rows))
            if weighting.normalised:
                total = total + jnp.sum(values, axis=-1, keepdims=True)
            out = out if out is None else out + tiles.combine(values, tile)
            return largest, total, out, tops

        none = -jnp.inf if weighting.shifted else 0.0
        start = (
            tiles.per_row(none),
            tiles.per_row(0.0),
            None if twice else tiles.per_row(0.0, tiles.value_dim),
            tiles.per_row(-jnp.inf, plan.key_blocks) if twice else None,
        )
        largest, total, out, tops = _over_tiles(plan, block, step, start)
        total = total + weighting.rest(weighting.shift_at(largest))
        total = jnp.where(total > 0, total, 1.0) if weighting.normalised else jnp.ones_like(total)
        return largest, total, out, tops

    def of_block(block):
        largest, total, out, tops = first_pass(block)
        if not twice:
            return out / total, (largest, total, None)
        flat, keep = _second_stage(tiles, block, largest, total, tops)

        def step(tile, carry, whole):
            def add(carry):
                final, out = carry
                place, rows = tiles.rows(block, tile)
                logits = tiles.logits(block, tile, rows)
                mask = tiles.mask(place, whole)
                shift = weighting.shift_at(largest)
                sharp = _once(_sharpened(weighting, logits, mask, shift, total, largest, rows))
                final = final + jnp.sum(sharp, axis=-1, keepdims=True)
                return final, out + tiles.combine(sharp, tile)

            return jax.lax.cond(keep[tile], add, lambda carry: carry, carry)

        start = tiles.per_row(0.0), tiles.per_row(0.0, tiles.value_dim)
        final, out = _over_tiles(plan, block, step, start)
        final = jnp.where(flat | (final == 0), 1.0, final)
        return out / final, (largest, total, final)

    blocks = jax.lax.map(of_block, jnp.arange(plan.query_blocks))
    return jax.tree.map(functools.partial(_joined, plan), blocks)


def _joined(plan: Plan, x: Array) -> Array:
    """[blocks, B, N, block, V] to [B, N, T, V]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, : plan.queries]


def _sharpened(weighting, logits, mask, shift, total, largest, rows):
    """A tile's second-stage values, as a function of its logits and its rows' first total."""
    peak = weighting.visible_values(largest, None, shift, rows) / jax.lax.stop_gradient(total)
    first = weighting.visible_values(logits, mask, shift, rows) / total
    sharp = weighting.sharpened(first, peak, rows)
    return sharp if mask is None else jnp.where(mask, sharp, 0.0)


def _second_stage(tiles, block, largest, total, tops):
    """Rows in which nothing exceeds the offset, and the tiles that count beside their totals."""
    weighting = tiles.plan.weighting
    _, rows = tiles.rows(block, jnp.zeros((), jnp.int32))
    shift = weighting.shift_at(largest)
    peak = weighting.visible_values(largest, None, shift, rows) / total
    seen = jnp.isfinite(tops)
    best = weighting.visible_values(tops, seen, shift, rows) / total
    share = weighting.sharpened(best, peak, rows)
    flat = weighting.is_flat(peak, rows)
    counts = seen & (flat | (share * rows.n > NOTHING))
    return flat, jnp.any(counts, axis=(0, 1, 2))


def _attend_forward(plan, q_sides, k_sides, v, params, places, n):
    out, rows = _forward(plan, q_sides, k_sides, v, params, places, n)
    return out, (q_sides, k_sides, v, params, places, n, out, rows)


def _attend_backward(plan, saved, cotangent):
    """By tiles again: d logits = value'(logits) (d weights - the row's mean of them) / total."""
    q_sides, k_sides, v, params, places, n, out, (largest, total, final) = saved
    tiles = _Tiles(plan, q_sides, k_sides, v, params, places, n)
    weighting = plan.weighting
    queries = plan.query_blocks * plan.query_block
    twice = isinstance(weighting, Reweighted)
    mean = jnp.sum(out * cotangent, axis=-1, keepdims=True)
    cotangent, mean = (_padded(x, queries, 2) for x in (cotangent, mean))
    largest, total, final = (
        None if x is None else _filled(x, queries, 2) for x in (largest, total, final)
    )
    shift = weighting.shift_at(largest)

    def of_block(carry, block):
        d_k_sides, d_v, d_params = carry
        d_out, mean_b, shift_b, largest_b, total_b = (
            tiles.queries_of(x, block) for x in (cotangent, mean, shift, largest, total)
        )
        final_b = None if final is None else tiles.queries_of(final, block)
        _, some_rows = tiles.rows(block, jnp.zeros((), jnp.int32))

        def d_weights(tile):
            d = naive.products(d_out, tiles.keys_of(tiles.v, tile))
            if not twice:
                return (d - mean_b) / total_b if weighting.normalised else d
            peak = weighting.visible_values(largest_b, None, shift_b, some_rows) / total_b
            # Flat rows keep their first-stage weights, which no second total divides.
            return (d - jnp.where(weighting.is_flat(peak, some_rows), 0.0, mean_b)) / final_b

        d_total = None
        if twice and weighting.normalised:

            def add_totals(tile, d_total, whole):
                place, rows = tiles.rows(block, tile)
                logits = tiles.logits(block, tile, rows)
                mask = tiles.mask(place, whole)

                def stage(t):
                    return _sharpened(weighting, logits, mask, shift_b, t, largest_b, rows)

                _, pull = jax.vjp(stage, total_b)
                return d_total + pull(d_weights(tile))[0]

            d_total = _over_tiles(plan, block, add_totals, jnp.zeros_like(total_b))

        def step(tile, carry, whole):
            d_q, d_k_sides, d_v, d_params = carry
            place, rows = tiles.rows(block, tile)
            mask = tiles.mask(place, whole)
            similarities = tiles.similarities(block, tile)
            logits, pull_logits = jax.vjp(
                lambda x, p: naive.logits(x, plan.method, p, rows), similarities, params
            )

            def stages(x):
                first = weighting.visible_values(x, mask, shift_b, rows)
                if not twice:
                    return first, first
                return first, _sharpened(weighting, x, mask, shift_b, total_b, largest_b, rows)

            (first, last), pull_values = jax.vjp(stages, logits)
            d_first = (
                jnp.zeros_like(first) if d_total is None else jnp.broadcast_to(d_total, first.shape)
            )
            (d_logits,) = pull_values((d_first, d_weights(tile)))
            d_similarities, d_params_tile = pull_logits(d_logits)
            d_similarities = _once(d_similarities)
            weights = _once(last / (final_b if twice else total_b))

            def added(whole_array, part):
                at = tile * plan.key_block
                old = jax.lax.dynamic_slice_in_dim(whole_array, at, plan.key_block, 3)
                return jax.lax.dynamic_update_slice_in_dim(whole_array, old + part, at, 3)

            d_q_tile = tuple(
                naive.combine(d, tiles.keys_of(k, tile))
                for d, k in zip(d_similarities, tiles.k_sides, strict=True)
            )
            d_k_tile = tuple(
                _keys_gradient(d, tiles.queries_of(q, block), tiles.kv_heads)
                for d, q in zip(d_similarities, tiles.q_sides, strict=True)
            )
            return (
                jax.tree.map(jnp.add, d_q, d_q_tile),
                jax.tree.map(added, d_k_sides, d_k_tile),
                added(d_v, _keys_gradient(weights, d_out, tiles.kv_heads)),
                jax.tree.map(jnp.add, d_params, d_params_tile),
            )

        d_q = tuple(jnp.zeros((*x.shape[:2], plan.query_block, x.shape[3])) for x in tiles.q_sides)
        d_q, *carry = _over_tiles(plan, block, step, (d_q, d_k_sides, d_v, d_params))
        return tuple(carry), d_q

    # Gradients of keys and values with the tokens last: so none of the products in the loop has
    # to turn a tile around.
    d_keys = [jnp.zeros_like(x.swapaxes(2, 3)) for x in (*tiles.k_sides, tiles.v)]
    start = tuple(d_keys[:-1]), d_keys[-1], jax.tree.map(jnp.zeros_like, params)
    (d_k_sides, d_v, d_params), d_q_sides = jax.lax.scan(
        of_block, start, jnp.arange(plan.query_blocks)
    )
    d_q_sides = jax.tree.map(functools.partial(_joined, plan), d_q_sides)
    d_k_sides, d_v = jax.tree.map(lambda x: x[..., : plan.keys].swapaxes(2, 3), (d_k_sides, d_v))
    return d_q_sides, d_k_sides, d_v, d_params, None, None


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
