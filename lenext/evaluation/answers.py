"""What a decoder answers to prompts: the text that it draws, and which of several it prefers."""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lenext.data import share_found
from lenext.evaluation.figures import Cost
from lenext.evaluation.metrics import Metric, depths
from lenext.evaluation.protocols import Prompts
from lenext.models import Model, take_apart
from lenext.models.generation import PREFILL_TOKENS
from lenext.models.kv_cache import LayerCache
from lenext.parallel.memory import Needs, bytes_of, needs_of


class Answered(NamedTuple):
    """Of C prompts.

    Attributes:
      drawn: the tokens that go on from each, the likeliest at every place.
      likelihood: natural logarithm of that of each answer given, the right one first.
    """

    drawn: Int[np.ndarray, "C draw"]
    likelihood: Float[np.ndarray, "C K"]


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="caches")
def _read(
    params: Any,
    tokens: Int[Array, "B T"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    caches: list[LayerCache],
    *,
    graphdef: Any,
) -> tuple[Float[Array, "B V"], list[LayerCache]]:
    """The next T tokens of prompts: logits after them, and the caches with them."""
    return nnx.merge(graphdef, params).step(tokens, first, caches, length)


@functools.partial(jax.jit, static_argnames="graphdef")
def _weigh(
    params: Any,
    logits: Float[Array, "B V"],
    answers: Int[Array, "B K A"],
    sizes: Int[Array, "B K"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    caches: list[LayerCache],
    *,
    graphdef: Any,
) -> Float[Array, "B K"]:
    """The log-likelihood of each answer, of `sizes` tokens, after what the caches hold."""
    model = nnx.merge(graphdef, params)

    def weigh(answer: tuple[Array, Array]) -> Array:
        tokens, size = answer
        hidden, _ = model.extend(tokens[:, :-1], first, caches, length)
        found = jnp.concatenate([logits[:, None], model.logits(hidden)], axis=1)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(found), tokens[..., None], axis=-1)[..., 0]
        inside = jnp.arange(tokens.shape[1])[None] < size[:, None]
        return jnp.sum(jnp.where(inside, chosen, 0.0), axis=-1)

    # One after the other: together they would want a copy of the caches each.
    return jax.lax.map(weigh, (jnp.swapaxes(answers, 0, 1), sizes.T)).T


@functools.partial(jax.jit, static_argnames=("graphdef", "count"), donate_argnames=("caches",))
def _draw(
    params: Any,
    logits: Float[Array, "B V"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    caches: list[LayerCache],
    *,
    graphdef: Any,
    count: int,
) -> tuple[Int[Array, "B count"], list[LayerCache]]:
    """The likeliest token, `count` times; and the caches, whose memory that took."""
    model = nnx.merge(graphdef, params)

    def likeliest(logits: Array) -> Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def step(state: tuple[Array, list[LayerCache]], i: Array) -> tuple[Any, Array]:
        token, caches = state
        logits, caches = model.step(token[:, None], first + i, caches, length)
        return (likeliest(logits), caches), token

    steps = jnp.arange(count - 1, dtype=jnp.int32)
    (last, caches), tokens = jax.lax.scan(step, (likeliest(logits), caches), steps)
    return jnp.concatenate([tokens, last[None]]).T, caches


class Asking(NamedTuple):
    """A model's answers to prompts of one length, compiled.

    Attributes:
      run: a model's parameters, and the batch that starts at a row, to its answers.
      params: gives the parameters: layers by themselves, which is a copy of them.
      total: prompts.
      batch_size: of a batch.
      needs: of memory.
      compile_seconds: what compiling took.
    """

    run: Callable[[Any, int], Answered]
    params: Callable[[], Any]
    total: int
    batch_size: int
    needs: Needs
    compile_seconds: float


def make_asking(model: Model, prompts: Prompts, *, batch_size: int) -> Asking:
    """Compiles what asks a model.

    What follows the length takes that of the whole row: of the prompt and room for an answer.

    Args:
      model: a causal one with stacked layers, under the method to evaluate.
      prompts: what to ask.
      batch_size: prompts at a time; a last batch that is not full is filled up.
    """
    total, size = prompts.batch["tokens"].shape
    batch_size = min(batch_size, total)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: take_apart(model)))
    shapes = nnx.to_pure_dict(abstract)
    apart = nnx.merge(graphdef, abstract)

    def empty() -> list[LayerCache]:
        return apart.empty_caches(batch_size, size + prompts.draw)

    def shape(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    start = time.perf_counter()
    number, caches = shape(), jax.eval_shape(empty)
    logits = shape(batch_size, model.config.vocab_size, dtype=jnp.float32)
    rest = size % PREFILL_TOKENS  # goes first, so that all parts after it are of one length
    reads = {
        part: _read.lower(
            shapes, shape(batch_size, part), number, number, caches, graphdef=graphdef
        ).compile()
        for part in {rest, min(size, PREFILL_TOKENS)} - {0}
    }
    answers, sizes = (shape(batch_size, *prompts.batch[x].shape[1:]) for x in ("answers", "sizes"))
    weigh = _weigh.lower(
        shapes, logits, answers, sizes, number, number, caches, graphdef=graphdef
    ).compile()
    draw = _draw.lower(
        shapes, logits, number, number, caches, graphdef=graphdef, count=prompts.draw
    ).compile()
    seconds = time.perf_counter() - start

    def run(params: Any, first: int) -> Answered:
        batch = {name: _rows(x, first, batch_size) for name, x in prompts.batch.items()}
        length, caches, after = jnp.int32(prompts.length), empty(), jnp.zeros(())
        edges = sorted({0, size, *range(rest, size, PREFILL_TOKENS)})
        for begin, end in itertools.pairwise(edges):
            part = batch["tokens"][:, begin:end]
            after, caches = reads[end - begin](params, part, jnp.int32(begin), length, caches)
        at = jnp.int32(size)
        likelihood = weigh(params, after, batch["answers"], batch["sizes"], at, length, caches)
        drawn, _ = draw(params, after, at, length, caches)
        return Answered(np.asarray(drawn), np.asarray(likelihood))

    plans = [needs_of(one) for one in [*reads.values(), weigh, draw]]
    held = bytes_of(shapes)
    beside = max(plan.peak for plan in plans) - held
    return Asking(
        run,
        lambda: nnx.to_pure_dict(nnx.state(take_apart(model))),
        total,
        batch_size,
        # The layers stand there twice: stacked, and by themselves.
        Needs(held, held + beside),
        seconds,
    )


def _rows(x: np.ndarray, first: int, count: int) -> np.ndarray:
    """That many rows from the first on, the last one again where there are too few."""
    return x[np.minimum(np.arange(first, first + count), len(x) - 1)]


def run_asking(
    one: Asking, tick: Callable[[int], None] = lambda rows: None
) -> tuple[Answered, Cost]:
    """The answers to all prompts; `tick` is told after each batch of how many they were."""
    start = time.perf_counter()
    params = one.params()
    parts = []
    for first in range(0, one.total, one.batch_size):
        parts.append(one.run(params, first))
        tick(min(one.batch_size, one.total - first))
    seconds = time.perf_counter() - start
    found = Answered(*(np.concatenate(rows)[: one.total] for rows in zip(*parts, strict=True)))
    return found, Cost(seconds, one.compile_seconds, one.needs.peak)


def answer_metrics(found: Answered, prompts: Prompts) -> list[Metric]:
    """What there is to say of answers: in all, by task, and by where the needle begins.

    "retrieved" is the share of a prompt's answers that stand in the text drawn, up to where it
    ends; "preferred" is 1 where the right answer is likelier than every wrong one.
    """
    documents, place = np.unique(prompts.document, return_inverse=True)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=x, minlength=len(documents))

    stops = prompts.tokenizer.frame.stops
    retrieved = np.array(
        [
            share_found(prompts.tokenizer, _until(row, stops), answers)
            for row, answers in zip(found.drawn, prompts.expected, strict=True)
        ]
    )
    right, wrong = found.likelihood[:, 0], found.likelihood[:, 1:]
    preferred = np.asarray(right > wrong.max(axis=1), float)
    scores = {"retrieved": retrieved, "preferred": preferred}
    metrics = [Metric(name, total(x), total(np.ones_like(x))) for name, x in scores.items()]
    tasks = list(dict.fromkeys(prompts.task))
    for task in tasks if len(tasks) > 1 else []:
        of_it = np.array([other == task for other in prompts.task], float)
        metrics += [
            Metric(f"{name}:{task}", total(x * of_it), total(of_it)) for name, x in scores.items()
        ]
    for low, high in depths(prompts.batch["tokens"].shape[1]):
        here = ((prompts.place >= low) & (prompts.place < high)).astype(float)
        if here.any():
            metrics.append(
                Metric("retrieved_by_place", total(retrieved * here), total(here), (low, high))
            )
    return metrics


def _until(row: np.ndarray, stops: tuple[int, ...]) -> np.ndarray:
    """The tokens up to the first at which the text ends."""
    ends = np.flatnonzero(np.isin(row, stops))
    return row[: ends[0]] if len(ends) else row
