"""Rows summed up key by key by kernels for TPUs: what `tiles` does, in Pallas.

A step of a kernel is a block of queries by a tile of keys. Only steps of which something is visible
are taken, from a list that is made while tracing: hidden tiles cost nothing, and what is visible
throughout is not masked. Of a position with several rotations, a step whose distances are all of
one takes one product. Both sides of the products are in q's type, sums in float32.

Three kernels: outputs, gradients of the queries' sides, gradients of the keys' sides and values.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Int

from lenext.attention.axes.by_key import TwoStage
from lenext.attention.axes.method import Rows, init_params
from lenext.attention.compute import naive, tiles
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, located, rows_at
from lenext.attention.compute.plan import Plan, padded

LANES = 128
FORWARD, BACKWARD = (1024, 1024), (512, 1024)
"""Queries and keys of a step, at the most; see experiments/benchmarks/kernels.py."""
LEAST = 256  # whatever the window
MOST_STEPS = 40_000  # the lists of them lie in scalar memory
ROWS = 8  # numbers a row that a kernel may be given, as many as a register has rows
VMEM = 64 * 2**20
OUTPUTS, OF_QUERIES, OF_KEYS = "lenext_outputs", "lenext_dq", "lenext_dkv"
TOTALS, OF_TOTALS = "lenext_totals", "lenext_dtotals"
"""The kernels' names, as profiles show them."""


def why_not(call: Call) -> str | None:
    """Why the kernels cannot take a call of default positions, in which nothing is masked.

    Returns:
      Half a sentence that may follow "because", or None where they can.
    """
    method = call.method
    if method.gated:
        return "it follows the layer's input"
    if not tiles.suits(method):
        return "its weights want complete rows"
    params = init_params(method, call.num_heads, call.head_dim)
    for axis in ("position", "weighting"):
        if params.get(axis):
            return f"its {axis} learns something that every tile would have to hand back"
    _, gain, bias = naive.position_shapes(method, call.num_heads, call.head_dim)
    if gain is not None and gain.shape and gain.shape[-1] != 1:
        return "its gain on the logits follows the distance"
    if bias is not None:
        return "its bias on the logits follows the head"
    if min(call.queries, call.keys) < LANES:
        return f"a kernel's tile has {LANES} queries and keys"
    if len(steps_of(plan_of(call, FORWARD), by_tile=False).what) > MOST_STEPS:
        return f"its tiles are more than {MOST_STEPS}"
    return None


class Kind(NamedTuple):
    """What the steps of one body of a kernel have in common.

    Attributes:
      masked: whether something is hidden.
      piece: the one that all entries are of; None where they are of several.
    """

    masked: bool
    piece: int | None


class Steps(NamedTuple):
    """The steps of a kernel, in its order.

    Attributes:
      block: each one's block of queries.
      tile: its tile of keys.
      what: 4 x the number of its kind, + 1 where it is the first of its sum, + 2 where the last.
      kinds: by number.
    """

    block: Int[np.ndarray, " steps"]
    tile: Int[np.ndarray, " steps"]
    what: Int[np.ndarray, " steps"]
    kinds: tuple[Kind, ...]


@functools.cache
def steps_of(plan: Plan, *, by_tile: bool) -> Steps:
    """All steps of a plan in which something is visible, by block of queries or by tile of keys."""
    with jax.ensure_compile_time_eval():
        met = jax.vmap(plan.tiles)(plan.block_numbers)
        first, whole, stop, sinks = (np.asarray(x) for x in met)
    taken = [
        (block, tile, _kind(plan, block, tile, masked=not first[block] <= tile < whole[block]))
        for block in range(plan.query_blocks)
        for tile in (*range(min(sinks[block], first[block])), *range(first[block], stop[block]))
    ]
    over = 1 if by_tile else 0
    # Sums of nothing are to be written, too: by a step in which all is hidden.
    number = plan.key_blocks if by_tile else plan.query_blocks
    for lacking in set(range(number)) - {step[over] for step in taken}:
        taken.append((0, lacking, Kind(True, None)) if by_tile else (lacking, 0, Kind(True, None)))
    taken.sort(key=lambda step: (step[over], step[1 - over]))
    sums = [step[over] for step in taken]
    kinds = list(dict.fromkeys(kind for *_, kind in taken))
    what = [
        4 * kinds.index(kind)
        + (i == 0 or sums[i - 1] != sums[i])
        + 2 * (i + 1 == len(sums) or sums[i + 1] != sums[i])
        for i, (*_, kind) in enumerate(taken)
    ]
    block, tile, what = (
        np.asarray(x, np.int32) for x in ([b for b, *_ in taken], [t for _, t, _ in taken], what)
    )
    return Steps(block, tile, what, tuple(kinds))


