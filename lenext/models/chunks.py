"""A layer over part after part of a long sequence, where no gradient is wanted.

Of all tokens' activations no more lies in memory than what enters the layer, the keys' sides and
the values. Each part goes through the layer twice: for its keys and values, and, once those of all
are there, for its output, which takes the place of what entered.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention import AnyMethod, HeadMethods, row_statistics
from lenext.attention.compute.parted import Kept, Parted
from lenext.models.attention import Attention, Context

CHUNK = 16384
"""Tokens of a part: few beside a sequence that wants parts, many beside a tile."""
LONG = 65536
"""Tokens of a sequence up to which its activations are no matter."""


def chunks_suit(methods: tuple[AnyMethod, ...], context: Context) -> bool:
    """Whether layers under these methods can be run so.

    Kernels of accelerators, which have more memory, take all queries at once. What follows the
    layer's input wants all of that; and heads of several methods, packs, and positions of one's
    own go without, too.
    """
    plain = all(not isinstance(own, HeadMethods) and not own.gated for own in methods)
    alone = context.positions is None and context.segment_ids is None
    looked_at = context.probe is None or context.look is row_statistics
    here = jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty
    return plain and alone and looked_at and here


def run_in_chunks(
    layer: Any, x: Float[Array, "B T D"], context: Context, *, size: int
) -> tuple[Float[Array, "B T D"], Any]:
    """x, one layer on, and the statistics of the probed rows; of more than `size` tokens.

    The last part reaches back where T is no multiple of `size`.
    """
    tokens = x.shape[1]
    attention: Attention = layer.attention
    starts = jnp.minimum(jnp.arange(0, tokens, size, dtype=jnp.int32), tokens - size)

    def part_of(x: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, 1)

    def through(part: Array, attend: Callable[[Array, Array, Array], tuple[Array, Any]]) -> Any:
        return layer(part, lambda _, q, k, v, __: attend(q, k, v), dropout_key=None)

    def read(part: Array, f: Callable[[Array, Array, Array], Any]) -> Any:
        """f(q, k, v) of a part, whose output nobody wants."""

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            return jnp.zeros((*q.shape[:3], v.shape[3]), v.dtype), f(q, k, v)

        return through(part, attend)[1]

    def of_method(method: Any, learned: Any) -> tuple[Array, Any]:
        parted = Parted(
            method, tokens, causal=attention.causal, params=learned,
            kv_mask=context.mask, length=tokens if context.length is None else context.length,
        )  # fmt: skip

        def queries_and_kept(start: Array) -> tuple[Array, Kept]:
            return read(
                part_of(x, start),
                lambda q, k, v: (q, parted.keep(k, v, start, num_heads=q.shape[2])),
            )

        def keep(kept: Kept, start: Array) -> tuple[Kept, None]:
            def put(whole: Array, own: Array) -> Array:
                return jax.lax.dynamic_update_slice_in_dim(whole, own, start, 2)

            return jax.tree.map(put, kept, queries_and_kept(start)[1]), None

        how = attention.implementation
        form = jax.eval_shape(queries_and_kept, starts[0])
        kept, _ = jax.lax.scan(keep, parted.room(*form, implementation=how), starts)

        # What is looked at, and the last part, which the one before may have gone over in part; in
        # one, so that XLA knows it to be read before x is overwritten, and keeps no copy of x.
        at = jnp.zeros((0,), jnp.int32) if context.probe is None else context.probe
        ends = jnp.concatenate([at, jnp.arange(tokens - size, tokens, dtype=jnp.int32)])
        rows, last = jnp.split(x[:, ends], [at.size], axis=1)

        def step(x: Array, start: Array) -> tuple[Array, None]:
            def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
                return parted.attend(q, kept, start, implementation=how), None

            out, _ = through(jnp.where(start == tokens - size, last, part_of(x, start)), attend)
            return jax.lax.dynamic_update_slice_in_dim(x, out, start, 1), None

        seen = None
        if context.probe is not None:
            seen = read(rows, lambda q, k, v: parted.statistics(q, kept, at))
        return jax.lax.scan(step, x, starts)[0], seen

    return attention.by_own(of_method)
