"""Rows summed up key by key by kernels of our own, in Pallas: what `tiles` does.

A step of a kernel is a block of queries by a tile of keys. Only steps of which something is visible
are taken, from a list that is made while tracing: hidden tiles cost nothing, and what is visible
throughout is not masked. Of a position with several rotations, a step that is all of one takes one
product. Both sides of the products are in q's type, keys of rows of two stages in two words of it;
sums are in float32.

Three kernels: outputs, gradients of the queries' sides, gradients of the keys' sides and values;
for rows of two stages their totals, too, whose gradients come with those of the queries.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention.axes.by_key import TwoStage
from lenext.attention.axes.method import init_params
from lenext.attention.compute import naive, tiles
from lenext.attention.compute.call import Call
from lenext.attention.compute.kernel_step import LAST, last_values, rows_of
from lenext.attention.compute.kernel_steps import number_of_steps
from lenext.attention.compute.kernel_sums import Kernel
from lenext.attention.compute.plan import Plan, padded


def why_not(call: Call, kind: type[Kernel]) -> str | None:
    """Why kernels of a kind cannot take a call of default positions, in which nothing is masked.

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
    wheres, gain, bias = naive.position_shapes(method, call.num_heads, call.head_dim)
    if wheres[0] is not None:
        return "its first rotation is not for all keys"
    if gain is not None and gain.shape and gain.shape[-1] != 1:
        return "its gain on the logits follows the distance"
    if bias is not None:
        return "its bias on the logits follows the head"
    why = kind.why_not(call)
    if why is None and number_of_steps(kind.plans(call)[0]) > kind.most_steps:
        return f"its tiles are more than {kind.most_steps}"
    return why


def attend_by_kernels(
    q_sides: Sequence[Float[Array, "B N T I"]],
    k_sides: Sequence[Float[Array, "B K S I"]],
    v: Float[Array, "B K S V"],
    call: Call,
    n: Int[Array, "1 1 T 1"],
    kind: type[Kernel],
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
      kind: whose kernels.
      interpret: as `pallas_call` takes it.
    """
    # A second stage makes much of little: keys rounded to 16 bits would stand apart from others
    # that are as good as equal. Of a query all keys see the same, rounded or not.
    exact = isinstance(call.method.weighting, TwoStage)

    def whole(x: Array, dtype: Any) -> Array:
        return padded(x.astype(dtype), kind.whole_dim(x.shape[3]), 3)

    q_sides = [whole(x, v.dtype) for x in q_sides]
    k_sides = [whole(x, jnp.float32 if exact else v.dtype) for x in k_sides]
    out: Array = _attend(call, kind, interpret, q_sides, k_sides, whole(v, v.dtype), n)
    return out[..., : v.shape[3]]


class _RowSums(NamedTuple):
    """What a row's weights are made with, each [B, N, T, 1]; as `tiles` has them."""

    largest: Float[Array, "B N T 1"]
    total: Float[Array, "B N T 1"]
    divisor: Float[Array, "B N T 1"]
    centred: Float[Array, "B N T 1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(call, kind, interpret, q_sides, k_sides, v, n):
    return _attend_forward(call, kind, interpret, q_sides, k_sides, v, n)[0]


def _attend_forward(call, kind, interpret, q_sides, k_sides, v, n):
    (plan, _), weighting = kind.plans(call), call.method.weighting
    make = functools.partial(kind, plan, q_sides, k_sides, v, interpret)
    *out, sums = make({"n": n}).outputs()
    largest, total = _columns(sums, call.queries, 2)
    if not isinstance(weighting, TwoStage):
        centred = jnp.full_like(total, float(weighting.normalised))
        out = out[0][:, :, : call.queries]
        return out, (q_sides, k_sides, v, n, out, _RowSums(largest, total, total, centred))
    peak = _peak(plan, largest, total, n)
    rows = _shift(plan, largest) | {"n": n, "scale": 1 / total} | _last_numbers(plan, peak, n)
    out, sums = make(rows).last_outputs()
    (divisor,) = _columns(sums, call.queries, 1)
    usable = (divisor > 0) & ~weighting.flat_at(peak, rows_of(plan, n))
    divisor, centred = jnp.where(usable, divisor, 1.0), usable.astype(jnp.float32)
    out = (out[:, :, : call.queries] / divisor).astype(v.dtype)
    return out, (q_sides, k_sides, v, n, out, _RowSums(largest, total, divisor, centred))


def _attend_backward(call, kind, interpret, saved, d_out):
    """d values = (d weights - their mean over the row's weights) / divisor, by tiles again."""
    q_sides, k_sides, v, n, out, sums = saved
    (_, plan), weighting = kind.plans(call), call.method.weighting
    mean = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    rows = {"n": n, "inverse": 1 / sums.divisor, "mean": sums.centred * mean}
    rows |= _shift(plan, sums.largest)
    make = functools.partial(kind, plan, q_sides, k_sides, v, interpret)
    d_out = d_out.astype(v.dtype)
    if isinstance(weighting, TwoStage):
        peak = _peak(plan, sums.largest, sums.total, n)
        rows |= {"scale": 1 / sums.total} | _last_numbers(plan, peak, n)
    d_q_sides = make(rows, d_out).query_gradients()
    if isinstance(weighting, TwoStage) and weighting.normalised:
        *d_q_sides, d_total = d_q_sides
        (rows["d_total"],) = _columns(d_total, call.queries, 1)
    *d_k_sides, d_v = make(rows, d_out).key_gradients()

    def of_keys(x: Array) -> Array:
        """Summed over the query heads that read a head of keys."""
        dtype, x = x.dtype, x[:, :, : call.keys].astype(jnp.float32)
        return jnp.sum(x.reshape(x.shape[0], v.shape[1], -1, *x.shape[2:]), axis=2).astype(dtype)

    d_q_sides = [x[:, :, : call.queries] for x in d_q_sides]
    return d_q_sides, [of_keys(x) for x in d_k_sides], of_keys(d_v), None


_attend.defvjp(_attend_forward, _attend_backward)


def _shift(plan: Plan, largest: Array) -> dict[str, Array]:
    """The rows' shift, where there is one."""
    return {"shift": plan.shift_at(largest, {})} if plan.shifted else {}


def _peak(plan: Plan, largest: Array, total: Array, n: Array) -> Float[Array, "B N T 1"]:
    """The largest first weight of each row; 0 where it sees nothing."""
    weighting: Any = plan.weighting
    rows, shift = rows_of(plan, n), plan.shift_at(largest, {})
    return weighting.visible_values(largest, jnp.isfinite(largest), shift, rows, {}) / total


def _last_numbers(plan: Plan, peak: Array, n: Array) -> dict[str, Array]:
    """Rows' numbers that the last values are made with."""
    made, _ = last_values(plan, (*peak.shape[:3], 2), peak.shape)
    return {f"{LAST}{i}": x for i, x in enumerate(made(peak, n))}


def _columns(
    sums: Float[Array, "B N 8 S"], queries: int, count: int
) -> list[Float[Array, "B N T 1"]]:
    """The first numbers of the rows that a kernel wrote, of the queries that there are."""
    return [sums[:, :, i, :queries, None] for i in range(count)]
