"""Rows of the synthetic tasks, read back by plain means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import TASKS, ByteTokenizer, get_tokenizer
from lenext.data.synthetic import SYNTHETIC
from lenext.errors import UserError
from tests.data import kinds

BYTES = ByteTokenizer()
LEAST = {"copy": 3, "reverse": 3, "sort": 3, "n_back": 6, "flip_flop": 4, "mqmtar": 32}
"""Tokens of the shortest row."""
seeds = st.integers(0, 2**32 - 1)


def made(name, size, seed, tokenizer=BYTES):
    text = np.zeros(size, np.uint8)
    row = TASKS[name](text, np.random.default_rng(seed), tokenizer, 1, 0.5)
    assert len(row.tokens) == len(row.answer) == size
    assert row.tokens.dtype == row.answer.dtype == np.int64
    return row


def answers_of(row):
    """The tokens of each answer, in the order of their numbers."""
    count = row.answer.max() + 1
    assert row.place.shape == (count,)
    return [row.tokens[row.answer == number].tolist() for number in range(count)]


@pytest.mark.parametrize(("name", "back"), [("copy", list), ("sort", sorted),
                                            ("reverse", lambda x: x[::-1])])  # fmt: skip
@given(st.integers(3, 120), seeds)
def test_symbols_come_again_after_a_mark(name, back, size, seed):
    row = made(name, size, seed)
    count = (size - 1) // 2
    source, mark, target = np.split(row.tokens[size - 2 * count - 1 :], [count, count + 1])
    assert set(source) <= set(range(32))
    assert mark == [32]
    assert np.all(row.tokens[: size - 2 * count - 1] == 32)
    assert target.tolist() == back(source.tolist())
    assert answers_of(row) == [[x] for x in target]
    assert row.tokens[row.place].tolist() == target.tolist()
    assert sorted(row.place) == list(range(size - 2 * count - 1, size - count - 1))


@given(st.integers(6, 120), seeds)
def test_n_back_repeats_what_stood_two_before(size, seed):
    row = made("n_back", size, seed)
    symbols, repeated = row.tokens[size % 2 :: 2], row.tokens[size % 2 + 1 :: 2]
    assert set(symbols) <= set(range(32))
    assert repeated[:2].tolist() == [32, 32]
    assert repeated[2:].tolist() == symbols[:-2].tolist()
    assert answers_of(row) == [[x] for x in symbols[:-2]]
    assert np.all(np.diff(np.flatnonzero(row.answer >= 0)) == 2)
    assert row.tokens[row.place].tolist() == symbols[:-2].tolist()


@given(st.integers(4, 300), seeds)
def test_flip_flop_reads_what_was_written_last(size, seed):
    row = made("flip_flop", size, seed)
    begin, held, written, answers = size % 2, None, None, []
    kinds, bits = row.tokens[begin::2] - 32, row.tokens[begin + 1 :: 2]
    assert (kinds[0], kinds[-1]) == (0, 1)
    for pair, (kind, bit) in enumerate(zip(kinds, bits, strict=True)):
        assert bit in (0, 1)
        if kind == 0:
            held, written = bit, begin + 2 * pair + 1
        if kind == 1:
            assert bit == held
            assert row.answer[begin + 2 * pair + 1] == len(answers)
            assert row.place[len(answers)] == written
            answers.append([bit])
    assert answers_of(row) == answers
    few = max(1, len(kinds) // 10)
    assert np.bincount(kinds, minlength=3).tolist() == [few, few, len(kinds) - 2 * few]


def test_flip_flop_s_bits_are_even():
    bits = np.concatenate([made("flip_flop", 400, seed).tokens[1::2] for seed in range(50)])
    assert abs(bits.mean() - 0.5) < 0.02


@given(st.integers(32, 400), seeds)
def test_recall_of_pairs_of_several_tokens(size, seed):
    row = made("mqmtar", size, seed)
    body = size - 16
    key, value = row.tokens < 32, (row.tokens >= 32) & (row.tokens < 64)
    stored = {}
    for i in range(body - 3):
        if key[i] and key[i + 1] and value[i + 2] and value[i + 3]:
            stored[tuple(row.tokens[i : i + 2])] = (row.tokens[i + 2 : i + 4].tolist(), i)
    assert len(stored) == body // 4
    assert np.count_nonzero(row.tokens[:body] == 64) == body % 4
    asked = row.tokens[body:].reshape(4, 4)
    numbers = row.answer[body:].reshape(4, 4)
    assert np.all(row.answer[:body] == -1)
    assert np.all(numbers[:, :2] == -1)
    assert sorted(numbers[:, 2]) == [0, 1, 2, 3]
    for question, number in zip(asked, numbers[:, 2:], strict=True):
        assert number[0] == number[1]
        assert stored[tuple(question[:2])] == (question[2:].tolist(), row.place[number[0]])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_row_that_is_just_long_enough_and_one_too_short(name):
    assert answers_of(made(name, LEAST[name], 0))
    least = LEAST[name] - 1
    with pytest.raises(UserError, match=f"length {least - 1}: should be at least {least} for the"):
        made(name, LEAST[name] - 1, 0)


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_rows_start_as_texts_of_a_tokenizer_do(name, kind, tmp_path):
    tokenizer = get_tokenizer(str(kinds.save(kind, tmp_path)))
    if len(tokenizer.regular_ids) < 65:
        with pytest.raises(UserError, match=r"should have at least .* regular tokens"):
            made("mqmtar", 49, 0, tokenizer)
        return
    row = made(name, 49, 0, tokenizer)
    start = tokenizer.frame.start
    assert tuple(row.tokens[: len(start)]) == start
    assert set(row.tokens[len(start) :]) <= set(tokenizer.regular_ids)


def test_rows_of_64_times_the_length_and_more_pairs_than_keys():
    assert len(answers_of(made("mqmtar", 48 * 64 + 1, 0))) == 4
    with pytest.raises(UserError, match="holds 1046 pairs; should hold at most 1024"):
        made("mqmtar", 4200, 0)
