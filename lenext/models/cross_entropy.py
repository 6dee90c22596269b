"""Cross-entropy over the vocabulary in chunks, so that all logits never lie in memory together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.models.parts import Head
from lenext.parallel.meshes import on_shares, whole

# Of the array [tokens, chunk] that a chunk's logits take: 8 MB of float32. Larger ones were no
# faster (experiments/benchmarks/loss.py); few columns would starve the products.
CHUNK_ENTRIES = 2**21
LEAST_CHUNK = 512


class CrossEntropy(NamedTuple):
    """Figures of each predicted token, float32.

    Attributes:
      loss: cross-entropy, in nats.
      correct: 1 where the likeliest token (the first of equals) is the right one.
      log_z: log of the sum of the exponentiated logits.
    """

    loss: Float[Array, "B P"]
    correct: Float[Array, "B P"]
    log_z: Float[Array, "B P"]


def cross_entropy(
    hidden: Float[Array, "B P D"],
    head: Head,
    targets: Int[Array, "B P"],
    *,
    chunk: int | None = None,
) -> CrossEntropy:
    """Cross-entropy of targets under the logits that `head` gives for hidden states.

    A vocabulary of more than one chunk is taken chunk by chunk: in the forward pass with a running
    sum of exponentials (as in arXiv 2006.16236 and flash attention), in the backward pass anew from
    `log_z` (cut cross-entropy, arXiv 2411.09009). That is one product of the logits' size more, and
    no [B, P, V] anywhere; it cannot be differentiated forwards, or twice.

    Args:
      hidden: in the compute type; products are summed in float32.
      head: matrix and bias.
      targets: token ids from 0 to V - 1.
      chunk: how many of the vocabulary at a time; default: what `default_chunk` says. From V up,
        all logits at once.
    """

    def figures(rows, weights, _):
        (hidden, targets), (matrix, bias) = rows, weights
        return _cross_entropy(hidden, head._replace(matrix=matrix, bias=bias), targets, chunk)

    # On a mesh too, so that no turn of the loop over its chunks has to gather one.
    weights = whole((head.matrix, head.bias))
    return on_shares(figures, (hidden, targets), weights)


def _cross_entropy(hidden: Array, head: Head, targets: Array, chunk: int | None) -> CrossEntropy:
    size = head.matrix.shape[head.axes.index("v")]
    chunk = default_chunk(targets.size) if chunk is None else chunk
    if chunk < size:
        flat = hidden.reshape(-1, hidden.shape[-1])
        inputs = _Inputs(flat, head.matrix, head.bias, targets.reshape(-1))
        figures = _cut(inputs, _Form(head.axes, head.softcap), chunk)
        return CrossEntropy(*(x.reshape(targets.shape) for x in figures))
    logits = head(hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    correct = (_likeliest(logits) == targets).astype(jnp.float32)
    return CrossEntropy(log_z - target_logits, correct, log_z)


def _likeliest(logits: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The first of the largest."""
    return jax.lax.argmax(logits, logits.ndim - 1, jnp.int32)


def default_chunk(tokens: int) -> int:
    """How many of the vocabulary at a time: fewer, the more tokens there are."""
    return max(LEAST_CHUNK, CHUNK_ENTRIES // max(tokens, 1))


class _Form(NamedTuple):
    axes: str
    softcap: float


class _Inputs(NamedTuple):
    hidden: Float[Array, "N D"]
    matrix: Float[Array, "..."]
    bias: Float[Array, " V"] | None
    targets: Int[Array, " N"]


Figures = tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, " N"]]
"""Loss, correct and log_z."""


