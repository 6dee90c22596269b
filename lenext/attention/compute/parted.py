"""Attention of a part of the queries at a time to all keys, for sequences that are their own keys.

Of keys and values no more lies in memory than what products meet: the keys' sides (see
`lenext.attention.compute.naive`) and the values, both made part by part.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lenext.attention.axes.axis import Params
from lenext.attention.axes.method import Method
from lenext.attention.compute import diagnostics, naive
from lenext.attention.compute.blocks import map_blocks
from lenext.attention.compute.call import Call
from lenext.attention.compute.choice import Choice, choose
from lenext.attention.compute.places import Places, located, rows_at
from lenext.attention.compute.plan import plan_of
from lenext.attention.compute.sided import attend_sides

PROBED_ENTRIES = 2**22  # of complete rows that are looked at together


class Kept(NamedTuple):
    """What attention wants of keys.

    Attributes:
      sides: those of the pieces that turn keys differently.
      v: values.
    """

    sides: tuple[Float[Array, "B K S I"], ...]
    v: Float[Array, "B K S V"]


class Parted:
    """A call of `attend` whose keys, and then queries, come part by part.

    Args:
      method: whose gates, if any, are none.
      tokens: T, of all queries and of all keys.
      causal: as in `attend`.
      params: the method's learned parts.
      kv_mask: as in `attend`.
      length: in tokens, of each document.
    """

    def __init__(
        self, method: Method, tokens: int, *, causal: bool, params: Params,
        kv_mask: Bool[Array, "#B T"] | None, length: int | Int[Array, "#B"],
    ):  # fmt: skip
        self.method, self.tokens, self.causal, self.params = method, tokens, causal, params
        at = jnp.arange(tokens, dtype=jnp.int32)[None]
        places = Places(at, at, kv_mask=kv_mask)
        if kv_mask is None:
            places = places._replace(q_starts=jnp.zeros_like(at), kv_starts=jnp.zeros_like(at))
        known = isinstance(length, int) or not method.follows_length
        self.length = length if isinstance(length, int) else tokens
        if not known:
            by_row = jnp.asarray(length, jnp.int32).reshape(-1, 1)
            lengths = jnp.broadcast_to(by_row, (by_row.shape[0], tokens))
            places = places._replace(kv_lengths=lengths)
        self.places = located(places)

    def call(self, q: Any, kept: Kept) -> Call:
        """Of a part of the queries, by shapes."""
        kv_heads, v_dim = kept.v.shape[1], kept.v.shape[3]
        keys = q.shape[0], self.tokens, kv_heads
        return Call(
            self.method, q.shape, (*keys, q.shape[3]), (*keys, v_dim), kept.v.dtype.name,
            self.causal, ordered=True, masked=self.places.kv_mask is not None, length=self.length,
            part=True,
        )  # fmt: skip

    def keep(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K V"], start: Int[Array, ""] | int,
        *, num_heads: int,
    ) -> Kept:  # fmt: skip
        """Of the keys from `start` on."""
        places = _some(self.places, start, k.shape[1])
        if places.kv_mask is not None:
            k, v = (jnp.where(places.kv_mask[:, :, None, None], x, 0) for x in (k, v))
        sides = naive.sides_of_keys(
            k, self.method, places, causal=self.causal, length=self.length, num_heads=num_heads
        )
        return Kept(naive.distinct(sides), v.swapaxes(1, 2))

    def room(self, q: Any, made: Kept, *, implementation: str) -> Kept:
        """Zeros, to be filled with what `keep` makes of all keys; by the shapes of one part.

        Tiles find whole blocks there, and so copy nothing to fill up the last.
        """
        call = self.call(q, made)
        choice = self.choice(call, implementation)
        keys = self.tokens
        if choice.by_tiles:
            assert choice.block_size is not None  # "blockwise" has one
            plan = plan_of(call, choice.block_size)
            keys = plan.key_blocks * plan.key_block
        return jax.tree.map(lambda x: jnp.zeros((*x.shape[:2], keys, x.shape[3]), x.dtype), made)

    def choice(self, call: Call, implementation: str) -> Choice:
        """What a part of the queries takes."""
        return choose(call, wanted=implementation, block_size=None, backend=jax.default_backend())

    def attend(
        self, q: Float[Array, "B T N H"], kept: Kept, start: Int[Array, ""] | int, *,
        implementation: str,
    ) -> Float[Array, "B T N V"]:  # fmt: skip
        """Outputs for the queries from `start` on, in their type."""
        call = self.call(q, kept)
        places = self.places._replace(**_side(_some(self.places, start, q.shape[1]), "q_"))
        return attend_sides(
            q, self._pieces(kept.sides, q), kept.v, self.params, places, call=call,
            choice=self.choice(call, implementation),
        )  # fmt: skip

    def statistics(
        self, q: Float[Array, "B R N H"], kept: Kept, at: Int[Array, " R"]
    ) -> diagnostics.RowStatistics:
        """Of the rows at these places, as `row_statistics` has them."""
        batch, _, num_heads, _ = q.shape
        rows = jax.tree.map(lambda x: x[:, at], _side(self.places, "q_"))
        sides = tuple(x[:, :, : self.tokens] for x in self._pieces(kept.sides, q))

        def figures(scored: naive.Scores, _: Any) -> diagnostics.RowStatistics:
            found = diagnostics.statistics(scored, self.method)
            return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), found)

        out = map_blocks(
            figures, q, sides, None, self.method, self.params, self.places._replace(**rows),
            causal=self.causal, ordered=False, length=self.length,
            block_size=max(1, PROBED_ENTRIES // (batch * num_heads * self.tokens)),
        )  # fmt: skip
        return jax.tree.map(lambda x: jnp.moveaxis(x, 2, 1), out)

    def _pieces(self, distinct: tuple[Array, ...], q: Array) -> naive.KeySides:
        """The side of each piece, of those that differ."""
        first = jax.tree.map(lambda x: x[:, :1], self.places)
        rows = rows_at(
            self.method, first, jnp.ones((1, 1, 1, 1), jnp.int32), causal=self.causal,
            length=self.length, num_heads=q.shape[2], head_dim=q.shape[3],
        )  # fmt: skip
        return naive.of_pieces(distinct, self.method, rows)


def _side(places: Places, side: str) -> dict[str, Any]:
    return {name: x for name, x in places._asdict().items() if name.startswith(side)}


def _some(places: Places, start: Int[Array, ""] | int, size: int) -> Places:
    """Those of some of the tokens."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), places)
