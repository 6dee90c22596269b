"""Tasks: rows of tokens with questions that have one answer each.

Of retrieval there are two, which hide needles in a row and ask for them at its end; the others are
in `lenext.data.synthetic`. All are for causal models. What is asked stands in the row itself, so
that a model of any size can be right every time, and what length does to it is not mixed up with
what it knows of language.
"""

from collections.abc import Callable

import numpy as np

from lenext.data.examples import Example, Tokens, hide
from lenext.data.synthetic import SYNTHETIC
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

DIGITS = 5  # of a pass key
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

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
    return hide(text, hidden, [(words, answer)], rng, depth, tokenizer)


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
    return hide(noise, list(pairs), questions, rng, depth, tokenizer)


RETRIEVAL: dict[str, Task] = {"passkey": passkey, "associative_recall": associative_recall}
TASKS: dict[str, Task] = RETRIEVAL | SYNTHETIC
