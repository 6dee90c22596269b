import dataclasses
import gc
import hashlib
import itertools
import json
import threading
import time

import grain
import numpy as np
import pytest

from lenext.data import (
    ByteTokenizer,
    Corpus,
    Frame,
    Pose,
    causal_lm_batches,
    masked_lm_batches,
    pipeline,
)
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


KINDS = {
    "masked crops": (masked_lm_batches, {}),
    "causal crops": (causal_lm_batches, {}),
    "masked, PoSE": (masked_lm_batches, {"law": Pose(100, chunks=3)}),
    "causal, PoSE": (causal_lm_batches, {"law": Pose(100)}),
    "masked, packed": (masked_lm_batches, {"packing": True}),
    "causal, packed": (causal_lm_batches, {"packing": True}),
}


@pytest.fixture(params=KINDS)
def stream(numbered_corpus, request):
    """Returns a maker of batches of each kind: what they promise, they promise alike."""
    corpus = numbered_corpus(*DOCUMENTS)
    kind, own = KINDS[request.param]

    def make(**options):
        defaults = {"length": LENGTH, "batch_size": 4, "seed": 0, "tokenizer": ByteTokenizer()}
        return kind(corpus, **(defaults | own | options))

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
    np.put_along_axis(rows, batch["predicted"], batch["targets"], axis=1)
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
        "predicted": ((4, 2), np.int32),
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


def test_masked_crops_of_bytes_are_what_they_always_were():
    # As computed before there was packing or another vocabulary: runs are to be repeatable.
    offsets = np.cumsum([0, 5, 48, 70, 15, 33, 0, 160], dtype=np.int64)
    tokens = (np.arange(offsets[-1]) % 256).astype(np.uint16)
    corpus = Corpus(tokens, offsets, [f"d{i}" for i in range(7)], "0", "n", "train")
    options = {"length": 16, "batch_size": 4, "seed": 3, "tokenizer": ByteTokenizer()}
    digest = hashlib.sha256()
    for batch in take(masked_lm_batches(corpus, **options), 25):
        for name in sorted(batch):
            digest.update(batch[name].tobytes())
    assert digest.hexdigest()[:16] == "6e456d405745ce0c"


def test_epochs_differ_in_order_crops_and_masks(batches):
    first, second = take(batches(batch_size=EPOCH), 2)
    order, other = ([document for document, _ in cuts(batch)] for batch in (first, second))
    assert order != other
    assert sorted(cuts(first)) != sorted(cuts(second))
    # Document 6 is exactly one crop: the same tokens in every epoch, masked anew.
    masks = [
        tuple(batch["predicted"][cuts(batch).index((6, 0))])
        for batch in take(batches(batch_size=EPOCH), 8)
    ]
    assert len(set(masks)) > 1


@pytest.mark.parametrize("shard_count", [2, 4])
def test_global_batch_does_not_depend_on_the_shards(stream, shard_count):
    # 12 batches of 4 run through several epochs of 10, with borders in mid-batch.
    whole = take(stream(), 12)
    shards = [take(stream(shard_index=i, shard_count=shard_count), 12) for i in range(shard_count)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, whole)


def test_batch_t_does_not_depend_on_how_many_rows_were_asked_for(stream):
    rows = take(stream(batch_size=1), 12)
    joined = [
        {name: np.concatenate([part[name] for part in rows[i : i + 4]]) for name in rows[0]}
        for i in range(0, 12, 4)
    ]
    assert_same(joined, take(stream(), 3))


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
def test_resumes_exactly(stream, done):
    iterator = iter(stream())
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 9)
    restored = iter(stream())
    restored.set_state(state)
    assert_same(take(restored, 9), expected)
    iterator.set_state(state)  # also back in time, over what was read ahead
    assert_same(take(iterator, 9), expected)


def test_a_state_serves_any_number_of_shards(stream):
    iterator = iter(stream())
    take(iterator, 3)
    shard = iter(stream(shard_index=1, shard_count=2))
    shard.set_state(iterator.get_state())
    expected = {name: a[2:] for name, a in next(iterator).items()}
    assert_same([next(shard)], [expected])


def test_dropped_iterators_leave_no_threads(stream):
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("grain-")]

    gc.collect()
    before = len(threads())
    for seed in range(8):
        next(iter(stream(seed=seed)))
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
            "training length 71: no document in split 'train' of numbers is that long; "
            "the longest, document02, has 70 tokens; packing would use documents of fewer tokens",
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "training length must be at least 2, not 1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"shard_count": 3}, "batch size 4 must be a positive multiple of the number of shards, 3"),
    ],
)
def test_mistakes_of_all_kinds(numbered_corpus, kind, options, message):
    make, own = KINDS[kind]
    defaults = {"length": LENGTH, "batch_size": 4, "seed": 0, "tokenizer": ByteTokenizer()}
    with pytest.raises(UserError) as error:
        make(numbered_corpus(*DOCUMENTS), **(defaults | own | options))
    assert str(error.value) == message


def test_causal_crops_are_shifted_by_one(numbered_corpus):
    corpus = numbered_corpus(*DOCUMENTS)
    options = {"length": LENGTH, "batch_size": 4, "seed": 0, "tokenizer": ByteTokenizer()}
    for batch in take(causal_lm_batches(corpus, **options), 30):
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
            "tokens": ((4, LENGTH), np.int32),
            "targets": ((4, LENGTH), np.int32),
            "weights": ((4, LENGTH), np.float32),
        }
        np.testing.assert_array_equal(
            batch["tokens"], batch["tokens"][:, :1] + np.arange(LENGTH, dtype=np.int32)
        )
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        np.testing.assert_array_equal(batch["weights"], 1)
        ends = np.cumsum(DOCUMENTS)
        # The last target is of the same document as the first token.
        first, last = batch["tokens"][:, 0], batch["targets"][:, -1]
        np.testing.assert_array_equal(
            np.searchsorted(ends, first, side="right"), np.searchsorted(ends, last, side="right")
        )


