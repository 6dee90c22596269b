"""Metrics over documents, by hand."""

import math

import numpy as np
import pytest

from lenext.evaluation.figures import Figures, HeadFigures
from lenext.evaluation.metrics import buckets, by_head, metrics_of


@pytest.fixture
def figures():
    """Three sequences of two predictions, of which one does not count."""
    rows = {
        "loss": [[1, 2], [4, 100], [3, 5]],
        "correct": [[1, 0], [1, 1], [0, 0]],
        "weights": [[1, 1], [1, 0], [1, 1]],
    }
    # One layer of two heads.
    heads = {
        "entropy": [[[0, 2]], [[2, 4]], [[5, 5]]],
        "dilution": [[[0, 0]], [[1, 1]], [[0, 0]]],
        "gap": [[[0.25, 0.25]], [[0.5, 1.5]], [[0.5, 0]]],
        "max_logit": [[[1, 2]], [[8, 3]], [[4, 5]]],
        "sink_weight": [[[0, 1]], [[0, 0]], [[1, 1]]],
    }

    def arrays(rows):
        return {name: np.array(row, np.float32) for name, row in rows.items()}

    return Figures(**arrays(rows), heads=HeadFigures(**arrays(heads)))


DOCUMENT = np.array([7, 3, 7])


def sums(metrics):
    return {m.name: (m.numerator.tolist(), m.denominator.tolist()) for m in metrics}


def test_sequences_of_a_document_are_added_up(figures):
    metrics = metrics_of(figures, DOCUMENT, causal=False, by_position=False, byte_level=True)
    assert sums(metrics) == {
        "accuracy": ([1, 1], [1, 4]),
        "loss": ([4, 11], [1, 4]),
        "entropy": ([3, 6], [1, 2]),
        "dilution": ([1, 0], [1, 2]),
        "gap_scale": ([1, 2], [1, 0.5]),
        "max_logit": ([8, 7], [1, 2]),
        "sink_weight": ([0, 1.5], [1, 2]),
    }


def test_each_head_by_itself(figures):
    assert by_head(figures.heads) == [
        {
            "layer": 0, "head": 0,
            "entropy": pytest.approx(7 / 3), "dilution": pytest.approx(1 / 3),
            "max_logit": 8.0, "sink_weight": pytest.approx(1 / 3), "gap_scale": pytest.approx(2.4),
        },
        {
            "layer": 0, "head": 1,
            "entropy": pytest.approx(11 / 3), "dilution": pytest.approx(1 / 3),
            "max_logit": 5.0, "sink_weight": pytest.approx(2 / 3),
            "gap_scale": pytest.approx(12 / 7),
        },
    ]  # fmt: skip


def test_without_probed_rows_nothing_is_said_of_heads(figures):
    figures = figures._replace(heads=None)
    metrics = metrics_of(figures, DOCUMENT, causal=False, by_position=False, byte_level=True)
    assert [*sums(metrics)] == ["accuracy", "loss"]


def ratio(metric):
    return metric.numerator.sum() / metric.denominator.sum()


def test_perplexity_and_bits_per_byte_are_of_the_mean_loss(figures):
    metrics = metrics_of(figures, DOCUMENT, causal=True, by_position=False, byte_level=True)
    found = {m.name: m for m in metrics}
    assert [*found][:4] == ["loss", "perplexity", "accuracy", "bits_per_byte"]
    assert ratio(found["gap_scale"]) == 2.0
    assert ratio(found["loss"]) == 3.0
    # What the exponential is made of, see `lenext.reporting.records.TRANSFORMS`.
    assert sums(metrics)["perplexity"] == sums(metrics)["loss"]
    assert ratio(found["bits_per_byte"]) == pytest.approx(3 / math.log(2))
    names = [m.name for m in metrics_of(
        figures, DOCUMENT, causal=True, by_position=False, byte_level=False
    )]  # fmt: skip
    assert "bits_per_byte" not in names


def test_loss_by_position():
    """20 positions, the loss of each its index: means over [0, 16) and [16, 20)."""
    loss = np.tile(np.arange(20, dtype=np.float32), (2, 1))
    ones = np.ones_like(loss)
    figures = Figures(loss=loss, correct=ones, weights=ones)
    metrics = metrics_of(figures, np.array([0, 1]), causal=True, by_position=True, byte_level=True)
    found = {m.positions: m for m in metrics if m.name == "loss_by_position"}
    assert [*found] == [(0, 16), (16, 20)]
    assert ratio(found[0, 16]) == 7.5
    assert ratio(found[16, 20]) == 17.5
    assert found[16, 20].denominator.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (5, [(0, 5)]),
        (16, [(0, 16)]),
        (17, [(0, 16), (16, 17)]),
        (128, [(0, 16), (16, 32), (32, 64), (64, 128)]),
        (100, [(0, 16), (16, 32), (32, 64), (64, 100)]),
    ],
)
def test_buckets_double(length, expected):
    assert buckets(length) == expected
