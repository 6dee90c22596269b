"""Retrieval, tracing and aggregation in long texts, after RULER (arXiv 2404.06654).

Made from the benchmark's description: its eleven tasks that need no data of their own, their
haystacks (repeated noise; a text; other needles) and how many there are of what. The sentences are
ours, and so are the texts, which are documents of any dataset and not its essays: figures do not
compare with the benchmark's own.

A task makes a `Puzzle` of text, and `Prompt` is that in exactly so many tokens.
"""

import dataclasses
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.tokenizers import Tokenizer
from lenext.data.words import coded_words, compound_words
from lenext.errors import UserError

WRONG = 7
"""Wrong answers that the right one is held against: a guess is right one time in eight."""
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
      wrong: `WRONG` others of its kind.
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
    hidden = [_line(tokenizer, needle) for needle in puzzle.needles]
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


def _line(tokenizer: Tokenizer, line: str) -> Ids:
    """The ids of a line among others; if it starts with a newline, in the middle of one."""
    before = WORD_BEFORE if line.startswith("\n") else LINE_BEFORE
    return _inside(tokenizer, before, line + "\n", LINE_BEFORE)


# Haystacks.


def noise(source: Source, rng: np.random.Generator, n: int) -> Hay:
    """The same four sentences again and again; the first time from within."""
    del rng
    return _ends([_line(source.tokenizer, NOISE.strip())] * n, n)


def text(source: Source, rng: np.random.Generator, n: int) -> Hay:
    """A running text; needles interrupt it anywhere."""
    if n < 0:
        raise TooShort(-n)
    return Hay(source.text(rng, n), np.arange(n + 1))


def _ends(lines: Sequence[Ids], n: int) -> Hay:
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


def _filled(units: Sequence[Ids], source: Source, rng: np.random.Generator, n: int) -> Hay:
    """Lines in random order, after as much noise as is missing; nothing goes between."""
    rest = n - sum(map(len, units))
    if rest < 0:
        raise TooShort(-rest)
    mixed = [units[i] for i in rng.permutation(len(units))]
    return Hay(np.concatenate([noise(source, rng, rest).tokens, *mixed]), np.array([n]))


# Tasks.


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(10**6, 10**7))


