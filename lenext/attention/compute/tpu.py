"""Kernels for TPUs, in Pallas.

Only the steps of which something is visible are in the grid, from a list that is made while
tracing. Numbers of rows are along the lanes: down the rows they would take 128 times that.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from lenext.attention.compute.kernel_step import Step, Traced, product
from lenext.attention.compute.kernel_steps import steps_of
from lenext.attention.compute.kernel_sums import ROWS, Kernel
from lenext.attention.compute.plan import Plan

LANES = 128
LEAST = 256  # queries and keys of a step, whatever the window
VMEM = 64 * 2**20


class TpuKernel(Kernel):
    """See `Kernel`."""

    width: ClassVar[int] = LANES
    most_steps: ClassVar[int] = 40_000  # the lists of them lie in scalar memory
    # Queries and keys of a step, by the schedules of experiments/benchmarks/kernels.py.
    forward: ClassVar[tuple[int, int]] = (1024, 1024)
    backward: ClassVar[tuple[int, int]] = (512, 1024)

    @classmethod
    def why_not(cls, call):  # noqa: D102
        few = min(call.queries, call.keys) < LANES
        return f"a kernel's tile has {LANES} queries and keys" if few else None

    @classmethod
    def plans(cls, call):
        """In whole registers."""
        keeps = call.method.visibility.keeps()
        reach = None if keeps is None else max(LEAST, 2 ** (keeps[1] - 1).bit_length())

        def plan_of(most: tuple[int, int]) -> Plan:
            sizes = zip((call.queries, call.keys), most, strict=True)
            queries, keys = (_even(n, min(size, reach or size)) for n, size in sizes)
            return Plan(**vars(call), query_block=queries, key_block=keys)

        return plan_of(cls.forward), plan_of(cls.backward)

    def spread(self, x):
        """By a maximum, after which the compiler knows the number to be in every lane.

        Of a slice it does not, and would spread it out wherever it is used.
        """
        return jnp.max(x, axis=1, keepdims=True)

    def row_totals(self, values):
        """A part in each lane."""
        return functools.reduce(
            jnp.add, (values[:, i : i + LANES] for i in range(0, values.shape[1], LANES))
        )

    def write_rows(self, to, *numbers):  # noqa: D102
        lines = [x.T[:1] for x in numbers]
        nothing = jnp.zeros((ROWS - len(lines), numbers[0].shape[0]), jnp.float32)
        to[0, 0] = jnp.concatenate([*lines, nothing])

    def run(self, name, start, add, end, *, scratch, outs, by_tile=False, sums=False):  # noqa: D102
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
                step = _Step(self, traced, kind, block[number], tile[number], (queries, keys, rows))
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


class _Step(Step):
    """Of blocks and tiles that are at hand, [1, 1, T or S, .]."""

    def __init__(self, kernel, traced, kind, block, tile, arrays):
        super().__init__(kernel, traced, kind, block, tile)
        self.of_queries, self.of_keys, self.rows = arrays

    @property
    def queries(self):
        return [x[0, 0] for x in self.of_queries]

    @property
    def keys(self):
        return [x[0, 0][:, :dim] for x, (dim, _) in zip(self.of_keys, self.forms, strict=True)]

    def column(self, number):
        return self.rows[0, 0].T[:, number : number + 1]

    def product_of(self, piece):
        q, k = self.of_queries[piece][0, 0], self.of_keys[piece][0, 0]
        return product(jnp.concatenate([q] * (k.shape[1] // q.shape[1]), axis=1), k, 1, 1)


def _even(length: int, most: int) -> int:
    """The size of a block, in whole registers: at most so many, and all of them alike."""
    blocks = -(-length // most)
    return -(-length // (blocks * LANES)) * LANES