def test_a_causal_epoch_visits_each_crop_of_one_more_token_once(numbered_corpus):
    # Crops of 17: documents of 48, 70 and 33 tokens hold 2, 4 and 1, that of 16 none.
    corpus = numbered_corpus(*DOCUMENTS)
    options = {"length": LENGTH, "batch_size": 7, "seed": 0, "tokenizer": ByteTokenizer()}
    for batch in take(causal_lm_batches(corpus, **options), 5):
        documents = np.searchsorted(np.cumsum(DOCUMENTS), batch["tokens"][:, 0], side="right")
        assert np.bincount(documents, minlength=7).tolist() == [0, 2, 4, 0, 1, 0, 0]


def test_a_causal_crop_takes_one_token_more_than_its_length(numbered_corpus):
    options = {"batch_size": 1, "seed": 0, "tokenizer": ByteTokenizer()}
    next(iter(causal_lm_batches(numbered_corpus(LENGTH + 1), length=LENGTH, **options)))
    with pytest.raises(UserError) as error:
        causal_lm_batches(numbered_corpus(LENGTH), length=LENGTH, **options)
    assert str(error.value) == (
        "training length 16: no document in split 'train' of numbers is that long with 1 more to "
        "predict; the longest, document00, has 16 tokens; packing would use documents of fewer "
        "tokens"
    )


def test_a_bad_rate_is_found_before_the_first_batch(batches):
    with pytest.raises(UserError, match="masking rate"):
        batches(rate=0.0)


def test_shard_outside_the_count(stream):
    with pytest.raises(ValueError, match="shard 2 of 2"):
        stream(shard_index=2, shard_count=2)


class TestPose:
    @pytest.fixture(params=[masked_lm_batches, causal_lm_batches])
    def make(self, numbered_corpus, request):
        corpus = numbered_corpus(*DOCUMENTS)
        defaults = {"length": LENGTH, "batch_size": 4, "seed": 0, "tokenizer": ByteTokenizer()}
        return lambda **options: request.param(corpus, **(defaults | options))

    def test_adds_positions_and_changes_nothing_else(self, make):
        plain, skipping = (take(make(law=law), 12) for law in (None, Pose(1000)))
        for batch in skipping:
            positions = batch.pop("token_positions")
            assert (positions.shape, positions.dtype) == ((4, LENGTH), np.int32)
            assert np.all(positions[:, 0] == 0)
            assert np.all(positions < 1000)
            # Two chunks: one step that is not of 1, or none where u_1 is 0.
            assert np.all(np.sum(np.diff(positions) != 1, axis=1) <= 1)
        assert_same(skipping, plain)

    def test_draws_anew_for_each_sequence_of_each_epoch(self, make):
        rows = np.concatenate([b["token_positions"] for b in take(make(law=Pose(10**6)), 10)])
        # Of 40 draws from 15 · 999 985 positions, hardly two are alike.
        assert len(np.unique(rows, axis=0)) == 40

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"law": Pose(16)}, "target length 16: should be above 16, the length, and below"),
            ({"law": Pose(2**31)}, "target length 2147483648: should be above 16, the length"),
            ({"law": Pose(99, chunks=1)}, "1 chunks: should be from 2 to 16, the length"),
            ({"law": Pose(99, chunks=17)}, "17 chunks: should be from 2 to 16, the length"),
            ({"law": Pose(99), "packing": True}, "law: should be None with packing"),
        ],
    )
    def test_mistakes_are_found_before_the_first_batch(self, make, options, message):
        with pytest.raises(ValueError, match=message):
            make(**options)


FRAMED = dataclasses.replace(ByteTokenizer(), frame=Frame((256, 257)))
PLAIN = ByteTokenizer()


@pytest.mark.parametrize("task", ["", "passkey"])
def test_rows_start_as_their_frame_does(stdlib, task):
    """Their first tokens make room for it; what is to be predicted is text alone."""
    options = {"length": 64, "batch_size": 3, "seed": 1, "task": task}
    ours, plain = (
        next(iter(causal_lm_batches(stdlib["validation"], tokenizer=tokenizer, **options)))
        for tokenizer in (FRAMED, PLAIN)
    )
    np.testing.assert_array_equal(ours["tokens"][:, :2], [[256, 257]] * 3)
    np.testing.assert_array_equal(ours["targets"][:, 1:-1], ours["tokens"][:, 2:])
    if not task:
        np.testing.assert_array_equal(ours["tokens"][:, 2:], plain["tokens"][:, 2:])
        np.testing.assert_array_equal(ours["targets"][:, 1:], plain["targets"][:, 1:])
        np.testing.assert_array_equal(ours["weights"], [[0.0] + [1.0] * 63] * 3)
    else:
        np.testing.assert_array_equal(ours["weights"], plain["weights"])


def test_a_start_is_never_masked(stdlib):
    options = {"length": 8, "batch_size": 64, "seed": 1, "tokenizer": FRAMED, "rate": 1.0}
    batch = next(iter(masked_lm_batches(stdlib["validation"], **options)))
    np.testing.assert_array_equal(batch["tokens"][:, :2], [[256, 257]] * 64)
    assert set(batch["predicted"][batch["weights"] > 0]) == set(range(2, 8))
    assert np.all(np.sum(batch["weights"], axis=1) == 6)


def test_a_row_that_is_all_start(stdlib):
    with pytest.raises(UserError, match=r"rows of 2 tokens: should be longer than what they start"):
        FRAMED.frame.started(np.zeros((1, 2), np.int32))