def _figures(inputs: _Inputs, form: _Form, chunk: int) -> Figures:
    targets = inputs.targets

    def add(number: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        top, total, best, target_logits = carry
        _, ids, logits = _chunk(inputs, form, chunk, number)
        place = _likeliest(logits)
        chunk_top = jnp.max(logits, axis=-1)
        # Of equals the first counts, as in argmax.
        best = jnp.where(chunk_top > top, ids[place], best)
        new_top = jnp.maximum(top, chunk_top)
        total = total * jnp.exp(top - new_top)
        total += jnp.sum(jnp.exp(logits - new_top[:, None]), axis=-1)
        mine = ids[None] == targets[:, None]
        return new_top, total, best, target_logits + jnp.sum(jnp.where(mine, logits, 0.0), axis=-1)

    zeros = jnp.zeros(len(targets), jnp.float32)
    start: tuple[Array, ...] = (zeros - jnp.inf, zeros, jnp.zeros_like(targets), zeros)
    top, total, best, target_logits = jax.lax.fori_loop(
        0, _count(inputs, form.axes, chunk), add, start
    )
    log_z = top + jnp.log(total)
    return log_z - target_logits, (best == targets).astype(jnp.float32), log_z


def _forward(inputs: _Inputs, form: _Form, chunk: int) -> tuple[Figures, tuple[_Inputs, Array]]:
    figures = _figures(inputs, form, chunk)
    return figures, (inputs, figures[2])


def _backward(
    form: _Form, chunk: int, kept: tuple[_Inputs, Array], slopes: Figures
) -> tuple[tuple[Array | None, ...]]:
    inputs, log_z = kept
    hidden, matrix, bias, targets = inputs
    of_loss, _, of_log_z = slopes
    axes = form.axes
    axis = axes.index("v")

    def add(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_slope, matrix_slope, bias_slope = carry
        start, ids, logits = _chunk(inputs, form, chunk, number)
        slope = (of_loss + of_log_z)[:, None] * jnp.exp(logits - log_z[:, None])
        slope -= jnp.where(ids[None] == targets[:, None], of_loss[:, None], 0.0)
        if form.softcap:  # of tanh; what another chunk had stands at -inf
            bound = jnp.where(ids[None] < 0, 0.0, logits / form.softcap)
            slope *= 1 - bound**2
        part = jax.lax.dynamic_slice_in_dim(matrix, start, chunk, axis).astype(hidden.dtype)
        hidden_slope += jnp.einsum(f"nv,{axes}->nd", slope, part)
        part_slope = jnp.einsum(f"nv,nd->{axes}", slope, hidden)
        matrix_slope = _add_at(matrix_slope, start, part_slope, axis)
        if bias is not None:
            bias_slope = _add_at(bias_slope, start, jnp.sum(slope, axis=0), 0)
        return hidden_slope, matrix_slope, bias_slope

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (hidden, matrix, bias))
    sums = jax.lax.fori_loop(0, _count(inputs, axes, chunk), add, zeros)
    cast = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, (hidden, matrix, bias))
    return (_Inputs(*cast, targets=None),)  # pyright: ignore[reportArgumentType] # of integers


_cut = jax.custom_vjp(_figures, nondiff_argnums=(1, 2))
_cut.defvjp(_forward, _backward)


def _count(inputs: _Inputs, axes: str, chunk: int) -> int:
    return -(-inputs.matrix.shape[axes.index("v")] // chunk)


def _chunk(
    inputs: _Inputs, form: _Form, chunk: int, number: Array
) -> tuple[Array, Int[Array, " C"], Float[Array, "N C"]]:
    """Where a chunk starts, its ids and their logits.

    The last chunk reaches back where the vocabulary is no multiple; what the one before had gets
    the id -1 and logits of -inf there, which count for nothing.
    """
    axis = form.axes.index("v")
    first = number.astype(jnp.int32) * chunk
    start = jnp.minimum(first, inputs.matrix.shape[axis] - chunk)
    ids = start + jnp.arange(chunk, dtype=jnp.int32)
    matrix = jax.lax.dynamic_slice_in_dim(inputs.matrix, start, chunk, axis)
    bias = inputs.bias
    if bias is not None:
        bias = jax.lax.dynamic_slice_in_dim(bias, start, chunk)
    logits = Head(matrix, bias, *form)(inputs.hidden)
    fresh = ids >= first
    return start, jnp.where(fresh, ids, -1), jnp.where(fresh[None], logits, -jnp.inf)


def _add_at(x: Array, start: Array, part: Array, axis: int) -> Array:
    # Adds, as the last chunk reaches back into what is there.
    part += jax.lax.dynamic_slice_in_dim(x, start, part.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)