def _kind(plan: Plan, block: int, tile: int, *, masked: bool) -> Kind:
    """Of the step of a block and a tile."""
    query = plan.keys - plan.queries + block * plan.query_block
    key = int(tile) * plan.key_block
    least = query - (key + plan.key_block - 1)
    if plan.causal:
        least = max(least, 0)
    most = query + plan.query_block - 1 - key
    return Kind(masked, plan.method.position.only_piece(least, most))


def plan_of(call: Call, most: tuple[int, int]) -> Plan:
    """The plan of a call in blocks and tiles of whole registers."""
    keeps = call.method.visibility.keeps()
    if keeps is not None:
        reach = max(LEAST, 2 ** (keeps[1] - 1).bit_length())
        most = min(most[0], reach), min(most[1], reach)
    return Plan(
        **vars(call), query_block=_even(call.queries, most[0]), key_block=_even(call.keys, most[1])
    )


def _even(length: int, most: int) -> int:
    """The size of a block, in whole registers: at most so many, and all of them alike."""
    blocks = -(-length // most)
    return -(-length // (blocks * LANES)) * LANES


def attend_tpu(
    q_sides: Sequence[Float[Array, "B N T I"]],
    k_sides: Sequence[Float[Array, "B K S I"]],
    v: Float[Array, "B K S V"],
    call: Call,
    n: Int[Array, "1 1 T 1"],
    *,
    interpret: Any = False,
) -> Float[Array, "B N T V"]:
    """Attention by the kernels, heads first, in the type of v.

    Args:
      q_sides: of the queries, gain and temperature in them; see `naive.query_sides`.
      k_sides: of the keys.
      v: values.
      call: theirs, of default positions, nothing masked, by a method that `why_not` lets pass.
      n: keys that each row sees.
      interpret: as `pallas_call` takes it.
    """
    # A second stage makes much of little: sides rounded to 16 bits would tell equal keys apart.
    exact = isinstance(call.method.weighting, TwoStage)
    dtype = jnp.float32 if exact else v.dtype
    q_sides, k_sides = ([x.astype(dtype) for x in sides] for sides in (q_sides, k_sides))
    return _attend(call, interpret, q_sides, k_sides, v, n)


class _RowSums(NamedTuple):
    """What a row's weights are made with, each [B, N, T, 1]; as `tiles` has them."""

    largest: Float[Array, "B N T 1"]
    total: Float[Array, "B N T 1"]
    divisor: Float[Array, "B N T 1"]
    centred: Float[Array, "B N T 1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(call, interpret, q_sides, k_sides, v, n):
    return _attend_forward(call, interpret, q_sides, k_sides, v, n)[0]


def _attend_forward(call, interpret, q_sides, k_sides, v, n):
    plan, weighting = plan_of(call, FORWARD), call.method.weighting
    make = functools.partial(_Kernel, plan, q_sides, k_sides, v, interpret)
    *out, sums = make({"n": n}).outputs()
    largest, total = _columns(sums, call.queries, 2)
    if not isinstance(weighting, TwoStage):
        centred = jnp.full_like(total, float(weighting.normalised))
        out = out[0][:, :, : call.queries]
        return out, (q_sides, k_sides, v, n, out, _RowSums(largest, total, total, centred))
    rows = {"n": n, "shift": weighting.shift_at(largest, {}), "total": total}
    rows["peak"] = _peak(call, largest, total, n)
    out, sums = make(rows).last_outputs()
    (divisor,) = _columns(sums, call.queries, 1)
    usable = (divisor > 0) & ~weighting.flat_at(rows["peak"], _rows(plan, n))
    divisor, centred = jnp.where(usable, divisor, 1.0), usable.astype(jnp.float32)
    out = (out[:, :, : call.queries] / divisor).astype(v.dtype)
    return out, (q_sides, k_sides, v, n, out, _RowSums(largest, total, divisor, centred))


def _attend_backward(call, interpret, saved, d_out):
    """d values = (d weights - their mean over the row's weights) / divisor, by tiles again."""
    q_sides, k_sides, v, n, out, sums = saved
    plan, weighting = plan_of(call, BACKWARD), call.method.weighting
    mean = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    rows = {
        "n": n, "shift": weighting.shift_at(sums.largest, {}), "inverse": 1 / sums.divisor,
        "mean": sums.centred * mean,
    }  # fmt: skip
    make = functools.partial(_Kernel, plan, q_sides, k_sides, v, interpret)
    d_out = d_out.astype(v.dtype)
    if isinstance(weighting, TwoStage):
        rows |= {"total": sums.total, "peak": _peak(call, sums.largest, sums.total, n)}
        if weighting.normalised:
            (d_total,) = make(rows, d_out).total_gradients()
            (rows["d_total"],) = _columns(d_total, call.queries, 1)
    kernel = make(rows, d_out)
    d_q_sides, (*d_k_sides, d_v) = kernel.gradients(of_keys=False), kernel.gradients(of_keys=True)

    def of_keys(x: Array) -> Array:
        """Summed over the query heads that read a head of keys."""
        dtype, x = x.dtype, x[:, :, : call.keys].astype(jnp.float32)
        return jnp.sum(x.reshape(x.shape[0], v.shape[1], -1, *x.shape[2:]), axis=2).astype(dtype)

    d_q_sides = [x[:, :, : call.queries] for x in d_q_sides]
    return d_q_sides, [of_keys(x) for x in d_k_sides], of_keys(d_v), None


_attend.defvjp(_attend_forward, _attend_backward)


def _peak(call: Call, largest: Array, total: Array, n: Array) -> Float[Array, "B N T 1"]:
    """The largest first weight of each row; 0 where it sees nothing."""
    weighting: Any = call.method.weighting
    rows, shift = _rows(call, n), weighting.shift_at(largest, {})
    return weighting.visible_values(largest, jnp.isfinite(largest), shift, rows, {}) / total


def _rows(call: Call, n: Array) -> Rows:
    """Of a call, for what follows of a row its number of keys alone."""
    queries, keys = (jnp.zeros((1, size), jnp.int32) for size in (n.shape[2], 1))
    return rows_at(
        call.method, located(Places(queries, keys)), n, causal=call.causal, length=call.length,
        num_heads=call.num_heads, head_dim=call.head_dim,
    )  # fmt: skip


NUMBERS = ("n", "shift", "inverse", "mean", "total", "peak", "d_total")
"""What kernels are given of a row, in their order."""


def _per_row(rows: dict[str, Array], queries: int) -> Float[Array, "B N 8 T"]:
    """Numbers of the rows, [B, N, T, 1] each, along the lanes: else they would take 128 times that.

    A row of the last number once more, and rows of nothing up to whole registers.
    """
    (batch, heads, count, _) = np.max([x.shape for x in rows.values()], axis=0)
    whole = [
        jnp.broadcast_to(rows[name][..., 0].astype(jnp.float32), (batch, heads, count))
        if name in rows else jnp.zeros((batch, heads, count), jnp.float32)
        for name in NUMBERS
    ]  # fmt: skip
    return padded(padded(jnp.stack(whole, axis=2), queries, 3, mode="edge"), ROWS, 2)


def _columns(
    sums: Float[Array, "B N 8 S"], queries: int, count: int
) -> list[Float[Array, "B N T 1"]]:
    """The first numbers of the rows that a kernel wrote, of the queries that there are."""
    return [sums[:, :, i, :queries, None] for i in range(count)]


class _Kernel:
    """The arrays of a call in whole blocks, and the kernels that go over them."""

    def __init__(self, plan, q_sides, k_sides, v, interpret, rows, d_out=None):
        queries, keys = plan.query_blocks * plan.query_block, plan.key_blocks * plan.key_block
        self.plan, self.weighting, self.interpret = plan, plan.weighting, interpret
        self.twice = isinstance(self.weighting, TwoStage)
        self.q_sides = [padded(x, queries, 2) for x in q_sides]
        self.k_sides = [padded(x, keys, 2) for x in k_sides]
        self.of_keys = [*self.k_sides, padded(v, keys, 2)]
        self.of_queries = [*self.q_sides, *([] if d_out is None else [padded(d_out, queries, 2)])]
        self.rows = _per_row(rows, queries)

    def outputs(self) -> list[Array]:
        """Outputs [B, N, T, V], and rows' largest logits and totals, [B, N, 8, T].

        Of rows of two stages the latter alone.
        """
        weighting, dtype = self.weighting, self.of_keys[-1].dtype
        size, dim = self.plan.query_block, self.of_keys[-1].shape[3]
        tracked = weighting.shifted or self.twice

        def start(largest, total, *out):
            largest[...] = jnp.full_like(largest, -jnp.inf if tracked else 0.0)
            for x in (total, *out):
                x[...] = jnp.zeros_like(x)

        def add(step: _Step, largest, total, *out):
            logits, mask = step.logits_of(step.products()), step.mask()
            before, carried = _spread(largest[...])[None, None], None
            top = before
            if tracked:
                seen = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
                top = jnp.maximum(before, jnp.max(seen, axis=-1, keepdims=True))
                largest[...] = jnp.broadcast_to(top[0, 0], largest.shape)
                less = weighting.shift_at(before, {}) - weighting.shift_at(top, {})
                carried = jnp.where(before > -jnp.inf, jnp.exp(less), 0.0)[0, 0]
            values = step.values(logits, mask, weighting.shift_at(top, {}))[0, 0]
            if weighting.normalised:
                own = _lane_totals(values)
                total[...] = own + (total[...] if carried is None else total[...] * carried)
            for x in out:
                own = _product(values.astype(dtype), step.keys[-1], 1, 0)
                x[...] = own + (x[...] if carried is None else x[...] * carried)

        def end(written, largest, total, *out):
            divisor = jnp.ones((size, 1), jnp.float32)
            if weighting.normalised:
                shift = weighting.shift_at(_spread(largest[...])[None, None], {})
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

        def add(step: _Step, divisor, out):
            logits, mask = step.logits_of(step.products()), step.mask()
            last = step.last(logits, mask, step.row("total"))[0, 0]
            divisor[...] += _lane_totals(last)
            out[...] += _product(last.astype(self.of_keys[-1].dtype), step.keys[-1], 1, 0)

        def end(written, divisor, out):
            whole = jnp.sum(divisor[...], axis=1, keepdims=True)
            written[0][0, 0] = out[...]
            _write_rows(written[1], jnp.broadcast_to(whole, divisor.shape))

        return self._run(
            OUTPUTS, _zero, add, end, scratch=[(size, LANES), (size, dim)],
            outs=[(dim, jnp.float32)], sums=True,
        )  # fmt: skip

    def total_gradients(self) -> list[Array]:
        """Of rows of two stages, the gradients of their first totals."""
        size = self.plan.query_block

        def add(step: _Step, d_total):
            logits, mask = step.logits_of(step.products()), step.mask()
            total = jnp.broadcast_to(step.row("total"), logits.shape)
            _, pull = jax.vjp(lambda total: step.last(logits, mask, total), total)
            d_total[...] += _lane_totals(pull(step.d_values())[0][0, 0])

        def end(written, d_total):
            whole = jnp.sum(d_total[...], axis=1, keepdims=True)
            _write_rows(written[0], jnp.broadcast_to(whole, d_total.shape))

        return self._run(OF_TOTALS, _zero, add, end, scratch=[(size, LANES)], outs=[], sums=True)

    def gradients(self, *, of_keys: bool) -> list[Array]:
        """Of the queries' sides; or of the keys' sides and the values, for each query head."""
        weighting, plan = self.weighting, self.plan
        arrays = self.of_keys if of_keys else self.q_sides

        def add(step: _Step, *sums):
            logits, pull_products = jax.vjp(step.logits_of, step.products())
            mask, shift = step.mask(), step.row("shift")

            def values(logits):
                first = step.values(logits, mask, shift)
                if not self.twice:
                    return first, ()
                return step.last(logits, mask, step.row("total")), first

            (last, _), pull = jax.vjp(values, logits)
            # What the first total follows: counted apart, since it is held fixed in the last.
            d_first = jnp.broadcast_to(step.row("d_total"), logits.shape) if self.twice else ()
            (d_products,) = pull_products(*pull((step.d_values(), d_first)))
            *_, d_out = step.queries
            for piece, d in zip(step.pieces, d_products, strict=True):
                d = d[0, 0].astype(d_out.dtype)
                other = (step.queries if of_keys else step.keys)[piece].astype(d_out.dtype)
                sums[piece][...] += _product(d, other, 0 if of_keys else 1, 0)
            if of_keys:
                if self.twice or weighting.normalised:
                    last = last * step.row("inverse")
                sums[-1][...] += _product(last[0, 0].astype(d_out.dtype), d_out, 0, 0)

        def end(written, *sums):
            for to, x in zip(written, sums, strict=True):
                to[0, 0] = x[...].astype(to.dtype)

        size = plan.key_block if of_keys else plan.query_block
        return self._run(
            OF_KEYS if of_keys else OF_QUERIES, _zero, add, end, by_tile=of_keys,
            scratch=[(size, x.shape[3]) for x in arrays],
            outs=[(x.shape[3], x.dtype) for x in arrays],
        )  # fmt: skip

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
        traced = _Traced(plan, len(self.q_sides))
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
                step = _Step(traced, kind, queries, keys, rows, block[number], tile[number])
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
                    pl.BlockSpec((1, 1, ROWS, plan.query_block), rows_of),
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


class _Traced:
    """What the axes compute of a tile, traced by itself.

    So that a kernel holds what they return, and nothing that only the way there wanted: a position
    says where each piece counts together with the phases, which are in the sides already.
    """

    def __init__(self, plan: Plan, pieces: int):
        self.plan, self.pieces = plan, pieces
        tile, row = (1, 1, plan.query_block, plan.key_block), (1, 1, plan.query_block, 1)
        of_tile, of_row = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, row))
        number = jax.ShapeDtypeStruct((), jnp.int32)
        seen = jax.ShapeDtypeStruct(tile, jnp.bool_)
        self.wheres = _Trimmed(self._wheres, number, number)
        self.values = {
            masked: _Trimmed(self._values, of_tile, seen if masked else None, of_row, of_row)
            for masked in (False, True)
        }
        if isinstance(plan.weighting, TwoStage):
            self.last = {
                masked: _Trimmed(
                    self._last, of_tile, seen if masked else None, of_row, of_row, of_row, of_row
                )
                for masked in (False, True)
            }

    def _rows(self, query, key, n) -> Rows:
        """The tile's, from its first query and key on."""
        plan = self.plan
        of_queries, of_keys = (
            first + jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)
            for first, size in ((query, plan.query_block), (key, plan.key_block))
        )
        return Rows(
            n=n, q_positions=of_queries, kv_positions=of_keys, delta=self.delta(query, key),
            start=jnp.zeros((1, 1, plan.query_block, 1), jnp.int32), kv_ordinals=of_keys,
            causal=plan.causal, train_length=plan.method.train_length, q_lengths=plan.length,
            kv_lengths=plan.length, num_heads=plan.num_heads, head_dim=plan.head_dim,
        )  # fmt: skip

    def delta(self, query, key) -> Int[Array, "1 1 T S"]:
        """Query positions less key positions."""
        shape = (1, 1, self.plan.query_block, self.plan.key_block)
        down, along = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (2, 3))
        return (query - key) + down - along

    def _wheres(self, query, key) -> list[Array | None]:
        rows = self._rows(query, key, jnp.ones((1, 1, self.plan.query_block, 1), jnp.float32))
        _, *later = self.plan.method.position.pieces(rows)  # the first is of all others
        return [piece.where for piece in later]

    def _values(self, logits, mask, shift, n) -> Array:
        zero = jnp.zeros((), jnp.int32)
        rows = self._rows(zero, zero, n)
        return self.plan.weighting.visible_values(logits, mask, shift, rows, {})

    def _last(self, logits, mask, shift, total, peak, n) -> Array:
        weighting: Any = self.plan.weighting
        zero = jnp.zeros((), jnp.int32)
        rows = self._rows(zero, zero, n)
        first = weighting.visible_values(logits, mask, shift, rows, {}) / total
        last = weighting.last_values(first, peak, rows)
        return last if mask is None else jnp.where(mask, last, 0.0)


