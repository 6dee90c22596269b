import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lenext.data import ByteTokenizer, causal_lm_batches, masked_lm_batches
from lenext.data.packing import document_pieces
from lenext.errors import UserError

# No token of the numbered corpora is one of these.
PAD, MASK = 1_000_000, 1_000_001
TOKENIZER = dataclasses.replace(ByteTokenizer(), pad_id=PAD, mask_id=MASK)


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def segments(row):
    """Yields the places of each segment of a packed row, having checked how they lie."""
    ids = row["segment_ids"]
    count = int(ids.max())
    assert count >= 1
    real = np.count_nonzero(ids)
    assert np.all(ids[real:] == 0)  # padding comes last
    assert np.all(np.diff(ids[:real]) >= 0)
    assert set(ids[:real]) == set(range(1, count + 1))
    for segment in range(1, count + 1):
        yield np.flatnonzero(ids == segment)


def rows_of(batch):
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def document_of(lengths, token):
    """A numbered corpus's token i is i."""
    return int(np.searchsorted(np.cumsum(lengths), token, side="right"))


lengths_of = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda n: max(n) > 1)


@given(lengths_of, st.integers(2, 20), st.integers(0, 5), st.sampled_from([0, 1]))
@example([2], 2, 0, 1)
@example([17, 0, 1, 2, 34, 33], 16, 0, 1)
@example([16, 1, 32, 31], 16, 0, 0)
def test_an_epoch_has_every_pair_once(numbered_corpus, lengths, length, seed, lookahead):
    corpus = numbered_corpus(*lengths)
    pieces = document_pieces(corpus, length=length, seed=seed, lookahead=lookahead)
    # By hand: the pairs of each document of 2 tokens and more, and how few pieces hold them.
    pairs = [m - lookahead if m > 1 else 0 for m in lengths]
    count = sum(-(-u // length) for u in pairs)
    starts = np.cumsum([0, *lengths])
    expected = sorted(
        (starts[i] + j, starts[i] + j + lookahead) for i, u in enumerate(pairs) for j in range(u)
    )
    for epoch in range(3):
        found = [pieces[epoch * count + i]["pairs"] for i in range(count)]
        assert all(1 <= len(piece) <= length for piece in found)
        assert all(piece.dtype == np.int32 for piece in found)
        assert sorted(map(tuple, np.concatenate(found))) == expected
        for piece in found:
            np.testing.assert_array_equal(np.diff(piece[:, 0]), 1)


def test_a_short_document_stays_whole_and_a_long_one_is_cut_elsewhere_each_epoch(numbered_corpus):
    pieces = document_pieces(numbered_corpus(9, 30), length=8, seed=0, lookahead=1)
    # 8 pairs are one piece; 29 are 4, the first of 5 to 8: 5 is what is left over of 3 · 8.
    firsts = set()
    for epoch in range(60):
        found = sorted(pieces[epoch * 5 + i]["pairs"][:, 0].tolist() for i in range(5))
        assert found[0] == list(range(8))
        firsts.add(len(found[1]))
    assert firsts == {5, 6, 7, 8}


ROWS = 64  # that are filled at a time


@settings(max_examples=15)
@given(lengths_of, st.integers(2, 20))
def test_causal_rows_of_any_corpus(numbered_corpus, lengths, length):
    corpus = numbered_corpus(*lengths)
    batches = causal_lm_batches(
        corpus, length=length, batch_size=ROWS, seed=0, tokenizer=TOKENIZER, packing=True
    )
    # Every token but the first of its document.
    ends = np.cumsum(lengths)
    wanted = {end - 1 - j for m, end in zip(lengths, ends, strict=True) for j in range(m - 1)}
    seen = collections.Counter()
    for number, batch in enumerate(batches):
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
            "tokens": ((ROWS, length), np.int32),
            "targets": ((ROWS, length), np.int32),
            "weights": ((ROWS, length), np.float32),
            "segment_ids": ((ROWS, length), np.int32),
        }
        for row in rows_of(batch):
            for places in segments(row):
                tokens, targets = row["tokens"][places], row["targets"][places]
                assert tokens.tolist() == list(range(tokens[0], tokens[0] + len(tokens)))
                assert targets.tolist() == [token + 1 for token in tokens]
                assert document_of(lengths, tokens[0]) == document_of(lengths, targets[-1])
                seen.update(targets.tolist())
            padding = row["segment_ids"] == 0
            assert row["weights"].tolist() == (~padding).tolist()
            assert set(row["tokens"][padding]) | set(row["targets"][padding]) <= {PAD}
        # Rows that are filled together hold pieces that follow one another in the epochs.
        assert set(seen) <= wanted
        counts = [seen[token] for token in wanted]
        assert max(counts) - min(counts) <= 1
        if number and min(counts):
            break


@settings(max_examples=15)
@given(lengths_of, st.integers(2, 20), st.floats(0.05, 1.0))
def test_masked_rows_of_any_corpus(numbered_corpus, lengths, length, rate):
    corpus = numbered_corpus(*lengths)
    options = {"length": length, "batch_size": 3, "seed": 0, "rate": rate, "tokenizer": TOKENIZER}
    k = max(1, round(rate * length))
    for batch in take(masked_lm_batches(corpus, packing=True, **options), 30):
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
            "tokens": ((3, length), np.int32),
            "predicted": ((3, k), np.int32),
            "targets": ((3, k), np.int32),
            "weights": ((3, k), np.float32),
            "segment_ids": ((3, length), np.int32),
        }
        for row in rows_of(batch):
            real = np.count_nonzero(row["segment_ids"])
            chosen = max(1, round(rate * real))
            np.testing.assert_array_equal(row["weights"], np.arange(k) < chosen)
            positions = row["predicted"][:chosen]
            assert np.all(np.diff(positions) > 0)
            assert positions[-1] < real
            assert set(row["predicted"][chosen:]) <= {length - 1}
            tokens = row["tokens"].copy()
            tokens[positions] = row["targets"][:chosen]
            for places in segments(row):
                assert np.all(np.diff(tokens[places]) == 1)
                first, last = tokens[places][[0, -1]]
                assert document_of(lengths, first) == document_of(lengths, last)
                assert lengths[document_of(lengths, first)] > 1
            assert np.all(tokens[real:] == PAD)


