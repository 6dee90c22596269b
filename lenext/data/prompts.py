"""Puzzles of text, and prompts of them in exactly so many tokens, for any tokeniser.

What a puzzle hides, and in what, its task says: see `lenext.data.ruler`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

NOISE = (
    "Rain fell on the hills. The road was wet. A dog slept by the door. Nothing else happened.\n"
)
# What stands before and after parts of a prompt, so that they are read as in a text.
LINE_BEFORE, WORD_BEFORE = "The end.\n", "The end"

Ids = Integer[np.ndarray, " _"]


class Hay(NamedTuple):
    """A haystack.

    Attributes:
      tokens: exactly as many as were wanted.
      cuts: places in it where needles may go, ascending.
    """

    tokens: Ids
    cuts: Int64[np.ndarray, " cuts"]


class Source(NamedTuple):
    """What haystacks are made of.

    Attributes:
      tokenizer: of the model.
      text: (rng, n) to n tokens of running text.
    """

    tokenizer: Tokenizer
    text: Callable[[np.random.Generator, int], Ids]


Fill = Callable[[Source, np.random.Generator, int], Hay]
"""(source, rng, n) to a haystack of n tokens; `TooShort` where so few, or n < 0, hold none."""


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """What a task asks, as text.

    Attributes:
      opening: what stands first: what is to come, and what to do with it.
      needles: lines that are hidden in the haystack.
      fill: makes the haystack.
      question: what stands last.
      lead: how the answer to it begins.
      answers: all of these belong into the answer.
      right: a whole answer, that goes on from `lead`.
      wrong: others of its kind.
      in_order: needles stand in their order, at random places; else anywhere, and the first at
        the depth that is asked for.
    """

    opening: str
    needles: tuple[str, ...]
    fill: Fill
    question: str
    lead: str
    answers: tuple[str, ...]
    right: str
    wrong: tuple[str, ...]
    in_order: bool = False


class Chat(NamedTuple):
    """What a chat model's template puts around what the user says.

    Attributes:
      before: ids before it, of the text's start too.
      after: ids between it and the answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


class Prompt(NamedTuple):
    """A puzzle in tokens.

    Attributes:
      tokens: the prompt, up to the answer.
      place: where the first needle begins; -1 where no single one is asked for.
    """

    tokens: Int64[np.ndarray, " n"]
    place: int


def make_prompt(
    puzzle: Puzzle,
    length: int,
    source: Source,
    rng: np.random.Generator,
    *,
    depth: float,
    chat: Chat | None = None,
) -> Prompt:
    """A puzzle as a prompt of exactly `length` tokens.

    Args:
      puzzle: to be asked.
      length: tokens.
      source: of haystacks.
      rng: for places and haystacks.
      depth: of the first needle, from 0, the haystack's beginning, to 1.
      chat: of a chat model; None for a text to be completed.

    Raises:
      TooShort: it does not fit.
    """
    tokenizer = source.tokenizer
    opening = _inside(tokenizer, "", puzzle.opening + "\n", LINE_BEFORE)
    if chat is None:
        start = np.asarray(tokenizer.frame.start, np.int64)
        asked = [_inside(tokenizer, WORD_BEFORE, puzzle.question + puzzle.lead, puzzle.right)]
    else:
        start = np.asarray(chat.before, np.int64)
        asked = [
            _inside(tokenizer, WORD_BEFORE, puzzle.question, ""),
            np.asarray(chat.after, np.int64),
            _inside(tokenizer, "", puzzle.lead.strip(), puzzle.right),
        ]
    hidden = [line_ids(tokenizer, needle) for needle in puzzle.needles]
    fixed = sum(map(len, [start, opening, *hidden, *asked]))
    hay = puzzle.fill(source, rng, length - fixed)
    at = rng.integers(len(hay.cuts), size=len(hidden))
    if puzzle.in_order:
        at.sort()
    elif len(at):
        at[0] = round(depth * (len(hay.cuts) - 1))
    parts, done = [start, opening], 0
    place = -1
    # Needles at the same cut stand in random order, unless their order counts.
    ties = np.arange(len(at)) if puzzle.in_order else rng.random(len(at))
    for needle in np.lexsort((ties, at)):
        cut = hay.cuts[at[needle]]
        parts += [hay.tokens[done:cut], hidden[needle]]
        done = cut
        if needle == 0 and len(puzzle.answers) == 1:
            place = sum(map(len, parts)) - len(hidden[0])
    tokens = np.concatenate([*parts, hay.tokens[done:], *asked]).astype(np.int64)
    return Prompt(tokens, place)


