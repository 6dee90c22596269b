"""Log-likelihoods of tokens that follow others, of texts of all lengths in passes of few shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.models.cross_entropy import cross_entropy

LEAST_TOKENS = 32
LEAST_TARGETS = 8


class Question(NamedTuple):
    """How likely tokens are after others.

    Attributes:
      tokens: what the model reads, at least one token.
      targets: what follows its last tokens, one for each: at most as many as `tokens`.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]


class Score(NamedTuple):
    """The answer.

    Attributes:
      log_likelihood: of all targets together, in nats.
      is_greedy: each of them is the likeliest token (the first of equals) at its place.
    """

    log_likelihood: float
    is_greedy: bool


class _Row(NamedTuple):
    """One text to read, and all that is asked of it."""

    tokens: tuple[int, ...]
    asked: list[tuple[int, tuple[int, ...]]]  # number of the question, targets

    @property
    def targets(self) -> int:
        return sum(len(targets) for _, targets in self.asked)


def rounded(size: int, least: int) -> int:
    """The next of the sizes 1, 1.5, 2, 3, 4, 6, … times `least` (a power of two)."""
    top = least
    while top < size:
        top *= 2
    return top * 3 // 4 if top > least and size <= top * 3 // 4 else top


def batches(count: int, most: int) -> Iterator[int]:
    """Sizes of batches that hold `count` items: all `most`, and the last a power of two or that."""
    while count > 0:
        size = min(most, 1 << (count - 1).bit_length())
        yield size
        count -= size


@functools.partial(jax.jit, static_argnames="graphdef")
def _figures(
    params: Any,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    places: Int[Array, "B P"],
    targets: Int[Array, "B P"],
    *,
    graphdef: Any,
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    model = nnx.merge(graphdef, params)
    hidden, _ = model.encode(tokens, mask=mask)
    # The head reads these places alone, and its logits never lie in memory together.
    hidden = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    seen = cross_entropy(hidden, model.head_weights(), targets)
    return seen.loss, seen.correct


def scored(
    model: Any,
    questions: Sequence[Question],
    *,
    rows_of: Callable[[int], int],
    longest: int | None = None,
) -> Iterator[tuple[int, Score]]:
    """Answers questions, those of the longest texts first.

    Questions about the same tokens are answered by one reading of them. Rows are filled up on the
    right to one of few lengths, for few compilations; the filling is masked, so that no text is
    longer by it for methods that follow the length.

    Args:
      model: a causal one, under any method.
      questions: what is asked.
      rows_of: texts in a pass, for their length in tokens.
      longest: no row is filled up beyond this, such as the positions that a model has learned.

    Yields:
      The number of a question, and its answer.
    """
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (tokens, targets) in enumerate(questions):
        rows.setdefault(tokens, _Row(tokens, [])).asked.append((number, targets))
    groups: dict[tuple[int, int], list[_Row]] = {}
    for row in rows.values():
        size = rounded(len(row.tokens), LEAST_TOKENS)
        size = size if longest is None else min(size, longest)
        groups.setdefault((size, rounded(row.targets, LEAST_TARGETS)), []).append(row)
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    for (size, width), group in sorted(groups.items(), reverse=True):
        first = 0
        for count in batches(len(group), max(1, rows_of(size))):
            some = group[first : first + count]
            first += count
            filled = _filled(some, count, size, width)
            found = _figures(params, *map(jnp.asarray, filled), graphdef=graphdef)
            loss, correct = jax.device_get(found)
            for row, losses, rights in zip(some, loss, correct, strict=False):
                at = 0
                for number, targets in row.asked:
                    of = slice(at, at + len(targets))
                    at += len(targets)
                    total = -float(losses[of].sum(dtype=np.float64))
                    yield number, Score(total, bool(rights[of].all()))


def _filled(
    rows: Sequence[_Row], count: int, size: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and mask [count, size], places and targets [count, width]."""
    tokens, mask = np.zeros((count, size), np.int32), np.zeros((count, size), bool)
    places, targets = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    mask[len(rows) :, 0] = True  # a row that nobody asked for has a token, too
    for i, row in enumerate(rows):
        length = len(row.tokens)
        tokens[i, :length], mask[i, :length] = row.tokens, True
        at = [place for _, t in row.asked for place in range(length - len(t), length)]
        places[i, : len(at)] = at
        targets[i, : len(at)] = [target for _, t in row.asked for target in t]
    return tokens, mask, places, targets
