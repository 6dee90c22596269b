"""Sampling from a decoder, one token at a time over a cache of keys and values."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lenext.errors import UserError
from lenext.models.kv_cache import LayerCache
from lenext.models.language_model import LanguageModel
from lenext.models.stack import take_apart
from lenext.parallel.memory import bytes_of, check_fits, said

TINY = float(np.finfo(np.float32).tiny)  # XLA takes what is closer to 0 for 0
PREFILL_TOKENS = 512  # of a prompt in one pass, so that rows of attention stay small


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the k likeliest tokens; 0 for all.
      top_p: only the likeliest tokens that together hold this probability; 1 for all.

    Raises:
      UserError: for values out of these ranges.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: should be at least 0, and finite")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: should be at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: should be above 0 and at most 1")


def draw(logits: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
    """One token a row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    # As float32 holds them and their reciprocals: nearly 0 takes the likeliest token, too.
    temperature, top_p = (
        min(max(x, TINY), 1 / TINY) for x in (sampling.temperature, sampling.top_p)
    )
    # The likeliest is at 0, so that no quotient is too large; and ties stay ties.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        chances = jax.nn.softmax(ordered, axis=-1)
        # A token counts if those likelier than it do not reach top_p by themselves.
        inside = jnp.cumsum(chances, axis=-1) - chances < top_p
        least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1)


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames="caches")
def _advance(
    params: Any,
    tokens: Int[Array, "B T"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    caches: list[LayerCache],
    key: Array,
    *,
    graphdef: Any,
    sampling: Sampling,
) -> tuple[Int[Array, " B"], list[LayerCache]]:
    logits, caches = nnx.merge(graphdef, params).step(tokens, first, caches, length)
    drawn = draw(logits, jax.random.fold_in(key, first + tokens.shape[1]), sampling)
    return drawn.astype(jnp.int32), caches


def generate(
    model: LanguageModel,
    prompt: Int[np.ndarray, "B T"],
    max_tokens: int,
    *,
    sampling: Sampling = Sampling(),
    seed: int = 0,
) -> Iterator[Int[np.ndarray, " B"]]:
    """The next tokens of every row, `max_tokens` of them, one by one.

    Each layer keeps the keys and values that its method can still see: all of them, or a window's.
    What follows the length follows the text as it grows: the first token is that of the full
    context, whatever `max_tokens`. Keys and values of earlier tokens stay as they were made, so
    that later tokens are the full context's too only where nothing follows the length.

    Args:
      model: a causal one, under any method. One with stacked layers is taken apart first, which
        copies them; `lenext.models.take_apart` knows a way without a second copy.
      prompt: at least one token a row; rows are of one length.
      max_tokens: how many tokens to draw.
      sampling: how to draw them.
      seed: of the draws.

    Raises:
      UserError: for an empty prompt, a `max_tokens` below 1, or keys and values that do not fit.
    """
    batch, length = prompt.shape
    if length < 1:
        raise UserError("prompt: should hold at least one token")
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens}: should be at least 1")
    capacity = length + max_tokens
    if not isinstance(model.layers, nnx.List):
        model = take_apart(model)
    size = bytes_of(jax.eval_shape(lambda: model.empty_caches(batch, capacity)))
    check_fits(
        size, f"keys and values of {capacity} tokens want {said(size)}", "a smaller max_tokens, or "
        "a method with a window, takes less",
    )  # fmt: skip
    graphdef, state = nnx.split(model)
    params, caches = nnx.to_pure_dict(state), model.empty_caches(batch, capacity)
    advance = functools.partial(
        _advance, params, key=jax.random.key(seed), graphdef=graphdef, sampling=sampling
    )
    return _stream(advance, caches, prompt, max_tokens)


def _stream(
    advance: Callable[..., tuple[Array, list[LayerCache]]],
    caches: list[LayerCache],
    prompt: Int[np.ndarray, "B T"],
    max_tokens: int,
) -> Iterator[Int[np.ndarray, " B"]]:
    batch, length = prompt.shape
    token = jnp.zeros((batch,), jnp.int32)
    for first in range(0, length, PREFILL_TOKENS):
        part = jnp.asarray(prompt[:, first : first + PREFILL_TOKENS], jnp.int32)
        token, caches = advance(part, jnp.int32(first), jnp.int32(length), caches)
    yield np.asarray(token)
    for first in range(length, length + max_tokens - 1):
        token, caches = advance(token[:, None], jnp.int32(first), jnp.int32(first + 1), caches)
        yield np.asarray(token)