class TooShort(Exception):
    """A puzzle wants so many tokens more."""

    def __init__(self, missing: int):
        super().__init__(missing)
        self.missing = missing


def spell_answers(
    puzzle: Puzzle, tokenizer: Tokenizer, chat: Chat | None = None
) -> list[Int64[np.ndarray, " _"]]:
    """The ids of the right answer, and of the wrong ones, as they go on from the lead.

    Raises:
      UserError: the tokeniser cannot spell an answer.
    """
    for answer in puzzle.answers:
        spelt = "".join(tokenizer.decode(tokenizer.encode(answer)).split())
        if spelt.lower() != answer.lower():
            raise UserError(f"the tokenizer reads {answer!r}, an answer, as {spelt!r}")
    lead = puzzle.lead.strip() if chat else WORD_BEFORE + puzzle.question + puzzle.lead
    texts = [puzzle.right, *puzzle.wrong]
    return [np.asarray(_inside(tokenizer, lead, text, ""), np.int64) for text in texts]


def share_found(tokenizer: Tokenizer, drawn: Ids, answers: Sequence[str]) -> float:
    """The share of the answers that a text of these ids contains, whatever the case.

    Answers are looked for as the tokeniser gives them back: some put spaces where there were none.
    """
    text = tokenizer.decode(drawn).lower()
    spelt = [tokenizer.decode(tokenizer.encode(answer)).strip().lower() for answer in answers]
    return sum(bool(answer) and answer in text for answer in spelt) / len(answers)


def _inside(tokenizer: Tokenizer, before: str, text: str, after: str) -> Ids:
    return tokenizer.encode_around(before, text, after)[1]


def line_ids(tokenizer: Tokenizer, line: str) -> Ids:
    """The ids of a line among others; if it starts with a newline, in the middle of one."""
    before = WORD_BEFORE if line.startswith("\n") else LINE_BEFORE
    return _inside(tokenizer, before, line + "\n", LINE_BEFORE)


# Haystacks.


def noise(source: Source, rng: np.random.Generator, n: int) -> Hay:
    """The same four sentences again and again; the first time from within."""
    del rng
    return between_lines([line_ids(source.tokenizer, NOISE.strip())] * n, n)


def text(source: Source, rng: np.random.Generator, n: int) -> Hay:
    """A running text; needles interrupt it anywhere."""
    if n < 0:
        raise TooShort(-n)
    return Hay(source.text(rng, n), np.arange(n + 1))


def between_lines(lines: Sequence[Ids], n: int) -> Hay:
    """The last n tokens of lines, of which at least so many are given; needles go between."""
    if n < 0:
        raise TooShort(-n)
    taken, total = [], 0
    while total < n:
        taken.append(lines[-1 - len(taken)])
        total += len(taken[-1])
    borders = np.cumsum([0, *map(len, taken)])  # from the end
    cuts = n - borders[borders < n][::-1]
    joined = np.concatenate([np.zeros(0, np.int64), *taken[::-1]])
    return Hay(joined[total - n :], np.unique(np.array([0, *cuts])))


def in_any_order(units: Sequence[Ids], source: Source, rng: np.random.Generator, n: int) -> Hay:
    """Lines in random order, after as much noise as is missing; nothing goes between."""
    rest = n - sum(map(len, units))
    if rest < 0:
        raise TooShort(-rest)
    mixed = [units[i] for i in rng.permutation(len(units))]
    return Hay(np.concatenate([noise(source, rng, rest).tokens, *mixed]), np.array([n]))