def test_rows_are_well_filled(numbered_corpus):
    # Documents of 1 to 100 tokens in rows of 128: one after the other, a third would be padding.
    corpus = numbered_corpus(*np.random.default_rng(0).integers(1, 101, size=2000).tolist())
    batches = causal_lm_batches(
        corpus, length=128, batch_size=64, seed=0, tokenizer=TOKENIZER, packing=True
    )
    assert np.mean([batch["weights"].mean() for batch in take(batches, 8)]) > 0.9


def test_epochs_and_seeds_differ(numbered_corpus):
    corpus = numbered_corpus(*range(1, 60))

    def first_rows(seed, skip=0):
        batches = causal_lm_batches(
            corpus, length=32, batch_size=60, seed=seed, tokenizer=TOKENIZER, packing=True
        )
        return take(batches, skip + 1)[-1]["tokens"].tolist()

    assert first_rows(0) == first_rows(0)
    assert first_rows(0) != first_rows(1)
    assert first_rows(0) != first_rows(0, skip=1)


@pytest.mark.parametrize("make", [causal_lm_batches, masked_lm_batches])
def test_no_document_to_predict_in(numbered_corpus, make):
    options = {"length": 8, "batch_size": 1, "seed": 0, "tokenizer": TOKENIZER, "packing": True}
    with pytest.raises(UserError, match=r"^no document in split 'train' of numbers has 2 tokens$"):
        make(numbered_corpus(1, 0, 1), **options)
    take(make(numbered_corpus(1, 2), **options), 2)
