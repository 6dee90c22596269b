"""The synthetic tasks on which length extrapolation is tested: rows of symbols, and no text.

As in the ASEntmax paper (arXiv 2506.16640) and those that it takes them from, written from their
descriptions; how symbols, marks and answers stand in a row is ours. Rows are as long as the text
given, of which nothing else counts, and neither needles nor depth are asked for. Each answer is
what one question asks, mostly a token; its place is where in the row that is to be read.
"""

import functools

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.examples import Example, Tokens, hide
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

SYMBOLS = 32
BACK = 2  # symbols between an answer of n_back and what it repeats
SHARE = 10  # one in so many pairs of flip_flop is a read, and one a write
QUESTIONS = 4  # of mqmtar
SPAN = 2  # tokens of its keys, and of its values


def _ids(tokenizer: Tokenizer, marks: int) -> tuple[Integer[np.ndarray, " s"], list[int]]:
    """Ids of the symbols, and of some marks beside them."""
    ids = tokenizer.regular_ids
    if len(ids) < SYMBOLS + marks:
        raise UserError(
            f"tokenizer: should have at least {SYMBOLS + marks} regular tokens for the task"
        )
    return ids[:SYMBOLS], [int(x) for x in ids[SYMBOLS : SYMBOLS + marks]]


def _filled(
    text: Tokens, tokenizer: Tokenizer, mark: int, body: Int64[np.ndarray, " _"]
) -> tuple[Int64[np.ndarray, " n_plus_1"], int]:
    """A row that ends on the body, and where that begins: after the text's start and marks."""
    start = np.asarray(tokenizer.frame.start, np.int64)
    missing = len(text) - len(start) - len(body)
    return np.concatenate([start, np.full(missing, mark), body]), len(start) + missing


def _room(text: Tokens, tokenizer: Tokenizer, least: int) -> int:
    """Tokens for the task itself; `least` are wanted."""
    start = len(tokenizer.frame.start)
    if len(text) - start < least:
        raise UserError(
            f"length {len(text) - 1}: should be at least {start + least - 1} for the task"
        )
    return len(text) - start


def after_a_mark(
    text: Tokens, rng: np.random.Generator, tokenizer: Tokenizer, needles: int,
    depth: float | None = None, *, order: str,
) -> Example:  # fmt: skip
    """Symbols, a mark, and the same symbols again: in their order, reversed, or by their ids.

    `order` is "copy", "reverse" or "sort".
    """
    del needles, depth
    symbols, (mark,) = _ids(tokenizer, 1)
    count = (_room(text, tokenizer, 3) - 1) // 2
    source = rng.choice(symbols, count).astype(np.int64)
    read = np.arange(count)
    if order == "reverse":
        read = read[::-1]
    elif order == "sort":
        read = np.argsort(source, kind="stable")
    tokens, begin = _filled(text, tokenizer, mark, np.concatenate([source, [mark], source[read]]))
    answer = np.full(len(tokens), -1)
    answer[-count:] = np.arange(count)
    return Example(tokens, answer, begin + read)


def n_back(
    text: Tokens, rng: np.random.Generator, tokenizer: Tokenizer, needles: int,
    depth: float | None = None,
) -> Example:  # fmt: skip
    """After each symbol the one that stood two before it; marks after the first two."""
    del needles, depth
    symbols, (mark,) = _ids(tokenizer, 1)
    count = _room(text, tokenizer, 2 * (BACK + 1)) // 2
    source = rng.choice(symbols, count).astype(np.int64)
    repeated = np.concatenate([np.full(BACK, mark), source[:-BACK]])
    tokens, begin = _filled(text, tokenizer, mark, np.stack([source, repeated], axis=1).ravel())
    answer = np.full(len(tokens), -1)
    answer[begin + 2 * BACK + 1 :: 2] = np.arange(count - BACK)
    return Example(tokens, answer, begin + 2 * np.arange(count - BACK))


def flip_flop(
    text: Tokens, rng: np.random.Generator, tokenizer: Tokenizer, needles: int,
    depth: float | None = None,
) -> Example:  # fmt: skip
    """Instructions and bits: what a read gives is what the last write took (arXiv 2306.00946).

    Eight pairs of ten are to be ignored, whatever their bit; the first is a write, the last a read.
    """
    del needles, depth
    symbols, (write, read, ignore) = _ids(tokenizer, 3)
    count = _room(text, tokenizer, 4) // 2
    few = max(1, count // SHARE)
    between = 1 + rng.permutation(count - 2)[: 2 * (few - 1)]
    writes = np.sort(np.append(between[: few - 1], 0))
    reads = np.sort(np.append(between[few - 1 :], count - 1))
    kinds = np.full(count, ignore, np.int64)
    kinds[writes], kinds[reads] = write, read
    bits = rng.integers(2, size=count)
    last = writes[np.searchsorted(writes, reads) - 1]
    bits[reads] = bits[last]
    body = np.stack([kinds, symbols[bits]], axis=1).ravel().astype(np.int64)
    tokens, begin = _filled(text, tokenizer, ignore, body)
    answer = np.full(len(tokens), -1)
    answer[begin + 2 * reads + 1] = np.arange(few)
    return Example(tokens, answer, begin + 2 * last + 1)


def mqmtar(
    text: Tokens, rng: np.random.Generator, tokenizer: Tokenizer, needles: int,
    depth: float | None = None,
) -> Example:  # fmt: skip
    """Multi-query multi-token associative recall: pairs of two tokens each, four asked for.

    Pairs fill the row up to the questions; values are of other symbols than keys.
    """
    del needles, depth
    keys, others = _ids(tokenizer, SYMBOLS + 1)
    values, mark = np.array(others[:SYMBOLS]), others[SYMBOLS]
    pair = 2 * SPAN
    count = _room(text, tokenizer, 2 * QUESTIONS * pair) // pair - QUESTIONS
    if count > SYMBOLS**SPAN:
        raise UserError(
            f"length {len(text) - 1}: holds {count} pairs; should hold at most {SYMBOLS**SPAN}, "
            "of which the keys differ"
        )
    drawn = rng.choice(SYMBOLS**SPAN, count, replace=False)
    spelt = keys[np.stack([drawn // SYMBOLS, drawn % SYMBOLS], axis=1)]
    pairs = np.concatenate([spelt, rng.choice(values, (count, SPAN))], axis=1)
    questions = [(row[:SPAN], row[SPAN:]) for row in pairs[:QUESTIONS]]
    filler = np.full(len(text), mark)
    return hide(filler, list(pairs), questions, rng, None, tokenizer)


SYNTHETIC = {
    **{x: functools.partial(after_a_mark, order=x) for x in ("copy", "reverse", "sort")},
    "flip_flop": flip_flop,
    "n_back": n_back,
    "mqmtar": mqmtar,
}
