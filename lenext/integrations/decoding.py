"""Texts of all lengths that go on together, each over its own cache of keys and values.

`lenext.models.generation` streams rows of one length. Here each row has a length of its own: a
prompt is read by itself, in parts of few sizes, and then all rows go on token by token, by `vmap`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from lenext.integrations.scoring import batches, rounded
from lenext.models.generation import Sampling, draw
from lenext.parallel.memory import bytes_of, check_fits, said

PARTS = (512, 64, 8)
"""Tokens of a prompt that are read at once; the last few are read as drawn ones are."""
LEAST_PLACES = 64


class Prompt(NamedTuple):
    """What a text goes on from.

    Attributes:
      tokens: at least one.
      most: how many tokens to draw.
    """

    tokens: Sequence[int]
    most: int

    @property
    def places(self) -> int:
        """Of its cache."""
        return rounded(len(self.tokens) + self.most, LEAST_PLACES)


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="caches")
def _read(
    params: Any,
    tokens: Int[Array, "1 T"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    caches: Any,
    *,
    graphdef: Any,
) -> Any:
    return nnx.merge(graphdef, params).step(tokens, first, caches, length)[1]


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames="caches")
def _advance(
    params: Any,
    tokens: Int[Array, " B"],
    places: Int[Array, " B"],
    lengths: Int[Array, " B"],
    keys: Any,
    caches: Any,
    *,
    graphdef: Any,
    sampling: Sampling,
) -> tuple[Int[Array, " B"], Any]:
    def row(token, place, length, key, caches):
        model = nnx.merge(graphdef, params)
        logits, caches = model.step(token[None, None], place, caches, length)
        drawn = draw(logits, jax.random.fold_in(key, place + 1), sampling)
        return drawn[0].astype(jnp.int32), caches

    return jax.vmap(row)(tokens, places, lengths, keys, caches)


def continued(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    ends: Callable[[int, list[int]], bool],
    rows_of: Callable[[int], int],
    sampling: Sampling,
    seed: int = 0,
    names: Sequence[int] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Draws what follows each prompt, those of the longest texts first.

    What follows the length follows each text as it grows, as in `lenext.models.generation`.

    Args:
      model: a causal one whose layers were taken apart (`lenext.models.take_apart`).
      prompts: what to go on from.
      ends: of a prompt's number and the tokens drawn for it so far, whether the text has ended.
      rows_of: texts that go on together, for the places of a cache.
      sampling: how to draw.
      seed: of the draws.
      names: what each prompt's draws follow from, beside the seed, whomever it is read with;
        default: its number.

    Yields:
      The number of a prompt, and the tokens that were drawn.

    Raises:
      UserError: keys and values do not fit into memory.
    """
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    groups: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.places, []).append(number)
    key = jax.random.key(seed)
    for places, numbers in sorted(groups.items(), reverse=True):
        one = bytes_of(jax.eval_shape(functools.partial(model.empty_caches, 1, places)))
        first = 0
        for count in batches(len(numbers), max(1, rows_of(places))):
            check_fits(
                count * one, f"keys and values of {count} texts of up to {places} tokens want "
                f"{said(count * one)}", "a smaller batch_size, batch_tokens or max_gen_toks takes "
                "less",
            )  # fmt: skip
            some = numbers[first : first + count]
            first += count
            # A batch that is not full is filled up with its first prompt.
            filled = [*some, *some[:1] * (count - len(some))]
            rows = [prompts[number] for number in filled]
            named = filled if names is None else [names[number] for number in filled]
            read = [_read_prompt(graphdef, params, model, row, places) for row in rows]
            caches = jax.tree.map(lambda *each: jnp.stack(each), *(own for own, _ in read))
            advance = functools.partial(
                _advance, params, graphdef=graphdef, sampling=sampling,
                keys=jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(named)),
            )  # fmt: skip
            drawn = _drawn(advance, caches, rows, [place for _, place in read], some, ends)
            yield from zip(some, drawn, strict=False)


def _read_prompt(
    graphdef: Any, params: Any, model: Any, prompt: Prompt, places: int
) -> tuple[Any, int]:
    """A prompt's caches, and how many of its tokens they hold: all but the last few."""
    caches, first, length = model.empty_caches(1, places), 0, len(prompt.tokens)
    for size in PARTS:
        while length - 1 - first >= size:
            part = jnp.asarray(prompt.tokens[first : first + size], jnp.int32)[None]
            at = jnp.int32(first), jnp.int32(length)
            caches = _read(params, part, *at, caches, graphdef=graphdef)
            first += size
    return caches, first


def _drawn(
    advance: Callable[..., Any],
    caches: Any,
    rows: Sequence[Prompt],
    places: list[int],
    numbers: Sequence[int],
    ends: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """What is drawn of each row; `places` are those of the next tokens."""
    drawn: list[list[int]] = [[] for _ in rows]
    going = set(range(len(numbers)))
    while going:
        tokens = [
            row.tokens[place] if place < len(row.tokens) else own[-1]
            for row, place, own in zip(rows, places, drawn, strict=True)
        ]
        lengths = [max(len(row.tokens), at + 1) for row, at in zip(rows, places, strict=True)]
        given = (jnp.asarray(np.asarray(x, np.int32)) for x in (tokens, places, lengths))
        found, caches = advance(*given, caches=caches)
        found = np.asarray(found).tolist()
        for i in sorted(going):  # the others stay where they are, and are not looked at
            places[i] += 1
            if places[i] >= len(rows[i].tokens):
                drawn[i].append(found[i])
                if len(drawn[i]) == rows[i].most or ends(numbers[i], drawn[i]):
                    going.remove(i)
    return drawn
