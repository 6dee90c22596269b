import gc
import itertools
import json
import threading
import time

import grain
import numpy as np
import pytest

from lenext.data import ByteTokenizer, masked_lm_batches, pipeline
from lenext.errors import UserError

LENGTH = 16
DOCUMENTS = (5, 48, 70, 15, 33, 0, 16)  # hold 0, 3, 4, 0, 2, 0, 1 crops
EPOCH = 10


@pytest.fixture
def batches(numbered_corpus):
    """Returns a maker of batches, with defaults for what a test does not care about."""
    corpus = numbered_corpus(*DOCUMENTS)

    def make(**options):
        defaults = {"length": LENGTH, "batch_size": 4, "seed": 0, "tokenizer": ByteTokenizer()}
        return masked_lm_batches(corpus, **(defaults | options))

    return make


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def originals(batch):
    """Undoes the masking."""
    rows = batch["tokens"].copy()
    np.put_along_axis(rows, batch["positions"], batch["targets"], axis=1)
    return rows


def cuts(batch):
    """Returns (document, start) of each row; the corpus's tokens count up from 0."""
    ends = np.cumsum(DOCUMENTS)
    first = originals(batch)[:, 0]
    documents = np.searchsorted(ends, first, side="right")
    return [(int(d), int(f - (ends - DOCUMENTS)[d])) for d, f in zip(documents, first, strict=True)]


def test_rows_are_slices_of_one_long_enough_document(batches):
    for batch in take(batches(), 30):
        rows = originals(batch)
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(LENGTH))
        for document, start in cuts(batch):
            assert 0 <= start <= DOCUMENTS[document] - LENGTH


def test_shapes_and_dtypes(batches):
    batch = next(iter(batches()))
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        "tokens": ((4, 16), np.int32),
        "positions": ((4, 2), np.int32),
        "targets": ((4, 2), np.int32),
        "weights": ((4, 2), np.float32),
    }


def test_an_epoch_visits_every_crop_once(batches):
    stream = iter(batches(batch_size=EPOCH))
    shifted = set()
    for _ in range(20):
        seen = cuts(next(stream))
        counts = np.bincount([document for document, _ in seen], minlength=len(DOCUMENTS))
        assert counts.tolist() == [0, 3, 4, 0, 2, 0, 1]
        assert sorted(start for document, start in seen if document == 1) == [0, 16, 32]
        shifted |= {start % LENGTH for document, start in seen if document == 2}
    # 70 = 4 · 16 + 6: the shift takes all values up to what is left over.
    assert shifted == set(range(7))


def test_epochs_differ_in_order_crops_and_masks(batches):
    first, second = take(batches(batch_size=EPOCH), 2)
    order, other = ([document for document, _ in cuts(batch)] for batch in (first, second))
    assert order != other
    assert sorted(cuts(first)) != sorted(cuts(second))
    # Document 6 is exactly one crop: the same tokens in every epoch, masked anew.
    masks = [
        tuple(batch["positions"][cuts(batch).index((6, 0))])
        for batch in take(batches(batch_size=EPOCH), 8)
    ]
    assert len(set(masks)) > 1


@pytest.mark.parametrize("shard_count", [2, 4])
def test_global_batch_does_not_depend_on_the_shards(batches, shard_count):
    # 12 batches of 4 run through several epochs of 10, with borders in mid-batch.
    whole = take(batches(), 12)
    shards = [take(batches(shard_index=i, shard_count=shard_count), 12) for i in range(shard_count)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, whole)


def test_batch_t_does_not_depend_on_how_many_rows_were_asked_for(batches):
    rows = take(batches(batch_size=1), 12)
    joined = [
        {name: np.concatenate([part[name] for part in rows[i : i + 4]]) for name in rows[0]}
        for i in range(0, 12, 4)
    ]
    assert_same(joined, take(batches(), 3))


def test_the_seed_decides(batches):
    assert_same(take(batches(), 5), take(batches(), 5))
    first, other = (take(batches(seed=seed), 5) for seed in (0, 1))
    assert [cuts(batch) for batch in first] != [cuts(batch) for batch in other]


@pytest.mark.parametrize("threads", [0, 2, 4])
def test_threads_do_not_change_the_order(batches, monkeypatch, threads):
    expected = take(batches(), 40)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    monkeypatch.setattr(pipeline, "READ_OPTIONS", options)
    assert_same(take(batches(), 40), expected)


@pytest.mark.parametrize("done", [0, 1, 7])
def test_resumes_exactly(batches, done):
    iterator = iter(batches())
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 9)
    restored = iter(batches())
    restored.set_state(state)
    assert_same(take(restored, 9), expected)
    iterator.set_state(state)  # also back in time, over what was read ahead
    assert_same(take(iterator, 9), expected)


def test_a_state_serves_any_number_of_shards(batches):
    iterator = iter(batches())
    take(iterator, 3)
    shard = iter(batches(shard_index=1, shard_count=2))
    shard.set_state(iterator.get_state())
    expected = {name: a[2:] for name, a in next(iterator).items()}
    assert_same([next(shard)], [expected])


def test_dropped_iterators_leave_no_threads(batches):
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    gc.collect()
    before = len(threads())
    for seed in range(20):
        next(iter(batches(seed=seed)))
    deadline = time.monotonic() + 10
    while len(threads()) > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert len(threads()) <= before


def test_a_corpus_of_one_crop_will_do(numbered_corpus):
    corpus = numbered_corpus(LENGTH)
    options = {"length": LENGTH, "batch_size": 3, "seed": 0, "tokenizer": ByteTokenizer()}
    for batch in take(masked_lm_batches(corpus, **options), 3):
        np.testing.assert_array_equal(originals(batch), np.tile(np.arange(LENGTH), (3, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 71},
            "training length 71: no document in split 'train' of numbers is that long",
        ),
        ({"length": 1}, "training length must be at least 2, not 1"),
        ({"shard_count": 3}, "batch size 4 must be a positive multiple of the number of shards, 3"),
        ({"batch_size": 0}, "batch size 0 must be a positive multiple of the number of shards, 1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_mistakes(batches, options, message):
    with pytest.raises(UserError) as error:
        batches(**options)
    assert str(error.value).startswith(message)


def test_a_bad_rate_is_found_before_the_first_batch(batches):
    with pytest.raises(UserError, match="masking rate"):
        batches(rate=0.0)


def test_shard_outside_the_count(batches):
    with pytest.raises(ValueError, match="shard 2 of 2"):
        batches(shard_index=2, shard_count=2)
