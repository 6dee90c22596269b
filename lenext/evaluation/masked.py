"""Masked-LM figures of crops of one length: loss, accuracy, and what attention rows look like."""

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


class CropFigures(NamedTuple):
    """Per crop: sums over predicted tokens, and means over layers, heads and probed rows."""

    loss: Float[np.ndarray, " C"]
    correct: Float[np.ndarray, " C"]
    count: Float[np.ndarray, " C"]
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
    figures = {
        "loss": jnp.sum(seen.loss * seen.weights, axis=-1),
        "correct": jnp.sum(seen.correct * seen.weights, axis=-1),
        "count": jnp.sum(seen.weights, axis=-1),
    }
    if seen.rows is not None:
        for name in ("entropy", "dilution"):  # [layers, B, heads, rows]
            figures[name] = jnp.mean(getattr(seen.rows, name), axis=(0, 2, 3))
    return figures


def figures_of_crops(
    graphdef: nnx.GraphDef,
    params: Any,
    crops: dict[str, np.ndarray],
    *,
    batch_size: int,
    probe_rows: int,
) -> tuple[CropFigures, Cost]:
    """Runs a model over masked crops of one length.

    Args:
      graphdef: the model's, with the method to evaluate.
      params: its parameters, a pure dict.
      crops: from `lenext.data.masked_crops`: tokens [C, n], positions, targets, weights [C, k].
      batch_size: crops a forward pass; a last one that is not full is filled up, not compiled anew.
      probe_rows: attention rows a crop to look at; 0 leaves entropy and dilution NaN.
    """
    total = len(crops["tokens"])
    batch_size = min(batch_size, total)
    example = {name: jnp.asarray(rows[:batch_size]) for name, rows in crops.items()}
    start = time.perf_counter()
    compiled = _forward.lower(params, example, graphdef=graphdef, probe_rows=probe_rows).compile()
    compile_seconds = time.perf_counter() - start

    parts = []
    start = time.perf_counter()
    for first in range(0, total, batch_size):
        # Wrapped-around rows fill the last batch; they are cut off below.
        index = np.arange(first, first + batch_size) % total
        batch = {name: jnp.asarray(rows[index]) for name, rows in crops.items()}
        parts.append(jax.device_get(compiled(params, batch)))
    seconds = time.perf_counter() - start
    joined = {name: np.concatenate([p[name] for p in parts])[:total] for name in parts[0]}
    missing = np.full(total, np.nan, np.float32)
    figures = CropFigures(**{name: joined.get(name, missing) for name in CropFigures._fields})
    return figures, Cost(seconds, compile_seconds, _peak_bytes(compiled))


def _peak_bytes(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
