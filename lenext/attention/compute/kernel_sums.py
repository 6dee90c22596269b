"""The kernels for TPUs, in Pallas: each sums over tiles for a block of queries, or over blocks."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute.plan import padded
from lenext.attention.compute.tpu_steps import LANES, steps_of
from lenext.attention.compute.tpu_tile import Step, Traced, product

ROWS = 8  # of a register
VMEM = 64 * 2**20
OUTPUTS, OF_QUERIES, OF_KEYS = "lenext_outputs", "lenext_dq", "lenext_dkv"
TOTALS = "lenext_totals"
"""The kernels' names, as profiles show them."""


class Kernel:
    """The arrays of a call in whole blocks, and the kernels that go over them."""

    def __init__(self, plan, q_sides, k_sides, v, interpret, rows, d_out=None):
        queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
        self.plan, self.weighting, self.interpret = plan, plan.weighting, interpret
        self.twice = isinstance(self.weighting, TwoStage)
        self.totals = self.twice and self.weighting.normalised
        self.q_sides = [padded(x, queries, 2) for x in q_sides]
        self.k_forms = [(x.shape[3], x.dtype) for x in k_sides]
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
            largest[...] = jnp.full_like(largest, -jnp.inf if tracked else 0.0)
            for x in (total, *out):
                x[...] = jnp.zeros_like(x)

        def add(step: Step, largest, total, *out):
            logits, mask = step.logits_of(step.products()), step.mask()
            before, carried = _spread(largest[...])[None, None], None
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
                own = _lane_totals(values)
                total[...] = own + (total[...] if carried is None else total[...] * carried)
            for x in out:
                own = product(values.astype(dtype), step.keys[-1], 1, 0)
                x[...] = own + (x[...] if carried is None else x[...] * carried)

        def end(written, largest, total, *out):
            divisor = jnp.ones((size, 1), jnp.float32)
            if weighting.normalised:
                shift = self.plan.shift_at(_spread(largest[...])[None, None], {})
                divisor = jnp.sum(total[...], axis=1, keepdims=True)
                divisor = divisor + weighting.rest_at(shift, {})[0, 0]
                divisor = jnp.where(divisor > 0, divisor, 1.0)
            for to, x in zip(written[:-1], out, strict=True):
                to[0, 0] = (x[...] / divisor).astype(dtype)
            _write_rows(written[-1], largest[...], jnp.broadcast_to(divisor, total.shape))

        return self._run(
            OUTPUTS if not self.twice else TOTALS, start, add, end, sums=True,
            scratch=[(size, LANES), (size, LANES), *([] if self.twice else [(size, dim)])],
            outs=[] if self.twice else [(dim, dtype)],
        )  # fmt: skip

    def last_outputs(self) -> list[Array]:
        """Of rows of two stages, sums of values by their last weights, and the sums of those."""
        size, dim = self.plan.query_block, self.of_keys[-1].shape[3]

        def add(step: Step, divisor, out):
            logits, mask = step.logits_of(step.products()), step.mask()
            last = step.last(logits, mask, step.row("scale"))[0, 0]
            divisor[...] += _lane_totals(last)
            out[...] += product(last.astype(self.of_keys[-1].dtype), step.keys[-1], 1, 0)

        def end(written, divisor, out):
            whole = jnp.sum(divisor[...], axis=1, keepdims=True)
            written[0][0, 0] = out[...]
            _write_rows(written[1], jnp.broadcast_to(whole, divisor.shape))

        return self._run(
            OUTPUTS, _zero, add, end, scratch=[(size, LANES), (size, dim)],
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
                sums[-1][...] -= _lane_totals(d_scale[0, 0]) * scale[0, 0] ** 2

        def end(written, *sums):
            found = [x[...] for x in sums[:count]]
            if self.totals:
                d_total = jnp.sum(sums[-1][...], axis=1, keepdims=True)
                found = [x + d_total * y[...] for x, y in zip(found, sums[count:], strict=False)]
                _write_rows(written[-1], jnp.broadcast_to(d_total, sums[-1].shape))
            for to, x in zip(written, found, strict=False):
                to[0, 0] = x.astype(to.dtype)

        outs = [(x.shape[3], x.dtype) for x in self.q_sides]
        scratch = [(size, dim) for dim, _ in outs]
        return self._run(
            OF_QUERIES, _zero, add, end, outs=outs, sums=self.totals,
            scratch=[*scratch, *scratch, (size, LANES)] if self.totals else scratch,
        )  # fmt: skip

    def key_gradients(self) -> list[Array]:
        """Of the keys' sides and the values, for each query head."""
        values, size = self.of_keys[-1], self.plan.key_block

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

        outs = [*self.k_forms, (values.shape[3], values.dtype)]
        return self._run(
            OF_KEYS, _zero, add, end, by_tile=True,
            scratch=[(size, dim) for dim, _ in outs], outs=outs,
        )  # fmt: skip

    def _add(self, step: Step, sums: Any, d_products: list[Array], *, of_keys: bool) -> None:
        """Adds to the gradients of the sides of the pieces that count in a step."""
        *_, d_out = step.queries
        for piece, d in zip(step.pieces, d_products, strict=True):
            other = (step.queries if of_keys else step.keys)[piece].astype(d_out.dtype)
            other = other[:, : self.k_forms[piece][0]]  # of keys in words, the first
            sums[piece][...] += product(d[0, 0].astype(d_out.dtype), other, 0 if of_keys else 1, 0)

    def _run(
        self, name, start, add, end, *, scratch, outs, by_tile=False, sums=False
    ) -> list[Array]:
        """A kernel that sums over tiles for each block of queries, or over blocks for each tile.

        Args:
          name: its own.
          start: makes the sums' arrays what they are before the first step, of those arrays.
          add: adds a step's part, of the step and the arrays.
          end: writes what is made of them, of the outputs' arrays and those of the sums.
          by_tile: which of the two.
          scratch: shapes of the sums' arrays, float32.
          outs: last dimension and type of each output, [B, N, T or S, .].
          sums: whether there are rows' numbers, [B, N, 8, T], as well.
        """
        # Imported here: Pallas for TPUs is no light import, and of use on TPUs only.
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        plan, steps = self.plan, steps_of(self.plan, by_tile=by_tile)
        traced = Traced(plan, len(self.q_sides))
        batch, heads = self.of_queries[0].shape[:2]
        group = heads // self.of_keys[0].shape[1]

        def at_block(b, h, s, block, tile, what):
            return b, h, block[s], 0

        def at_tile(b, h, s, block, tile, what):
            return b, jax.lax.div(h, group), tile[s], 0

        def of_head(b, h, s, block, tile, what):
            return b, h, (tile if by_tile else block)[s], 0

        def rows_of(b, h, s, block, tile, what):
            ours = [
                jnp.where(size > 1, i, 0) for i, size in zip((b, h), self.rows.shape, strict=False)
            ]
            return *ours, 0, block[s]

        def kernel(block, tile, what, *refs):
            queries, refs = refs[: len(self.of_queries)], refs[len(self.of_queries) :]
            keys, refs = refs[: len(self.of_keys)], refs[len(self.of_keys) :]
            rows, *refs = refs
            written, sums_of = refs[: len(refs) - len(scratch)], refs[len(refs) - len(scratch) :]
            number = pl.program_id(2)
            this = what[number]
            pl.when(this & 1 == 1)(lambda: start(*sums_of))
            for i, kind in enumerate(steps.kinds):
                step = Step(
                    traced, kind, queries, keys, rows, self.names, block[number], tile[number]
                )
                # A condition that always holds would cost each step a branch.
                if len(steps.kinds) == 1:
                    add(step, *sums_of)
                else:
                    pl.when(this >> 2 == i)(functools.partial(add, step, *sums_of))
            pl.when(this & 2 == 2)(lambda: end(written, *sums_of))

        def blocks(arrays, size, where):
            return [pl.BlockSpec((1, 1, size, x.shape[3]), where) for x in arrays]

        size, whole = (
            (plan.key_block, plan.key_block * plan.key_blocks) if by_tile
            else (plan.query_block, plan.query_block * plan.query_blocks)
        )  # fmt: skip
        out_specs = [pl.BlockSpec((1, 1, size, dim), of_head) for dim, _ in outs]
        shapes = [jax.ShapeDtypeStruct((batch, heads, whole, dim), dtype) for dim, dtype in outs]
        if sums:
            out_specs.append(
                pl.BlockSpec(
                    (1, 1, ROWS, size), lambda b, h, s, block, tile, what: (b, h, 0, block[s])
                )
            )
            shapes.append(jax.ShapeDtypeStruct((batch, heads, ROWS, whole), jnp.float32))
        called = pl.pallas_call(
            kernel,
            name=name,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(batch, heads, len(steps.what)),
                in_specs=[
                    *blocks(self.of_queries, plan.query_block, at_block),
                    *blocks(self.of_keys, plan.key_block, at_tile),
                    pl.BlockSpec((1, 1, self.rows.shape[2], plan.query_block), rows_of),
                ],
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
            ),
            interpret=self.interpret,
        )
        arrays = *self.of_queries, *self.of_keys, self.rows
        return list(called(steps.block, steps.tile, steps.what, *arrays))


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
        x[...] = jnp.zeros_like(x)


def _lane_totals(values: Float[Array, "T S"]) -> Float[Array, "T 128"]:
    """A total in each lane, which are added up in the end."""
    return functools.reduce(
        jnp.add, (values[:, i : i + LANES] for i in range(0, values.shape[1], LANES))
    )


def _write_rows(to: Any, *numbers: Float[Array, "T 128"]) -> None:
    """Numbers of rows that fill the lanes, each into a line of its own."""
    lines = [x.T[:1] for x in numbers]
    nothing = jnp.zeros((ROWS - len(lines), numbers[0].shape[0]), jnp.float32)
    to[0, 0] = jnp.concatenate([*lines, nothing])


def _spread(x: Float[Array, "T 128"]) -> Float[Array, "T 1"]:
    """A number a row of rows that hold it in every lane.

    By a maximum, after which the compiler knows it to be in every lane; of a slice it does not, and
    would spread it out wherever it is used.
    """
    return jnp.max(x, axis=1, keepdims=True)
