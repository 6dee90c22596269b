"""What each protocol asks, from a corpus whose token i is i."""

import dataclasses

import numpy as np
import pytest

from lenext.data import TASKS, ByteTokenizer, Corpus, Frame, evaluation_crops
from lenext.errors import UserError
from lenext.evaluation.protocols import GENERATING, PROTOCOLS, CropSettings, get_protocol

MASK = ByteTokenizer().mask_id
CAUSAL = ", ".join(["full_context", "sliding_window", *TASKS]) + " for a causal language model"


@pytest.fixture
def corpus():
    lengths = [100, 77, 60, 33]
    return Corpus(
        tokens=np.arange(sum(lengths), dtype=np.int32),
        offsets=np.cumsum([0, *lengths]),
        names=[f"document{i}" for i in range(len(lengths))],
        fingerprint="0" * 12,
        name="numbers",
        split="validation",
    )


def prepare(name, corpus, length, longest=None, tokenizer=None, **changes):
    settings = {"documents": 3, "tokens": 200, "seed": 0} | changes
    protocol = PROTOCOLS[name]
    return protocol.prepare(
        corpus, tokenizer or ByteTokenizer(), length, longest or length, CropSettings(**settings)
    )


def test_full_context_predicts_every_token_from_all_before(corpus):
    batch, document, ordered, *_ = prepare("full_context", corpus, 32)
    crops = evaluation_crops(corpus, length=32, documents=3, tokens=200, lookahead=1)
    assert ordered
    np.testing.assert_array_equal(document, crops.document)
    np.testing.assert_array_equal(batch["tokens"], crops.tokens[:, :32])
    np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
    np.testing.assert_array_equal(batch["weights"], 1.0)


def test_sliding_window_predicts_the_same_tokens_at_every_length(corpus):
    sequences = {n: prepare("sliding_window", corpus, n, 59, stride=8) for n in (8, 21, 59)}
    for length, (batch, document, ordered, *_) in sequences.items():
        assert not ordered
        assert batch["tokens"].shape[1] == length
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        np.testing.assert_array_equal(batch["weights"][:, -8:], 1.0)
        np.testing.assert_array_equal(batch["weights"][:, :-8], 0.0)
        np.testing.assert_array_equal(
            batch["targets"][:, -8:], sequences[59].batch["targets"][:, -8:]
        )
        np.testing.assert_array_equal(document, sequences[59].document)


@pytest.mark.parametrize(
    "name", [n for n in PROTOCOLS if n not in ("associative_recall", *GENERATING)]
)
def test_rows_start_as_their_frame_does(corpus, name):
    """Each window too; the start takes the place of text, and is never asked for."""
    framed = dataclasses.replace(ByteTokenizer(), frame=Frame((900, 901)))
    options = {"needles": 1, "stride": 8, "masks": 60}
    if name in TASKS:
        corpus = dataclasses.replace(corpus, tokens=corpus.tokens % 250)
    ours = prepare(name, corpus, 58, 59, framed, **options)
    plain = prepare(name, corpus, 58, 59, **options)
    batch, same = ours.batch, plain.batch
    np.testing.assert_array_equal(batch["tokens"][:, :2] - [900, 901], 0)
    asked = batch["targets"][batch["weights"] > 0]
    assert not {900, 901} & set(asked.tolist())
    if name in ("full_context", "sliding_window"):
        np.testing.assert_array_equal(batch["tokens"][:, 2:], same["tokens"][:, 2:])
        np.testing.assert_array_equal(batch["targets"][:, 1:], same["targets"][:, 1:])
    if name == "full_context":
        np.testing.assert_array_equal(batch["weights"], [[0.0] + [1.0] * 57] * len(asked[::57]))
    if name == "single_mask":
        assert set(batch["predicted"].ravel()) == set(range(2, 58))


def test_a_stride_longer_than_a_window(corpus):
    with pytest.raises(UserError, match=r"config\.eval\.stride=9: should be at most each length"):
        prepare("sliding_window", corpus, 8, 59, stride=9)
    framed = dataclasses.replace(ByteTokenizer(), frame=Frame((900, 901)))
    with pytest.raises(UserError, match=r"stride=8: should be at most each length, here 7"):
        prepare("sliding_window", corpus, 8, 59, framed, stride=8)


def test_single_mask_masks_one_token_a_pass(corpus):
    batch, document, ordered, *_ = prepare("single_mask", corpus, 30, masks=5)
    crops = evaluation_crops(corpus, length=30, documents=3, tokens=200)
    assert not ordered
    np.testing.assert_array_equal(document, np.repeat(crops.document, 5))
    assert batch["predicted"].shape == (5 * len(crops.tokens), 1)
    np.testing.assert_array_equal((batch["tokens"] == MASK).sum(axis=1), 1)
    whole = batch["tokens"].copy()
    np.put_along_axis(whole, batch["predicted"], batch["targets"], axis=1)
    np.testing.assert_array_equal(whole, np.repeat(crops.tokens, 5, axis=0))
    places = batch["predicted"].reshape(-1, 5)
    assert all(len(set(row)) == 5 for row in places.tolist())
    assert len({tuple(row) for row in places.tolist()}) > 1


def test_single_masks_stay_where_they_are(corpus):
    """Whatever other documents there are; the seed moves them."""
    few = prepare("single_mask", corpus, 30, documents=1, tokens=90)
    again = prepare("single_mask", corpus, 30, documents=1, tokens=90)
    other = prepare("single_mask", corpus, 30, documents=1, tokens=90, seed=1)
    np.testing.assert_array_equal(few.batch["predicted"], again.batch["predicted"])
    assert (few.batch["predicted"] != other.batch["predicted"]).any()


def test_more_masks_than_tokens(corpus):
    batch = prepare("single_mask", corpus, 3, masks=8, tokens=9).batch
    np.testing.assert_array_equal(np.sort(batch["predicted"].reshape(-1, 3), axis=1)[0], [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "objective", "choices"),
    [
        ("full_context", "masked_lm", "mlm15, single_mask for a masked language model"),
        ("mlm15", "causal_lm", CAUSAL),
        ("perplexity", "causal_lm", CAUSAL),
    ],
)
def test_protocols_are_for_their_models(name, objective, choices):
    with pytest.raises(UserError) as error:
        get_protocol(name, objective, "config.eval.protocol")
    assert str(error.value) == f"config.eval.protocol={name!r}: should be one of {choices}"
