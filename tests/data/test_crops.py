import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import ByteTokenizer, evaluation_crops, masked_crops
from lenext.errors import UserError


def check(corpus, crops, length):
    """Asserts what holds of all crops: slices of their documents, apart from one another."""
    assert crops.tokens.shape == (len(crops.document), length)
    for row, document, start in zip(crops.tokens, crops.document, crops.start, strict=True):
        assert 0 <= start <= corpus.lengths[document] - length
        np.testing.assert_array_equal(row, corpus.document(document)[start : start + length])
    for document in set(crops.document):
        starts = crops.start[crops.document == document]
        assert np.all(np.diff(starts) >= length)


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=8),
    st.integers(2, 60),
    st.integers(1, 10),
    st.integers(1, 2000),
)
def test_crops_of_any_corpus(numbered_corpus, lengths, length, documents, tokens):
    corpus = numbered_corpus(*lengths)
    eligible = sum(m >= length for m in lengths)
    if not eligible:
        with pytest.raises(UserError, match="no document"):
            evaluation_crops(corpus, length=length, documents=documents, tokens=tokens)
        return
    crops = evaluation_crops(corpus, length=length, documents=documents, tokens=tokens)
    check(corpus, crops, length)
    used = list(dict.fromkeys(crops.document.tolist()))
    assert len(used) == min(documents, eligible)
    assert [lengths[i] for i in used] == sorted(lengths, reverse=True)[: len(used)]
    wanted = max(1, round(tokens / (len(used) * length)))
    for i in used:
        assert np.sum(crops.document == i) == min(wanted, lengths[i] // length)


def test_places_by_hand(numbered_corpus):
    corpus = numbered_corpus(9, 40, 100, 40)
    crops = evaluation_crops(corpus, length=10, documents=3, tokens=60)
    # Longest first, ties by name; two crops each, in the middle of each half.
    assert crops.document.tolist() == [2, 2, 1, 1, 3, 3]
    assert crops.start.tolist() == [20, 70, 5, 25, 5, 25]
    assert crops.tokens[0].tolist() == list(range(49 + 20, 49 + 30))
    full = evaluation_crops(corpus, length=10, documents=1, tokens=100)
    assert full.start.tolist() == list(range(0, 100, 10))
    one = evaluation_crops(corpus, length=100, documents=3, tokens=1)
    assert (one.document.tolist(), one.start.tolist()) == ([2], [0])


def test_ties_go_by_name(numbered_corpus):
    corpus = dataclasses.replace(numbered_corpus(20, 20, 20), names=["c", "a", "b"])
    crops = evaluation_crops(corpus, length=20, documents=2, tokens=40)
    assert crops.document.tolist() == [1, 2]


def test_short_lengths_use_the_documents_of_long_ones(stdlib):
    corpus = stdlib["validation"]
    shorter = None
    for length in (64, 256, 1024, 4096, 16384, 32768):
        crops = evaluation_crops(corpus, length=length, documents=24, tokens=2**16)
        check(corpus, crops, length)
        used = set(crops.document.tolist())
        assert shorter is None or used <= shorter
        shorter = used


def test_masks_depend_on_the_crop_and_the_seed_only(stdlib):
    corpus, tokenizer = stdlib["validation"], ByteTokenizer()
    crops = evaluation_crops(corpus, length=64, documents=8, tokens=4096)
    masks = masked_crops(crops, seed=3, tokenizer=tokenizer)
    count = len(crops.document)
    assert {name: (a.shape, a.dtype) for name, a in masks.items()} == {
        "tokens": ((count, 64), np.int32),
        "predicted": ((count, 10), np.int32),
        "targets": ((count, 10), np.int32),
        "weights": ((count, 10), np.float32),
    }
    np.testing.assert_array_equal(
        masks["targets"], np.take_along_axis(crops.tokens, masks["predicted"], axis=1)
    )
    some = slice(5, None, 7)
    subset = dataclasses.replace(
        crops, tokens=crops.tokens[some], document=crops.document[some], start=crops.start[some]
    )
    for name, rows in masked_crops(subset, seed=3, tokenizer=tokenizer).items():
        np.testing.assert_array_equal(rows, masks[name][some])
    assert len({tuple(row) for row in masks["predicted"]}) == count


def test_seed_document_and_start_each_change_the_masks(numbered_corpus):
    crops = evaluation_crops(numbered_corpus(64), length=64, documents=1, tokens=64)
    variants = [
        (crops, 0),
        (crops, 1),
        (dataclasses.replace(crops, document=crops.document + 1), 0),
        (dataclasses.replace(crops, start=crops.start + 1), 0),
    ]
    masks = [masked_crops(c, seed=s, tokenizer=ByteTokenizer())["predicted"] for c, s in variants]
    assert len({tuple(positions[0]) for positions in masks}) == len(variants)


def test_lookahead_makes_crops_longer_and_messages_no_other(numbered_corpus):
    corpus = numbered_corpus(9, 44, 100, 40)
    crops = evaluation_crops(corpus, length=10, documents=3, tokens=60, lookahead=1)
    # As many as without it, of 11 tokens, in the middle of each half.
    assert crops.document.tolist() == [2, 2, 1, 1, 3, 3]
    assert crops.start.tolist() == [19, 69, 5, 27, 4, 24]
    check(corpus, crops, 11)
    whole = evaluation_crops(corpus, length=99, documents=3, tokens=1, lookahead=1)
    assert (whole.document.tolist(), whole.start.tolist()) == ([2], [0])
    with pytest.raises(UserError) as error:
        evaluation_crops(corpus, length=100, documents=3, tokens=1, lookahead=1)
    assert str(error.value) == (
        "evaluation length 100: no document in split 'train' of numbers is that long with 1 more "
        "to predict; the longest, document02, has 100 tokens"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 101},
            "evaluation length 101: no document in split 'train' of numbers is that long; "
            "the longest, document01, has 100 tokens",
        ),
        ({"length": 1}, "evaluation length must be at least 2, not 1"),
        ({"documents": 0}, "evaluation needs at least 1 document and 1 token, not 0 and 50"),
        ({"tokens": 0}, "evaluation needs at least 1 document and 1 token, not 3 and 0"),
    ],
)
def test_mistakes(numbered_corpus, options, message):
    defaults = {"length": 10, "documents": 3, "tokens": 50}
    with pytest.raises(UserError) as error:
        evaluation_crops(numbered_corpus(9, 100), **(defaults | options))
    assert str(error.value) == message
