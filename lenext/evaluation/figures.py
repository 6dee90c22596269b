"""A model's figures on sequences of one length: each prediction's loss, and how rows attend."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lenext.attention import RowStatistics
from lenext.models import token_figures
from lenext.parallel.memory import Needs, needs_of
from lenext.parallel.meshes import copied_to, row_shares, spread_batch, traced_on, whole

Batch = dict[str, Array]
LARGEST_SCALE = 1e6


class HeadFigures(NamedTuple):
    """How each head of each layer attends, over the probed rows of each sequence.

    Attributes:
      entropy: mean, in nats.
      dilution: mean weight on keys beyond the training length.
      gap: mean of 1 / Lambda over rows of several keys, Lambda the gap-accumulation scale (which
        is infinite where keys share the top: clipped at `LARGEST_SCALE`).
      max_logit: the largest.
      sink_weight: mean weight on the document's first four keys.
    """

    entropy: Float[np.ndarray, "C layers heads"]
    dilution: Float[np.ndarray, "C layers heads"]
    gap: Float[np.ndarray, "C layers heads"]
    max_logit: Float[np.ndarray, "C layers heads"]
    sink_weight: Float[np.ndarray, "C layers heads"]


class Figures(NamedTuple):
    """Per prediction, and per head.

    Attributes:
      loss: nats.
      correct: 1 where the likeliest token is the right one.
      weights: 0 for what is not to count.
      heads: None where no rows were probed.
    """

    loss: Float[np.ndarray, "C P"]
    correct: Float[np.ndarray, "C P"]
    weights: Float[np.ndarray, "C P"]
    heads: HeadFigures | None = None


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


def spread(rows: int, first: int, stop: int) -> Int[np.ndarray, " R"]:
    """Rows evenly spread over [first, stop), each the middle of its share; all if too few."""
    rows = min(rows, stop - first)
    return first + (np.arange(rows) * 2 + 1) * (stop - first) // (2 * rows)


def head_figures(rows: RowStatistics) -> dict[str, Float[Array, "B layers heads"]]:
    """The fields of `HeadFigures`, from probed rows [layers, B, heads, R]."""
    alone = rows.gap_scale == 0  # a row of one key has no gap
    scale = jnp.where(alone, 1.0, jnp.minimum(rows.gap_scale, LARGEST_SCALE))
    gaps = jnp.where(alone, 0.0, 1 / scale)
    several = jnp.sum(~alone, axis=-1, dtype=jnp.int32)
    gap = jnp.where(several > 0, jnp.sum(gaps, axis=-1) / jnp.maximum(several, 1), LARGEST_SCALE)
    figures = {
        "entropy": jnp.mean(rows.entropy, axis=-1),
        "dilution": jnp.mean(rows.dilution, axis=-1),
        "gap": gap,
        "max_logit": jnp.max(rows.max_logit, axis=-1),
        "sink_weight": jnp.mean(rows.sink_weight, axis=-1),
    }
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), figures)


@functools.partial(jax.jit, static_argnames=("graphdef", "mesh"))
def _forward(
    params: Any, batch: Batch, probe: Array | None, *, graphdef: Any, mesh: Mesh | None
) -> dict[str, Any]:
    with traced_on(mesh):
        model = nnx.merge(graphdef, params)
        seen = token_figures(model, batch, probe=probe, in_parts=True)
        heads = None if seen.rows is None else head_figures(seen.rows)
        figures = {"loss": seen.loss, "correct": seen.correct, "weights": seen.weights}
        return whole(figures | {"heads": heads})


class Pass(NamedTuple):
    """A model's forward pass over sequences of one length, compiled.

    Attributes:
      run: the batch that starts at a row to its figures.
      total: sequences.
      batch_size: of a batch.
      predictions: of a sequence.
      needs: of memory.
      compile_seconds: what compiling took.
    """

    run: Callable[[int], dict[str, Any]]
    total: int
    batch_size: int
    predictions: int
    needs: Needs
    compile_seconds: float


def make_pass(
    graphdef: nnx.GraphDef,
    params: Any,
    sequences: dict[str, np.ndarray],
    *,
    batch_size: int,
    probe_rows: int,
    pad_to: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
) -> Pass:
    """Compiles a model's forward pass over sequences of one length.

    Args:
      graphdef: the model's, with the method to evaluate.
      params: its parameters, a pure dict.
      sequences: arrays of C rows: tokens [C, n], targets, weights [C, P], and for a masked
        language model predicted [C, P] (see `lenext.models.token_figures`).
      batch_size: rows a forward pass; a last one that is not full is filled up, not compiled anew.
      probe_rows: attention rows a sequence to look at; 0 for none.
      pad_to: tokens and predictions to which rows are filled up, with padding that nothing sees.
        What is compiled for them serves all sequences filled up alike.
      mesh: over which each forward pass is split, rows and tokens; None for one device. All of
        its processes call it with the same, and get the same.
    """
    total, length = sequences["tokens"].shape
    predictions = sequences["targets"].shape[1]
    shares = 1 if mesh is None else row_shares(mesh)
    params = params if mesh is None else copied_to(params, mesh)
    batch_size = shares * -(-min(batch_size, total) // shares)
    probe = spread(probe_rows, 0, length) if probe_rows else None
    if pad_to is not None:
        sequences = _filled_up(sequences, *pad_to)

    def batch_from(first: int) -> Batch:
        # Wrapped-around rows fill the last batch; they are cut off in the end.
        index = np.arange(first, first + batch_size) % total
        rows = {name: x[index] for name, x in sequences.items()}
        return jax.tree.map(jnp.asarray, rows) if mesh is None else spread_batch(rows, mesh)

    start = time.perf_counter()
    lowered = _forward.lower(params, batch_from(0), probe, graphdef=graphdef, mesh=mesh)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start

    def run(first: int) -> dict[str, Any]:
        return jax.device_get(compiled(params, batch_from(first), probe))

    return Pass(run, total, batch_size, predictions, needs_of(compiled), seconds)


def run_pass(done: Pass, tick: Callable[[int], None] = lambda rows: None) -> tuple[Figures, Cost]:
    """Figures of all its sequences; `tick` is told after each batch of how many they were."""
    start = time.perf_counter()
    parts = []
    for first in range(0, done.total, done.batch_size):
        parts.append(done.run(first))
        tick(min(done.batch_size, done.total - first))
    seconds = time.perf_counter() - start
    joined = jax.tree.map(lambda *rows: np.concatenate(rows)[: done.total], *parts)
    heads = joined.pop("heads")
    per_token = {name: rows[:, : done.predictions] for name, rows in joined.items()}
    figures = Figures(**per_token, heads=None if heads is None else HeadFigures(**heads))
    return figures, Cost(seconds, done.compile_seconds, done.needs.peak)


def figures_of(
    graphdef: nnx.GraphDef, params: Any, sequences: dict[str, np.ndarray], **how: Any
) -> tuple[Figures, Cost]:
    """What a model makes of sequences of one length; arguments as of `make_pass`."""
    return run_pass(make_pass(graphdef, params, sequences, **how))


def _filled_up(
    sequences: dict[str, np.ndarray], tokens: int, predictions: int
) -> dict[str, np.ndarray]:
    """Rows of that many tokens and predictions, and the mask of those that were there."""

    def wide(x: np.ndarray, size: int) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, size - x.shape[1])))

    filled = {
        name: wide(x, tokens if name == "tokens" else predictions) for name, x in sequences.items()
    }
    return filled | {"mask": wide(np.ones(sequences["tokens"].shape, bool), tokens)}
