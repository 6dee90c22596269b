"""Rows of tokens with questions, whose answers stand in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

Tokens = Integer[np.ndarray, " _"]


class Example(NamedTuple):
    """A row with its questions.

    Attributes:
      tokens: n + 1 of them: the model sees all but the last, and predicts all but the first.
      answer: which answer each token is a part of, from 0; -1 for those that are of none.
      place: of each answer, where its needle begins.
    """

    tokens: Int64[np.ndarray, " n_plus_1"]
    answer: Int64[np.ndarray, " n_plus_1"]
    place: Int64[np.ndarray, " answers"]


def hide(
    filler: Tokens,
    needles: Sequence[Tokens],
    questions: Sequence[tuple[Tokens, Tokens]],
    rng: np.random.Generator,
    depth: float | None,
    tokenizer: Tokenizer,
) -> Example:
    """`filler` with the needles at random places, ending on the questions in random order.

    It starts as a text does. Question i, of its words and the answer, asks for needle i; there may
    be fewer than needles.
    """
    taken = sum(map(len, needles)) + sum(len(words) + len(answer) for words, answer in questions)
    start = np.asarray(tokenizer.frame.start, np.int64)
    filler = filler[len(start) :]
    room = len(filler) - taken
    if room < 0:
        length, least = (len(start) + n - 1 for n in (len(filler), taken))
        raise UserError(
            f"length {length}: should be at least {least} for the task's needles "
            f"({len(needles)}) and what is asked of them"
        )
    cuts = rng.integers(room + 1, size=len(needles))
    if depth is not None:
        cuts[0] = round(depth * room)
    place = np.zeros(len(needles), np.int64)
    parts, done = [start], 0
    # Needles at the same cut stand in random order.
    for needle in np.lexsort((rng.random(len(needles)), cuts)):
        parts += [filler[done : cuts[needle]], needles[needle]]
        done = cuts[needle]
        place[needle] = sum(map(len, parts)) - len(needles[needle])
    parts.append(filler[done:room])
    numbers = [np.full(len(start) + room + sum(map(len, needles)), -1)]
    for question in rng.permutation(len(questions)):
        words, answer = questions[question]
        parts += [words, answer]
        numbers += [np.full(len(words), -1), np.full(len(answer), question)]
    return Example(
        np.concatenate(parts).astype(np.int64),
        np.concatenate(numbers),
        place[: len(questions)],
    )