def _uuid(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def _word(rng: np.random.Generator) -> str:
    return compound_words(rng, 1)[0]


def _different(
    make: Callable[[np.random.Generator], str], rng: np.random.Generator, count: int
) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def _listed(words: Sequence[str], last: str = " and ") -> str:
    return last.join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def niah(
    rng: np.random.Generator,
    *,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    key: Callable[[np.random.Generator], str] = _word,
    value: Callable[[np.random.Generator], str] = _number,
    fill: Fill | None = None,
) -> Puzzle:
    """Needles in a haystack: codes of things, of which some are asked for.

    Args:
      rng: draws them.
      keys: how many things have codes.
      values: how many codes each of those has that are asked for.
      queries: how many things are asked for.
      key: makes a thing's name.
      value: makes a code.
      fill: makes the haystack; None for one of further needles.
    """
    things = _different(key, rng, keys)
    codes = _different(value, rng, queries * values + (keys - queries) + WRONG * queries * values)
    asked = codes[: queries * values]
    others, fresh = codes[len(asked) :][: keys - queries], codes[len(asked) + keys - queries :]

    def said(thing: str, code: str) -> str:
        newline = "\n" if fill is text else ""
        return f"{newline}{'A' if values > 1 else 'The'} code of {thing} is {code}."

    needles = [said(things[i // values], code) for i, code in enumerate(asked)]
    needles += [said(*pair) for pair in zip(things[queries:], others, strict=True)]
    if queries > 1:  # the right codes, of the wrong things
        orders = _different(
            lambda rng: " ".join(map(str, rng.permutation(queries))), rng, WRONG + 2
        )
        right = " ".join(map(str, range(queries)))
        wrong = [[asked[int(i)] for i in order.split()] for order in orders if order != right]
    else:
        pool = [*others, *fresh] if values == 1 else fresh
        wrong = [pool[i * values : (i + 1) * values] for i in range(WRONG)]
    one = queries * values == 1
    what = f"{'code' if one else 'codes'} of {_listed(things[:queries])}"
    return Puzzle(
        opening="Codes of some things are hidden in the text below. Remember them: you will be "
        "asked for them after it.\n",
        needles=tuple(needles),
        fill=fill or functools.partial(_more_needles, {*things, *codes}, key, value),
        question=f"\nQuestion: according to the text, what {'is' if one else 'are'} the {what}?",
        lead=f"\nAnswer: the {what} {'is' if one else 'are'}",
        answers=tuple(asked),
        right=f" {_listed(asked)}.",
        wrong=tuple(f" {_listed(codes)}." for codes in wrong[:WRONG]),
        in_order=values > 1,
    )


def _more_needles(
    known: set[str],
    key: Callable[[np.random.Generator], str],
    value: Callable[[np.random.Generator], str],
    source: Source,
    rng: np.random.Generator,
    n: int,
) -> Hay:
    """Codes of further things, of which nobody will ask."""
    lines, total = [], 0
    while total < n:
        thing, code = key(rng), value(rng)
        if thing in known or code in known:
            continue
        lines.append(_line(source.tokenizer, f"The code of {thing} is {code}."))
        total += len(lines[-1])
    return _ends(lines, n)


HOPS = 4
SPELLING = 5  # letters of a variable


def variable_tracking(rng: np.random.Generator) -> Puzzle:
    """A chain of assignments, each of the variable before: which have the first one's value?"""
    names = coded_words(rng, (2 + WRONG) * (HOPS + 1), SPELLING, upper=True)
    example, chain, *wrong = (names[i : i + HOPS + 1] for i in range(0, len(names), HOPS + 1))
    value, other = _different(lambda rng: str(rng.integers(10**4, 10**5)), rng, 2)

    def lines(names: Sequence[str], value: str) -> list[str]:
        pairs = zip(names, [value, *names], strict=False)
        return [f"VAR {name} = {said}" for name, said in pairs]

    def asked(value: str) -> str:
        return f"\nQuestion: which variables have the value {value}?"

    def lead(value: str) -> str:
        return f"\nAnswer: these {HOPS + 1} variables have the value {value}:"

    shown = "\n".join(lines(example, other)) + asked(other) + lead(other)
    return Puzzle(
        opening="Variables are assigned in the text below, each to a number or to another "
        "variable. Keep track of them.\nAn example:\n\n"
        f"{shown} {_listed(example, ', ')}.\n\nThe text:\n",
        needles=tuple(lines(chain, value)),
        fill=noise,
        question=asked(value),
        lead=lead(value),
        answers=tuple(chain),
        right=f" {_listed(chain, ', ')}.",
        wrong=tuple(f" {_listed(names, ', ')}." for names in wrong),
        in_order=True,
    )


COMMON = 10  # words that are asked for
REPEATS = ((30, 3), (20, 2), (10, 1), (5, 1))
"""How often a common and an uncommon word occurs; where that does not fit, the next."""


def common_words(rng: np.random.Generator) -> Puzzle:
    """A list of words, ten of which occur ten times as often as the others (see `REPEATS`)."""
    words = compound_words(rng, COMMON * (2 + WRONG))
    common, example, *wrong = (words[i : i + COMMON] for i in range(0, len(words), COMMON))

    def fill(source: Source, rng: np.random.Generator, n: int) -> Hay:
        def spelt(words: Sequence[str]) -> list[Ids]:
            return [_line(source.tokenizer, word) for word in words]

        often = spelt(common)
        seldom = spelt([word for own in wrong for word in own])  # first those that may be guessed
        for repeats, few in REPEATS:
            taken = repeats * sum(map(len, often))
            if taken + few * sum(map(len, seldom[:COMMON])) <= n:
                break
        else:
            repeats, few = REPEATS[-1]
            raise TooShort(taken + few * sum(map(len, seldom[:COMMON])) - n)
        mean = np.mean([len(word) for word in seldom])
        more = compound_words(rng, int((n - taken) / (few * mean)) + len(words))
        seldom += spelt([word for word in more if word not in words])
        room = np.cumsum([few * len(word) for word in seldom])
        count = int(np.searchsorted(room, n - taken, side="right"))
        return _filled(often * repeats + seldom[:count] * few, source, rng, n)

    def asked(count: int) -> str:
        return f"\nQuestion: which {count} words occur most often in the list?"

    lead = "\nAnswer: the words that occur most often are"
    few, rest = example[:2], example[2:6]
    listed = [few[0], rest[0], few[1], few[0], rest[1], few[1], rest[2], few[0], few[1], rest[3]]
    return Puzzle(
        opening="Some words occur more often in the list below than others. Remember those.\n"
        "An example:\n\n" + "\n".join(listed) + f"{asked(2)}{lead} {_listed(few, ', ')}.\n\n"
        "The list:\n",
        needles=(),
        fill=fill,
        question=asked(COMMON),
        lead=lead,
        answers=tuple(common),
        right=f" {_listed(common, ', ')}.",
        wrong=tuple(f" {_listed(words, ', ')}." for words in wrong),
    )


FREQUENT = 3  # words that are asked for
ZETA = np.pi**2 / 6  # of 2: the k-th word occurs n / (k^2 zeta(2)) times


def frequent_words(rng: np.random.Generator) -> Puzzle:
    """Made-up words, each less frequent than the one before: which are the first three?

    The most frequent of all is "...", which does not count.
    """
    words = coded_words(rng, FREQUENT * (1 + WRONG), 6, upper=False)
    frequent, *wrong = (words[i : i + FREQUENT] for i in range(0, len(words), FREQUENT))

    def fill(source: Source, rng: np.random.Generator, n: int) -> Hay:
        known = [_line(source.tokenizer, word) for word in ("...", *words)]
        most = (
            int((ZETA * max(n, 0) / min(map(len, known))) ** 0.5) + 1
        )  # words that are there at all
        more = [x for x in coded_words(rng, most, 6, upper=False) if x not in words]
        spelt = known + [_line(source.tokenizer, word) for word in more]
        rank = np.arange(1, len(spelt) + 1)
        sizes = np.array([len(word) for word in spelt])

        def counts(total: int) -> np.ndarray:
            return (total / (ZETA * rank**2)).astype(int)

        def told_apart(total: int) -> bool:
            last, next_one = counts(total)[FREQUENT : FREQUENT + 2]
            return bool(last > next_one > 0)

        low, high = 0, n + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = np.sum(counts(middle) * sizes) <= n
            low, high = (middle, high) if fits else (low, middle)
        if not told_apart(low):
            least = next(total for total in range(low, n + 10**4) if told_apart(total))
            raise TooShort(int(np.sum(counts(least) * sizes)) - n)
        units = [word for word, count in zip(spelt, counts(low), strict=True) for _ in range(count)]
        return _filled(units, source, rng, n)

    return Puzzle(
        opening="Below is a text in code. Keep count of its words; the dots are none.\n",
        needles=(),
        fill=fill,
        question=f"\nQuestion: which {FREQUENT} words occur most often in the text? The dots do "
        "not count.",
        lead="\nAnswer: the words that occur most often are",
        answers=tuple(frequent),
        right=f" {_listed(frequent, ', ')}.",
        wrong=tuple(f" {_listed(words, ', ')}." for words in wrong),
    )


RULER: Mapping[str, Callable[[np.random.Generator], Puzzle]] = {
    "niah_single_1": functools.partial(niah, fill=noise),
    "niah_single_2": functools.partial(niah, fill=text),
    "niah_single_3": functools.partial(niah, fill=text, value=_uuid),
    "niah_multikey_1": functools.partial(niah, fill=text, keys=4),
    "niah_multikey_2": functools.partial(niah, keys=1 + WRONG),
    "niah_multikey_3": functools.partial(niah, keys=1 + WRONG, key=_uuid, value=_uuid),
    "niah_multivalue": functools.partial(niah, fill=text, values=4),
    "niah_multiquery": functools.partial(niah, fill=text, keys=4, queries=4),
    "vt": variable_tracking,
    "cwe": common_words,
    "fwe": frequent_words,
}
