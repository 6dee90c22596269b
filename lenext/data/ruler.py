"""Retrieval, tracing and aggregation in long texts, after RULER (arXiv 2404.06654).

Made from the benchmark's description: its eleven tasks that need no data of their own, their
haystacks (repeated noise; a text; other needles) and how many there are of what. The sentences are
ours, and so are the texts, which are documents of any dataset and not its essays: figures do not
compare with the benchmark's own.

A task makes a `Puzzle` of text, of which `lenext.data.prompts` makes a prompt.
"""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lenext.data.prompts import (
    Fill,
    Hay,
    Ids,
    Puzzle,
    Source,
    TooShort,
    between_lines,
    in_any_order,
    line_ids,
    noise,
    text,
)
from lenext.data.words import coded_words, compound_words

WRONG = 7
"""Wrong answers that the right one is held against: a guess is right one time in eight."""


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
        lines.append(line_ids(source.tokenizer, f"The code of {thing} is {code}."))
        total += len(lines[-1])
    return between_lines(lines, n)


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
            return [line_ids(source.tokenizer, word) for word in words]

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
        return in_any_order(often * repeats + seldom[:count] * few, source, rng, n)

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
        known = [line_ids(source.tokenizer, word) for word in ("...", *words)]
        most = (
            int((ZETA * max(n, 0) / min(map(len, known))) ** 0.5) + 1
        )  # words that are there at all
        more = [x for x in coded_words(rng, most, 6, upper=False) if x not in words]
        spelt = known + [line_ids(source.tokenizer, word) for word in more]
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
        return in_any_order(units, source, rng, n)

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
