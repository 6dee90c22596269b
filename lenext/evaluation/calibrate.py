"""Calibration: the temperature at which each head keeps its entropy, measured on documents.

For `EntropyMatched`, alone or on top of another method. A head's target is the mean entropy of its
rows at the training length L. At 2, 8, 32 and 128 L the factor is sought that brings its rows back
to it, in all layers at once, as what a layer sees follows from those before it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import AnyMethod, HeadMethods, Method
from lenext.attention.axes.temperature import EntropyMatched
from lenext.attention.compute.places import Places, count, located, visible
from lenext.buckets import AnyPath
from lenext.config import Config, read_lengths
from lenext.data import Tokenizer, open_split, summary
from lenext.errors import UserError
from lenext.evaluation.figures import Batch, spread
from lenext.evaluation.protocols import CropSettings, Protocol
from lenext.models import Model, model_methods, token_figures, with_method
from lenext.workdirs.calibration import is_calibrated, set_parts, write_calibration
from lenext.workdirs.pretrained import Pretrained

MULTIPLES = (2, 8, 32, 128)
"""Lengths calibrated at, in L: the ends of the law's pieces, and one beyond."""

STARTS = np.log(EntropyMatched.pieces)  # in ln(n / L)
CLOSE = 0.01  # of the target: near enough
ROUNDS = 14
REACH = 0.1  # rows must reach as far into a piece for its slope to be measured


class Calibrated(NamedTuple):
    """What was measured.

    Attributes:
      parts: a dict a layer, for `lenext.workdirs.calibration.set_parts`.
      entropy: each head's at the training length, in nats.
      deviation: by length, entropy over that one, less 1, of each head that was calibrated.
    """

    parts: list[dict[str, Any]]
    entropy: Float[np.ndarray, "layers heads"]
    deviation: dict[int, Float[np.ndarray, "calibrated heads"]]


