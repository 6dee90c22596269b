"""Kernels for GPUs, in Pallas' Triton: compiled for one, run by its interpreter alone so far.

A program takes a block of queries (or a tile of keys) of a head, and goes over what it meets: a
loop for each kind of step, so that what is visible throughout is not masked.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lenext.attention.compute import naive
from lenext.attention.compute.kernel_step import Step, Traced, product
from lenext.attention.compute.kernel_steps import Steps, steps_of
from lenext.attention.compute.kernel_sums import ROWS, Kernel
from lenext.attention.compute.plan import Plan

MOST_DIM = 128


class TritonKernel(Kernel):
    """See `Kernel`."""

    width: ClassVar[int] = 1
    most_steps: ClassVar[int] = 2**17  # a second of making their list, while tracing
    types: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")
    # Of a step, by registers and spills in experiments/benchmarks/gpu_kernels.py.
    queries: ClassVar[int] = 128
    keys: ClassVar[int] = 64

    @classmethod
    def why_not(cls, call):  # noqa: D102
        if call.dtype not in cls.types:
            return f"the kernels take 16-bit floats, not {call.dtype}"
        size = naive.inner_size(call.method.similarity, call.head_dim)
        if max(size, call.v_shape[3]) > MOST_DIM:
            return f"the kernels take heads of up to {MOST_DIM} dimensions"
        return None

    @classmethod
    def plans(cls, call):
        """In tiles of powers of two, whatever the lengths."""
        wheres, *_ = naive.position_shapes(call.method, call.num_heads, call.head_dim)
        # The queries of several rotations, twice over, are more than an sm_90's shared memory.
        queries = cls.queries if len(wheres) == 1 else cls.queries // 2
        return (
            Plan(**vars(call), query_block=cls.queries, key_block=cls.keys),
            Plan(**vars(call), query_block=queries, key_block=cls.keys),
        )

    @classmethod
    def whole_dim(cls, dim):
        """A power of two that products take."""
        return max(16, 2 ** (dim - 1).bit_length())

    def spread(self, x):  # noqa: D102
        return x

    def row_totals(self, values):  # noqa: D102
        return jnp.sum(values, axis=1, keepdims=True)

    def write_rows(self, to, *numbers):  # noqa: D102
        for i, x in enumerate(numbers):
            to[0, 0, i, :] = x.reshape(x.shape[0])

    def run(self, name, start, add, end, *, scratch, outs, by_tile=False, sums=False):  # noqa: D102
        # Imported here: no light import, and of use on GPUs only.
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        plan, steps = self.plan, steps_of(self.plan, by_tile=by_tile)
        traced = Traced(plan, len(self.q_sides))
        batch, heads = self.of_queries[0].shape[:2]
        group = heads // self.of_keys[0].shape[1]
        size, count = (
            (plan.key_block, plan.key_blocks) if by_tile else (plan.query_block, plan.query_blocks)
        )
        met, spans = _by_kind(steps, count, by_tile=by_tile)

        def kernel(met, spans, *refs):
            queries, refs = refs[: len(self.of_queries)], refs[len(self.of_queries) :]
            keys, refs = refs[: len(self.of_keys)], refs[len(self.of_keys) :]
            rows, *written = refs
            own = pl.program_id(0)

            def of_queries(block):
                here = pl.ds(block * plan.query_block, plan.query_block)
                columns = [rows[i, here][:, None] for i in range(len(self.names))]
                return [x[here, :] for x in queries], columns

            def of_keys(tile):
                here = pl.ds(tile * plan.key_block, plan.key_block)
                return [
                    [x[here, pl.ds(first, dim)] for first in range(0, x.shape[1], dim)]
                    for x, (dim, _) in zip(keys, self.forms, strict=True)
                ]

            held = of_keys(own) if by_tile else of_queries(own)
            sums_of = [_Sum(jnp.zeros(shape, jnp.float32)) for shape in scratch]
            start(*sums_of)
            values = tuple(x.value for x in sums_of)
            for i, kind in enumerate(steps.kinds):

                def body(number, values, kind=kind):
                    other = met[number]
                    block, tile = (other, own) if by_tile else (own, other)
                    read = (
                        of_queries(block) if by_tile else held,
                        held if by_tile else of_keys(tile),
                    )
                    sums_of = [_Sum(x) for x in values]
                    add(_Step(self, traced, kind, block, tile, read), *sums_of)
                    return tuple(x.value for x in sums_of)

                values = jax.lax.fori_loop(spans[0, i, own], spans[1, i, own], body, values)
            end(written, *map(_Sum, values))

        def whole(x, heads_in_one=1):
            """All that a program may read of an array: where it is of one for all, of that."""

            def of_program(i, h, b):
                h = jax.lax.div(h, heads_in_one)
                return (b if x.shape[0] > 1 else 0, h if x.shape[1] > 1 else 0, 0, 0)

            return pl.BlockSpec((None, None, *x.shape[2:]), of_program)

        out_specs = [
            pl.BlockSpec((1, 1, size, dim), lambda i, h, b: (b, h, i, 0)) for dim, _ in outs
        ]
        shapes = [
            jax.ShapeDtypeStruct((batch, heads, size * count, dim), dtype) for dim, dtype in outs
        ]
        if sums:
            out_specs.append(pl.BlockSpec((1, 1, ROWS, size), lambda i, h, b: (b, h, 0, i)))
            shapes.append(jax.ShapeDtypeStruct((batch, heads, ROWS, size * count), jnp.float32))
        called = pl.pallas_call(
            kernel,
            name=name,
            out_shape=shapes,
            grid=(count, heads, batch),
            in_specs=[
                *(pl.BlockSpec(x.shape, lambda i, h, b, x=x: (0,) * x.ndim) for x in (met, spans)),
                *(whole(x) for x in self.of_queries),
                *(whole(x, group) for x in self.of_keys),
                whole(self.rows),
            ],
            out_specs=out_specs,
            compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
            interpret=self.interpret,
        )
        return list(called(met, spans, *self.of_queries, *self.of_keys, self.rows))


class _Sum:
    """A value as kernels' sums want it: read and written whole."""

    def __init__(self, value: Array):
        self.value = value
        self.shape = value.shape

    def __getitem__(self, whole: Any) -> Array:
        return self.value

    def __setitem__(self, whole: Any, value: Array) -> None:
        self.value = value


class _Step(Step):
    """Of what was read: a block of each array of queries and the rows' numbers, words of keys."""

    def __init__(self, kernel, traced, kind, block, tile, read):
        super().__init__(kernel, traced, kind, block, tile)
        (self._queries, self._columns), self._keys = read

    @property
    def queries(self):
        return self._queries

    @property
    def keys(self):
        return [words[0] for words in self._keys]

    def column(self, number):
        return self._columns[number]

    def product_of(self, piece):
        return sum(product(self._queries[piece], word, 1, 1) for word in self._keys[piece])


def _by_kind(
    steps: Steps, count: int, *, by_tile: bool
) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, "2 kinds sums"]]:
    """The steps kind by kind: what each sum meets, and where a kind begins and ends in that."""
    own, other = (steps.tile, steps.block) if by_tile else (steps.block, steps.tile)
    kind = steps.what >> 2
    order = np.lexsort((other, own, kind))
    numbers = kind[order] * count + own[order]
    edges = np.arange(len(steps.kinds) * count)
    spans = [np.searchsorted(numbers, edges, side) for side in ("left", "right")]
    return other[order], np.stack(spans).reshape(2, -1, count).astype(np.int32)
