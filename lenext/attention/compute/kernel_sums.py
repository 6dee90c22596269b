"""What kernels sum up, over the tiles of a block of queries or over the blocks that see a tile.

How such a sum is run on an accelerator is for `tpu` and `triton` to say.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute.call import Call
from lenext.attention.compute.kernel_step import Step, product
from lenext.attention.compute.plan import Plan, padded

ROWS = 8  # numbers of the rows come in as many lines, or a multiple: a TPU's register has them
OUTPUTS, OF_QUERIES, OF_KEYS = "lenext_outputs", "lenext_dq", "lenext_dkv"
TOTALS = "lenext_totals"
"""The kernels' names, as profiles show them."""


class Kernel(abc.ABC):
    """The arrays of a call in whole blocks, and the kernels that go over them.

    Attributes:
      width: of the arrays in which sums of rows are kept, [T, width]; the sum of all is the row's.
      most_steps: of the forward pass, for one head.
    """

    width: ClassVar[int]
    most_steps: ClassVar[int]

    @classmethod
    @abc.abstractmethod
    def why_not(cls, call: Call) -> str | None:
        """Why a call cannot be taken that a kernel could take elsewhere; see `kernels.why_not`."""

    @classmethod
    @abc.abstractmethod
    def plans(cls, call: Call) -> tuple[Plan, Plan]:
        """The plan of a call's forward pass, and of its backward pass."""

    @classmethod
    def whole_dim(cls, dim: int) -> int:
        """What arrays' last dimensions are padded to."""
        return dim

    @abc.abstractmethod
    def spread(self, x: Float[Array, "T W"]) -> Float[Array, "T 1"]:
        """A number a row of rows that hold it throughout."""

    @abc.abstractmethod
    def row_totals(self, values: Float[Array, "T S"]) -> Float[Array, "T W"]:
        """Parts of the rows' totals, which are added up in the end."""

    @abc.abstractmethod
    def write_rows(self, to: Any, *numbers: Float[Array, "T W"]) -> None:
        """Numbers of rows that hold them throughout, each into a line of its own."""

    @abc.abstractmethod
    def run(
        self,
        name: str,
        start: Callable[..., None],
        add: Callable[..., None],
        end: Callable[..., None],
        *,
        scratch: Sequence[tuple[int, int]],
        outs: Sequence[tuple[int, Any]],
        by_tile: bool = False,
        sums: bool = False,
    ) -> list[Array]:
        """A kernel that sums over tiles for each block of queries, or over blocks for each tile.

        Args:
          name: its own.
          start: makes the sums' arrays what they are before the first step, of those arrays.
          add: adds a step's part, of the step and the arrays.
          end: writes what is made of them, of the outputs' arrays and those of the sums.
          scratch: shapes of the sums' arrays, float32.
          outs: last dimension and type of each output, [B, N, T or S, .].
          by_tile: which of the two.
          sums: whether there are rows' numbers, [B, N, 8, T], as well.
        """

    def __init__(self, plan, q_sides, k_sides, v, interpret, rows, d_out=None):
        queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
        self.plan, self.weighting, self.interpret = plan, plan.weighting, interpret
        self.twice = isinstance(self.weighting, TwoStage)
        self.totals = self.twice and self.weighting.normalised
        self.q_sides = [padded(x, queries, 2) for x in q_sides]
        self.forms = [(x.shape[3], x.dtype) for x in (*k_sides, v)]
        words = k_sides[0].dtype != q_sides[0].dtype
        self.k_sides = [padded(in_words(x, v.dtype) if words else x, keys, 2) for x in k_sides]
        self.of_keys = [*self.k_sides, padded(v, keys, 2)]
        self.of_queries = [*self.q_sides, *([] if d_out is None else [padded(d_out, queries, 2)])]
        self.names, self.rows = list(rows), per_row([*rows.values()], queries)

    def outputs(self) -> list[Array]:
        """Outputs [B, N, T, V], and rows' largest logits and totals, [B, N, 8, T].

        Of rows of two stages the latter alone.
        """
        weighting, dtype = self.weighting, self.of_keys[-1].dtype
        size, dim = self.plan.query_block, self.of_keys[-1].shape[3]
        tracked = self.plan.shifted or self.twice

        def start(largest, total, *out):
            largest[...] = jnp.full(largest.shape, -jnp.inf if tracked else 0.0, jnp.float32)
            _zero(total, *out)

        def add(step: Step, largest, total, *out):
            logits, mask = step.logits_of(step.products()), step.mask()
            before, carried = self.spread(largest[...])[None, None], None
            top = before
            if tracked:
                seen = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
                top = jnp.maximum(before, jnp.max(seen, axis=-1, keepdims=True))
                largest[...] = jnp.broadcast_to(top[0, 0], largest.shape)
            shift = self.plan.shift_at(top, {})
            if self.plan.shifted:
                less = self.plan.shift_at(before, {}) - shift
                carried = jnp.where(before > -jnp.inf, jnp.exp(less), 0.0)[0, 0]
            values = step.values(logits, mask, shift)[0, 0]
            if weighting.normalised:
                own = self.row_totals(values)
                total[...] = own + (total[...] if carried is None else total[...] * carried)
            for x in out:
                own = product(values.astype(dtype), step.keys[-1], 1, 0)
                x[...] = own + (x[...] if carried is None else x[...] * carried)

        def end(written, largest, total, *out):
            divisor = jnp.ones((size, 1), jnp.float32)
            if weighting.normalised:
                shift = self.plan.shift_at(self.spread(largest[...])[None, None], {})
                divisor = jnp.sum(total[...], axis=1, keepdims=True)
                divisor = divisor + weighting.rest_at(shift, {})[0, 0]
                divisor = jnp.where(divisor > 0, divisor, 1.0)
            for to, x in zip(written[:-1], out, strict=True):
                to[0, 0] = (x[...] / divisor).astype(dtype)
            self.write_rows(written[-1], largest[...], jnp.broadcast_to(divisor, total.shape))

        rows = [(size, self.width)] * 2
        if self.twice:
            return self.run(TOTALS, start, add, end, scratch=rows, outs=[], sums=True)
        return self.run(
            OUTPUTS, start, add, end, scratch=[*rows, (size, dim)], outs=[(dim, dtype)], sums=True
        )

    def last_outputs(self) -> list[Array]:
        """Of rows of two stages, sums of values by their last weights, and the sums of those."""
        size, dim = self.plan.query_block, self.of_keys[-1].shape[3]

        def add(step: Step, divisor, out):
            logits, mask = step.logits_of(step.products()), step.mask()
            last = step.last(logits, mask, step.row("scale"))[0, 0]
            divisor[...] += self.row_totals(last)
            out[...] += product(last.astype(self.of_keys[-1].dtype), step.keys[-1], 1, 0)

        def end(written, divisor, out):
            whole = jnp.sum(divisor[...], axis=1, keepdims=True)
            written[0][0, 0] = out[...]
            self.write_rows(written[1], jnp.broadcast_to(whole, divisor.shape))

        return self.run(
            OUTPUTS, _zero, add, end, scratch=[(size, self.width), (size, dim)],
            outs=[(dim, jnp.float32)], sums=True,
        )  # fmt: skip

    def query_gradients(self) -> list[Array]:
        """Of the queries' sides; and of rows of two stages those of the first totals, by row."""
        size, count = self.plan.query_block, len(self.q_sides)

        def add(step: Step, *sums):
            logits, pull_products = jax.vjp(step.logits_of, step.products())
            mask, shift = step.mask(), step.shift()

            def values(logits):
                return step.values(logits, mask, shift)

            if not self.twice:
                _, pull = jax.vjp(values, logits)
                self._add(step, sums, *pull_products(*pull(step.d_values())), of_keys=False)
                return
            scale = step.row("scale")
            _, pull = jax.vjp(
                lambda logits, scale: step.last(logits, mask, scale),
                logits, jnp.broadcast_to(scale, logits.shape),
            )  # fmt: skip
            d_logits, d_scale = pull(step.d_values())
            self._add(step, sums, *pull_products(d_logits), of_keys=False)
            if self.totals:  # what follows the first total: times its gradient, once that is known
                _, pull = jax.vjp(values, logits)
                slopes = pull_products(*pull(jnp.ones_like(logits)))
                self._add(step, sums[count:], *slopes, of_keys=False)
                sums[-1][...] -= self.row_totals(d_scale[0, 0]) * scale[0, 0] ** 2

        def end(written, *sums):
            found = [x[...] for x in sums[:count]]
            if self.totals:
                d_total = jnp.sum(sums[-1][...], axis=1, keepdims=True)
                found = [x + d_total * y[...] for x, y in zip(found, sums[count:], strict=False)]
                self.write_rows(written[-1], jnp.broadcast_to(d_total, sums[-1].shape))
            for to, x in zip(written, found, strict=False):
                to[0, 0] = x.astype(to.dtype)

        outs = [(x.shape[3], x.dtype) for x in self.q_sides]
        scratch = [(size, dim) for dim, _ in outs]
        return self.run(
            OF_QUERIES, _zero, add, end, outs=outs, sums=self.totals,
            scratch=[*scratch, *scratch, (size, self.width)] if self.totals else scratch,
        )  # fmt: skip

    def key_gradients(self) -> list[Array]:
        """Of the keys' sides and the values, for each query head."""
        size = self.plan.key_block

        def add(step: Step, *sums):
            logits, pull_products = jax.vjp(step.logits_of, step.products())
            mask, shift = step.mask(), step.shift()

            def both(logits):
                first = step.values(logits, mask, shift)
                last = step.last(logits, mask, step.row("scale")) if self.twice else first
                return last, first if self.totals else ()

            (last, _), pull = jax.vjp(both, logits)
            # What the first total follows: counted apart, since it is held fixed in the last.
            d_first = jnp.broadcast_to(step.row("d_total"), logits.shape) if self.totals else ()
            self._add(step, sums, *pull_products(*pull((step.d_values(), d_first))), of_keys=True)
            if self.twice or self.weighting.normalised:
                last = last * step.row("inverse")
            *_, d_out = step.queries
            sums[-1][...] += product(last[0, 0].astype(d_out.dtype), d_out, 0, 0)

        def end(written, *sums):
            for to, x in zip(written, sums, strict=True):
                to[0, 0] = x[...].astype(to.dtype)

        scratch = [(size, dim) for dim, _ in self.forms]
        return self.run(OF_KEYS, _zero, add, end, scratch=scratch, outs=self.forms, by_tile=True)

    def _add(self, step: Step, sums: Any, d_products: list[Array], *, of_keys: bool) -> None:
        """Adds to the gradients of the sides of the pieces that count in a step."""
        *_, d_out = step.queries
        for piece, d in zip(step.pieces, d_products, strict=True):
            other = (step.queries if of_keys else step.keys)[piece].astype(d_out.dtype)
            sums[piece][...] += product(d[0, 0].astype(d_out.dtype), other, 0 if of_keys else 1, 0)


def per_row(rows: Sequence[Array], queries: int) -> Float[Array, "B N R T"]:
    """Numbers of the rows, [B, N, T, 1] each, along the lanes: else they would take 128 times that.

    A row of the last number once more, and rows of nothing up to whole registers.
    """
    shape = np.max([x.shape[:3] for x in rows], axis=0)
    whole = [jnp.broadcast_to(x[..., 0].astype(jnp.float32), shape) for x in rows]
    lines = -(-len(whole) // ROWS) * ROWS
    return padded(padded(jnp.stack(whole, axis=2), queries, 3, mode="edge"), lines, 2)


def in_words(x: Float[Array, "*B H"], dtype: Any) -> Float[Array, "*B 2*H"]:
    """x as the sum of two numbers of that type, the larger ones first."""
    high = x.astype(dtype)
    return jnp.concatenate([high, (x - high.astype(x.dtype)).astype(dtype)], axis=-1)


def _zero(*sums: Any) -> None:
    for x in sums:
        x[...] = jnp.zeros(x.shape, jnp.float32)