class _Trimmed:
    """A function of shapes that are known, without what its results do not follow."""

    def __init__(self, function: Callable[..., Any], *shapes: Any):
        closed, form = jax.make_jaxpr(function, return_shape=True)(*shapes)
        outputs = [True] * len(closed.jaxpr.outvars)
        jaxpr, consts, self.used = partial_eval.dce_jaxpr_consts(closed.jaxpr, outputs)
        kept = [x for x, used in zip(closed.consts, consts, strict=True) if used]
        self.run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr, kept))
        self.form = jax.tree.structure(form)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns; of arguments, such as are functions stand for their values."""
        flat = [x for x in arguments if x is not None]
        given = [x() if callable(x) else x for x, used in zip(flat, self.used, strict=True) if used]
        return jax.tree.unflatten(self.form, self.run(*given))


class _Step:
    """A step of a kernel: what it reads, and what the method makes of it."""

    def __init__(self, traced: _Traced, kind: Kind, queries, keys, rows, block, tile):
        plan = traced.plan
        self.traced, self.kind, self.plan = traced, kind, plan
        self.of_queries, self.of_keys, self.rows = queries, keys, rows
        self.query = plan.keys - plan.queries + block * plan.query_block
        self.key = tile * plan.key_block
        self.pieces = range(traced.pieces) if kind.piece is None else [kind.piece]

    @property
    def queries(self) -> list[Array]:
        """The block of each array of queries."""
        return [x[0, 0] for x in self.of_queries]

    @property
    def keys(self) -> list[Array]:
        """The tile of each array of keys."""
        return [x[0, 0] for x in self.of_keys]

    def row(self, name: str) -> Float[Array, "1 1 T 1"]:
        """One of the rows' numbers."""
        number = NUMBERS.index(name)
        return self.rows[0, 0].T[:, number : number + 1][None, None]

    def d_values(self) -> Float[Array, "1 1 T S"]:
        """Gradients of the (last) values."""
        d_values = _product(self.queries[-1], self.keys[-1], 1, 1)[None, None]
        weighting = self.plan.weighting
        if not (weighting.normalised or isinstance(weighting, TwoStage)):
            return d_values
        return (d_values - self.row("mean")) * self.row("inverse")

    def products(self) -> list[Float[Array, "1 1 T S"]]:
        """Of the pieces that count here."""
        return [
            _product(self.of_queries[piece][0, 0], self.of_keys[piece][0, 0], 1, 1)[None, None]
            for piece in self.pieces
        ]

    def logits_of(self, products: list[Array]) -> Float[Array, "1 1 T S"]:
        """Each entry of the piece that it is of."""
        value, *others = products
        if others:
            for where, other in zip(self.traced.wheres(self.query, self.key), others, strict=True):
                value = jnp.where(where, other, value)
        return self.plan.method.similarity.bounded(value)

    def mask(self) -> Array | None:
        """Which entries are visible; None for all."""
        if not self.kind.masked:
            return None
        delta = self.traced.delta(self.query, self.key)
        ordinal = self.key + jax.lax.broadcasted_iota(jnp.int32, delta.shape, 3)
        masks = [self.plan.method.visibility(delta, ordinal)]
        if self.plan.causal:
            masks.append(delta >= 0)
        if self.plan.keys % self.plan.key_block:
            masks.append(ordinal < self.plan.keys)
        given = [mask for mask in masks if mask is not None]
        return functools.reduce(jnp.logical_and, given)

    def values(self, logits, mask, shift) -> Float[Array, "1 1 T S"]:
        """Of the weighting, hidden ones 0."""

        return self.traced.values[mask is not None](logits, mask, shift, lambda: self.row("n"))

    def last(self, logits, mask, total) -> Float[Array, "1 1 T S"]:
        """Of the weighting's second stage, hidden ones 0."""
        shift, peak, n = (functools.partial(self.row, name) for name in ("shift", "peak", "n"))
        return self.traced.last[mask is not None](logits, mask, shift, total, peak, n)


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


def _product(x: Array, y: Array, of_x: int, of_y: int) -> Float[Array, "M N"]:
    """Contracted over an axis of each, in float32."""
    exact = None if x.dtype.itemsize < 4 else jax.lax.Precision.HIGHEST
    dimensions = (((of_x,), (of_y,)), ((), ()))
    return jax.lax.dot_general(
        x, y, dimensions, precision=exact, preferred_element_type=jnp.float32
    )
