"""Retrieval protocols: what is asked, and how answers are counted."""

import numpy as np
import pytest

from lenext.data import ByteTokenizer, Corpus
from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.evaluation.figures import Figures
from lenext.evaluation.metrics import depths, metrics_of
from lenext.evaluation.protocols import PROTOCOLS, Answers, CropSettings
from lenext.reporting.bootstrap import interval, ratios
from lenext.training import train
from tests.training.common import tiny_decoder_config

BYTES = ByteTokenizer()


def corpus():
    return Corpus(
        tokens=np.frombuffer(b"abcdefgh\n" * 500, np.uint8),
        offsets=np.arange(0, 4501, 900),
        names=[str(i) for i in range(5)],
        fingerprint="0" * 12,
        name="letters",
        split="validation",
    )


def prepare(name, length, **changes):
    settings = {"documents": 5, "tokens": 2000, "seed": 0, "needles": 2} | changes
    return PROTOCOLS[name].prepare(corpus(), BYTES, length, length, CropSettings(**settings))


@pytest.mark.parametrize("name", ["passkey", "associative_recall"])
def test_needles_are_spread_over_all_depths(name):
    found = prepare(name, 150)
    batch, answers = found.batch, found.answers
    count = len(found.document)
    assert count == 15
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    np.testing.assert_array_equal(batch["weights"], answers.number >= 0)
    assert batch["weights"].sum(axis=1).tolist() == [5 if name == "passkey" else 2] * count
    first = np.sort(answers.place[:, 0])
    # The first of them at the beginning, or after the other needle that is there too.
    assert first[0] in (0, 19 if name == "passkey" else 2)
    assert np.all(np.diff(first) >= 0)
    # The last of them stands where the filler ends.
    assert first[-1] == (151 - 18 - 19 if name == "passkey" else 151 - 4 - 2)
    again = prepare(name, 150)
    np.testing.assert_array_equal(again.batch["tokens"], batch["tokens"])
    other = prepare(name, 150, seed=1)
    assert np.any(other.batch["tokens"] != batch["tokens"])


def test_a_length_that_holds_no_needles():
    with pytest.raises(UserError, match="length 40: should be at least 55 for the task's needles"):
        prepare("passkey", 40)


def test_an_answer_is_right_if_all_of_it_is():
    correct = np.array([[0, 1, 1, 1, 0, 1.0], [1, 0, 1, 0, 1, 1.0]])
    number = np.array([[-1, 0, 0, 1, 1, -1], [-1, 0, 0, 1, -1, 1]])
    answers = Answers(number, place=np.array([[0, 3], [5, 0]]))
    weights = (number >= 0).astype(float)
    figures = Figures(loss=np.zeros((2, 6)), correct=correct, weights=weights)
    found = {
        (m.name, m.positions): (m.numerator.tolist(), m.denominator.tolist())
        for m in metrics_of(
            figures, np.array([7, 9]), causal=True, by_position=False, byte_level=False,
            answers=answers,
        )
    }  # fmt: skip
    # Row 1: answer 0 right, answer 1 half wrong. Row 2: the first of answer 0 wrong, answer 1 too.
    assert found["retrieved", None] == ([1.0, 0.0], [2.0, 2.0])
    assert found["accuracy", None] == ([3.0, 2.0], [4.0, 4.0])
    by_place = {where: sums for (name, where), sums in found.items() if name.endswith("place")}
    assert by_place == {
        (0, 1): ([1.0, 0.0], [1.0, 1.0]),
        (3, 4): ([0.0, 0.0], [1.0, 0.0]),
        (5, 6): ([0.0, 0.0], [0.0, 1.0]),
    }


@pytest.mark.parametrize("length", [3, 8, 63, 4096])
def test_depths_are_eighths_that_leave_no_place_out(length):
    parts = depths(length)
    assert len(parts) == min(length, 8)
    assert [p for low, high in parts for p in range(low, high)] == list(range(length))


def test_resamples_that_have_nothing_to_count_are_left_out():
    draws = np.array([[0, 0], [0, 1], [1, 1]])
    found = ratios(np.array([0.0, 3.0]), np.array([0.0, 4.0]), draws)
    np.testing.assert_array_equal(found, [np.nan, 0.75, 0.75])
    assert interval(found) == (0.75, 0.75)


def test_a_model_trained_on_a_task_is_evaluated_by_it(tmp_path, tmp_path_factory):
    config = tiny_decoder_config(tmp_path_factory.getbasetemp() / "tfds")
    config.data.update(task="associative_recall", needles=2)
    config.evaluators.validation.type = "associative_recall"
    config.eval.update(protocol="associative_recall", needles=2, lengths="16,48")
    train(config, tmp_path)
    records = evaluate(config, tmp_path)
    found = {(r["metric"], r["length"]): r for r in records if not r["positions"]}
    assert {"retrieved", "accuracy", "loss"} <= {metric for metric, _ in found}
    # An answer is one token here, so both are the same.
    for length in (16, 48):
        assert found["retrieved", length]["value"] == found["accuracy", length]["value"]
    counted = sum(r["predictions"] for r in records
                  if r["metric"] == "retrieved_by_place" and r["length"] == 16
                  and r["method"] == "softmax")  # fmt: skip
    assert counted == found["retrieved", 16]["predictions"]
    files = {path.name for path in (tmp_path / "eval").iterdir()}
    assert {"results.png", "by_depth.png"} <= files
    assert "by_position.png" not in files
    assert "## retrieved" in (tmp_path / "eval" / "results.md").read_text()
    config.eval.protocol = "full_context"
    evaluate(config, tmp_path)
    files = {path.name for path in (tmp_path / "eval").iterdir()}
    assert "by_depth.png" not in files
    assert "by_position.png" in files
