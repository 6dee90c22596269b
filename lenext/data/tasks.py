"""Retrieval tasks: needles in a row of tokens, and at its end questions that have one answer each.

Both are for causal models. What is asked stands in the row itself, so that a model of any size can
be right every time, and what length does to it is not mixed up with what it knows of language.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

DIGITS = 5  # of a pass key
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

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


Task = Callable[[Tokens, np.random.Generator, Tokenizer, int, float | None], Example]
"""(text of n + 1 tokens to hide needles in, rng, its tokeniser, needles, depth) to an example. The
depth is that of the first answer's needle, from 0, the beginning, to 1; None for anywhere."""


def passkey(
    text: Tokens,
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    needles: int,
    depth: float | None = None,
) -> Example:
    """Retrieval of one of several pass keys hidden in a text (after arXiv 2305.16300).

    A needle is a line, "Pass key Q: 48213", of a name and a number that no other needle has. The
    row ends on one needle's line again, of which the number is the answer.

    Raises:
      UserError: the row is too short for its needles, or there are more than names.
    """
    if needles > len(NAMES):
        raise UserError(
            f"{needles} needles: should be at most {len(NAMES)}, the names of pass keys"
        )
    names = rng.choice(len(NAMES), needles, replace=False)
    numbers = [f"{number:0{DIGITS}}" for number in rng.choice(10**DIGITS, needles, replace=False)]
    # Cut out of the needle's own ids: by themselves, the parts of a line may have other ones.
    lines = [
        tokenizer.encode_around(f"\nPass key {NAMES[name]}: ", number, "\n")
        for name, number in zip(names, numbers, strict=True)
    ]
    hidden = [np.concatenate(line) for line in lines]
    words, answer, _ = lines[0]
    return _example(text, hidden, [(words, answer)], rng, depth, tokenizer)


def associative_recall(
    text: Tokens,
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    needles: int,
    depth: float | None = None,
) -> Example:
    """Recall of the values of keys, in noise (multi-query associative recall, arXiv 2312.04927).

    Keys, values and noise are thirds of the tokeniser's regular ids. A needle is a key, which no
    other needle has, and its value. The row ends on all needles again, in another order. Of `text`
    nothing counts but its length.

    Raises:
      UserError: the row is too short for its needles, or there are more than keys.
    """
    third = len(tokenizer.regular_ids) // 3
    keys, values, noise = np.split(tokenizer.regular_ids[: 3 * third], 3)
    if needles > third:
        raise UserError(f"{needles} needles: should be at most {third}, the keys of the tokenizer")
    pairs = np.stack([rng.choice(keys, needles, replace=False), rng.choice(values, needles)], 1)
    questions = [(pair[:1], pair[1:]) for pair in pairs]
    noise = rng.choice(noise, len(text))
    return _example(noise, list(pairs), questions, rng, depth, tokenizer)


TASKS: dict[str, Task] = {"passkey": passkey, "associative_recall": associative_recall}


def _example(
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
