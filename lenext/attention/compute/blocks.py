"""The definition over blocks of queries: complete rows in O(block * S) memory.

Whatever is computed from a block's complete rows (attention, statistics) is given as a function
and mapped; the backward pass recomputes each block. Under causality with the default positions,
queries go in a few static groups, each against only the prefix of keys that it can see.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params
from lenext.attention.axes.method import Method
from lenext.attention.compute.naive import KeySides, scores
from lenext.attention.compute.places import Places

# Float32 entries of a block's rows: small enough to stay in a CPU's cache, large enough that the
# loop costs nothing. Measured in experiments/benchmarks/block_size.py.
BLOCK_ENTRIES = 2**18
# Prefixes of keys compiled for a causal sequence: g groups cost (g + 1) / 2g of the full square.
CAUSAL_GROUPS = 8

RowFunction = Callable[..., Any]
"""(scores of a block, that block's values, heads first, or None) -> pytree of [B, block, ...]."""


def default_block_size(batch: int, num_heads: int, key_length: int) -> int:
    """Queries a block, a power of two from 32 to 1024."""
    wanted = max(1, BLOCK_ENTRIES // max(1, batch * num_heads * key_length))
    return min(max(2 ** (wanted.bit_length() - 1), 32), 1024)


def map_blocks(
    row_function: RowFunction,
    q: Float[Array, "B T N H"],
    k_sides: KeySides,
    v: Float[Array, "B K S V"] | None,
    method: Method,
    params: Params,
    places: Places,
    *,
    causal: bool,
    ordered: bool,
    length: int,
    block_size: int,
) -> Any:
    """Applies `row_function` to blocks of complete rows and joins the results along axis 1.

    Args:
      row_function: see `RowFunction`.
      q: queries.
      k_sides: of the keys.
      v: values, heads first, handed on to `row_function` in float32.
      method: the method.
      params: its learned parts.
      places: positions, padding, documents.
      causal: whether a row sees later keys.
      ordered: the positions are the defaults (keys 0..S-1, queries the last T of them), so that
        what a causal row can see is known without looking.
      length: tokens in every document, unless `places` say otherwise.
      block_size: queries a block.

    Returns:
      What `row_function` gives, with T in place of the block.
    """
    queries_length, key_length = q.shape[1], k_sides[0].shape[2]
    block_size = min(block_size, queries_length)
    # Float32 before the blocks: gradients are summed over them, which 16 bits do not bear.
    k_sides = tuple(side.astype(jnp.float32) for side in k_sides)
    v = None if v is None else v.astype(jnp.float32)

    def one_block(block_q, block_places, k_sides, v, params):
        scored = scores(
            block_q, k_sides, method, params, block_places, causal=causal, length=length
        )
        return row_function(scored, v)

    def queries(start: int, stop: int, keys: int) -> Any:
        """The rows of queries [start, stop) against the first `keys` keys."""
        count = -(-(stop - start) // block_size)
        padding = count * block_size - (stop - start)
        key_places, query_places = (
            {name: x for name, x in places._asdict().items() if name.startswith(side)}
            for side in ("kv_", "q_")
        )
        key_places = jax.tree.map(lambda x: x[:, :keys], key_places)
        some_k, some_v = jax.tree.map(lambda x: x[:, :, :keys], (k_sides, v))

        def split(x):
            x = jax.lax.slice_in_dim(x, start, stop, axis=1)
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(x.shape[0], count, block_size, *x.shape[2:]), 1, 0)

        def body(block):
            block_q, block_places = block
            return jax.checkpoint(one_block, prevent_cse=False)(
                block_q, Places(**block_places, **key_places), some_k, some_v, params
            )

        blocks = jax.tree.map(split, (q, query_places))
        if count == 1:
            out = body(jax.tree.map(lambda x: x[0], blocks))
            return jax.tree.map(lambda x: x[:, : stop - start], out)
        out = jax.lax.map(body, blocks)

        def join(x):
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(x.shape[0], count * block_size, *x.shape[3:])[:, : stop - start]

        return jax.tree.map(join, out)

    if not (causal and ordered):
        return queries(0, queries_length, key_length)
    blocks = -(-queries_length // block_size)
    group = block_size * -(-blocks // CAUSAL_GROUPS)
    starts = range(0, queries_length, group)
    hidden_before = key_length - queries_length  # keys before the first query
    outs = [
        queries(start, stop, hidden_before + stop)
        for start, stop in ((start, min(start + group, queries_length)) for start in starts)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outs)