def calibrate(
    model: Model,
    pattern: Sequence[AnyMethod],
    batches: Mapping[int, dict[str, np.ndarray]],
    *,
    batch_tokens: int,
    probe_rows: int,
) -> Calibrated:
    """Measures the slopes of `EntropyMatched` in every layer whose method has it.

    Args:
      model: as trained.
      pattern: the methods to calibrate, each for all heads of its layers.
      batches: sequences by length: the training length and longer ones.
      batch_tokens: in one forward pass.
      probe_rows: rows a sequence looked at: of all in a bidirectional model, whose rows see equally
        many keys, of the last eighth in a causal one.
    """
    train_length, *longer = sorted(batches)
    causal = model.objective == "causal_lm"
    model = with_method(model, pattern)
    methods = [method for method in model_methods(model) if isinstance(method, Method)]
    matched = np.array([isinstance(method.temperature, EntropyMatched) for method in methods])
    slopes = np.zeros((len(matched), model.layers.attention.num_heads, len(STARTS)))

    def probe(length: int) -> Int[np.ndarray, " R"]:
        return spread(probe_rows, length - max(1, length // 8) if causal else 0, length)

    def entropies(length: int) -> Float[np.ndarray, "layers heads"]:
        set_parts(model, _parts(slopes, matched))
        return _entropies(model, batches[length], probe(length), batch_tokens)

    target = entropies(train_length)
    for length in longer:
        at_length = functools.partial(entropies, length)
        keys = [_visible(method, probe(length), length, causal) for method in methods]
        reached = np.array([np.mean(np.log(n / train_length)) for n in keys])
        _solve(slopes, target, reached, matched, math.log(train_length), at_length)
    deviation = {length: (entropies(length) / target - 1)[matched] for length in sorted(batches)}
    return Calibrated(_parts(slopes, matched), target, deviation)


def calibrate_run(
    run: Pretrained,
    workdir: AnyPath,
    methods: Mapping[str, Sequence[AnyMethod]],
    config: Config,
    protocol: Protocol,
    tokenizer: Tokenizer,
) -> None:
    """Calibrates what is to be, on training documents; prints how well, writes calibration.json.

    Args:
      run: the trained model.
      workdir: where it came from.
      methods: patterns by name; those with nothing to calibrate are left alone.
      config: of the evaluation.
      protocol: by which training documents are turned into sequences.
      tokenizer: the run's.

    Raises:
      UserError: nothing is to be calibrated, or no training document is twice the training length.
    """
    chosen = {name: pattern for name, pattern in methods.items() if is_calibrated(pattern)}
    if not chosen:
        raise UserError(
            "--calibrate: config.eval.methods should name a method that is calibrated, such as "
            f"entropy_matched or rerope+entropy_matched; it has {', '.join(methods)}"
        )
    for name, pattern in chosen.items():
        if any(isinstance(method, HeadMethods) for method in pattern):
            raise UserError(
                f"--calibrate: {name!r}: should have one method for all heads of a layer"
            )
    settings, train_length = config.eval, run.config.data.train_length
    corpus = open_split(config.data, "train", tokenizer)
    print(summary([corpus]), flush=True)
    crop_settings = CropSettings(
        documents=settings.calibration_documents,
        tokens=settings.calibration_tokens,
        seed=settings.seed,
        mask_rate=config.data.mask_rate,
        masks=settings.masks,
        needles=settings.needles,
        stride=min(settings.stride, train_length),
        key="config.data.train_length: documents are to be twice as long",
    )
    # As far as is asked for, and as documents go (whose last token may only be predicted).
    asked = max(read_lengths(settings.lengths))
    farthest = next((m for m in MULTIPLES if m * train_length >= asked), MULTIPLES[-1])
    longest = max(int(np.max(corpus.lengths)) - 1, 2 * train_length)
    lengths = [
        m * train_length
        for m in (1, *MULTIPLES)
        if m * train_length <= min(longest, farthest * train_length)
    ]
    batches = {
        n: protocol.prepare(corpus, tokenizer, n, n, crop_settings).batch for n in reversed(lengths)
    }
    entries = []
    for name, pattern in chosen.items():
        found = calibrate(
            run.model, pattern, batches,
            batch_tokens=settings.batch_tokens, probe_rows=settings.probe_rows,
        )  # fmt: skip
        off = {n: float(np.max(np.abs(x))) for n, x in found.deviation.items()}
        held = ", ".join(f"{off[n]:.1%} at {n}" for n in lengths)
        print(f"calibrated {name}: heads' entropies off by at most {held}")
        entries.append(
            {
                "method": name,
                "step": run.step,
                "weights": run.weights,
                "identity": run.identity,
                "sources": run.sources_of(name),
                "documents": settings.calibration_documents,
                "entropy": found.entropy.tolist(),
                "off": {str(n): off[n] for n in lengths},
                "parts": found.parts,
            }
        )
    write_calibration(run, workdir, entries)


def _solve(
    slopes: Float[np.ndarray, "layers heads pieces"],
    target: Float[np.ndarray, "layers heads"],
    reached: Float[np.ndarray, " layers"],
    matched: Bool[np.ndarray, " layers"],
    log_length: float,
    entropies: Callable[[], Float[np.ndarray, "layers heads"]],
) -> None:
    """Sets the slopes of the piece that the rows at hand reach into, and of those after it.

    By the law of normal logits, ln n less a row's entropy goes with a power of the factor: the
    second. Here the power is read off the last two rounds, and the factor corrected by it.
    """
    active = matched & (reached > REACH)
    piece = np.maximum(np.searchsorted(STARTS, reached - REACH) - 1, 0)
    run = np.where(active, reached - STARTS[piece], 1.0)[:, None]
    before = np.diff(STARTS)[None] * (np.arange(len(STARTS) - 1)[None] < piece[:, None])
    base = 1 + np.sum(slopes[:, :, :-1] * before[:, None], axis=-1)
    layers = np.arange(len(piece))
    square = base + slopes[layers, :, piece] * run
    factor, power = np.log(np.maximum(square, 1 / 16)) / 2, np.ones_like(target)
    gap = (reached + log_length)[:, None]
    wanted = np.log(np.maximum(gap - target, 1e-3))
    previous = None
    for _ in range(ROUNDS):
        found = entropies()
        if np.max(np.abs(found / target - 1)[active], initial=0.0) < CLOSE:
            break
        now = np.log(np.maximum(gap - found, 1e-3))
        if previous is not None:
            moved = factor - previous[0]
            still = np.abs(moved) < 1e-3
            measured = (now - previous[1]) / np.where(still, 1.0, moved)
            power = np.where(still, power, np.clip(measured, 0.2, 4.0))
        previous = factor, now
        factor = factor + np.clip((wanted - now) / power, -0.5, 0.5)
        slope = (np.exp(2 * factor) - base) / run
        for layer in np.flatnonzero(active):
            slopes[layer, :, piece[layer] :] = slope[layer, :, None]


def _entropies(
    model: Model,
    sequences: dict[str, np.ndarray],
    probe: Int[np.ndarray, " R"],
    batch_tokens: int,
) -> Float[np.ndarray, "layers heads"]:
    """Mean entropies of the probed rows of all full batches."""
    count, length = sequences["tokens"].shape
    size = max(1, min(batch_tokens // length, count))
    graphdef, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    parts = []
    for first in range(0, count - size + 1, size):
        batch = {name: jnp.asarray(x[first : first + size]) for name, x in sequences.items()}
        parts.append(_mean_entropies(params, batch, jnp.asarray(probe), graphdef=graphdef))
    return np.asarray(jax.device_get(parts), np.float64).mean(axis=0)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _mean_entropies(
    params: Any, batch: Batch, probe: Int[Array, " R"], *, graphdef: Any
) -> Float[Array, "layers heads"]:
    rows = token_figures(nnx.merge(graphdef, params), batch, probe=probe).rows
    assert rows is not None  # they were asked for
    return jnp.mean(rows.entropy, axis=(1, 3))


def _visible(
    method: Method, rows: Int[np.ndarray, " R"], length: int, causal: bool
) -> Int[np.ndarray, " R"]:
    """How many keys rows of a sequence see."""
    q, kv = (jnp.asarray(x, jnp.int32)[None] for x in (rows, np.arange(length)))
    places = located(Places(q, kv))
    return np.asarray(count(visible(method, places, causal)))[0, 0, :, 0]


def _parts(slopes: np.ndarray, matched: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"temperature": {"slopes": layer.tolist()}} if here else {}
        for layer, here in zip(slopes, matched, strict=True)
    ]
