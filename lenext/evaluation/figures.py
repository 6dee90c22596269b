"""A model's figures on sequences of one length: each prediction's loss, and how rows attend."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lenext.models import token_figures

Batch = dict[str, Array]


class Figures(NamedTuple):
    """Per prediction, and per sequence means over layers, heads and probed rows.

    Attributes:
      loss: nats.
      correct: 1 where the likeliest token is the right one.
      weights: 0 for what is not to count.
      entropy: of attention rows, in nats; NaN where none were probed.
      dilution: weight beyond the training length; NaN where no rows were probed.
    """

    loss: Float[np.ndarray, "C P"]
    correct: Float[np.ndarray, "C P"]
    weights: Float[np.ndarray, "C P"]
    entropy: Float[np.ndarray, " C"]
    dilution: Float[np.ndarray, " C"]


class Cost(NamedTuple):
    """What evaluating took.

    Attributes:
      seconds: run time, compilation apart.
      compile_seconds: compilation.
      peak_bytes: of the compiled forward pass: arguments, outputs and everything between.
    """

    seconds: float
    compile_seconds: float
    peak_bytes: int


@functools.partial(jax.jit, static_argnames=("graphdef", "probe_rows"))
def _forward(params: Any, batch: Batch, *, graphdef: Any, probe_rows: int) -> dict[str, Array]:
    model = nnx.merge(graphdef, params)
    length = batch["tokens"].shape[1]
    # Rows evenly spread over the sequence, each the middle of its share.
    rows = min(probe_rows, length)
    probe = jnp.asarray((np.arange(rows) * 2 + 1) * length // (2 * rows)) if rows else None
    seen = token_figures(model, batch, probe=probe)
    figures = {"loss": seen.loss, "correct": seen.correct, "weights": seen.weights}
    if seen.rows is not None:
        for name in ("entropy", "dilution"):  # [layers, B, heads, rows]
            figures[name] = jnp.mean(getattr(seen.rows, name), axis=(0, 2, 3))
    return figures


def figures_of(
    graphdef: nnx.GraphDef,
    params: Any,
    sequences: dict[str, np.ndarray],
    *,
    batch_size: int,
    probe_rows: int,
) -> tuple[Figures, Cost]:
    """Runs a model over sequences of one length.

    Args:
      graphdef: the model's, with the method to evaluate.
      params: its parameters, a pure dict.
      sequences: arrays of C rows: tokens [C, n], targets, weights [C, P], and for a masked
        language model positions [C, P] (see `lenext.models.token_figures`).
      batch_size: rows a forward pass; a last one that is not full is filled up, not compiled anew.
      probe_rows: attention rows a sequence to look at; 0 leaves entropy and dilution NaN.
    """
    total = len(sequences["tokens"])
    batch_size = min(batch_size, total)
    example = {name: jnp.asarray(rows[:batch_size]) for name, rows in sequences.items()}
    start = time.perf_counter()
    compiled = _forward.lower(params, example, graphdef=graphdef, probe_rows=probe_rows).compile()
    compile_seconds = time.perf_counter() - start

    parts = []
    start = time.perf_counter()
    for first in range(0, total, batch_size):
        # Wrapped-around rows fill the last batch; they are cut off below.
        index = np.arange(first, first + batch_size) % total
        batch = {name: jnp.asarray(rows[index]) for name, rows in sequences.items()}
        parts.append(jax.device_get(compiled(params, batch)))
    seconds = time.perf_counter() - start
    joined = {name: np.concatenate([p[name] for p in parts])[:total] for name in parts[0]}
    missing = np.full(total, np.nan, np.float32)
    figures = Figures(**{name: joined.get(name, missing) for name in Figures._fields})
    return figures, Cost(seconds, compile_seconds, _peak_bytes(compiled))


def _peak_bytes(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
