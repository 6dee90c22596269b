"""Runs of several seeds taken together, by hand and by the laws of large numbers."""

import numpy as np
import pytest

from lenext.reporting.records import Row, pool


def record(numerator, denominator, metric="accuracy", length=64, positions=None, documents=None):
    return {
        "length": length, "metric": metric, "positions": positions, "protocol": "mlm15",
        "documents": len(numerator), "predictions": sum(denominator), "unsuited": [],
        "sums": {
            "documents": documents or list(range(len(numerator))),
            "numerator": numerator, "denominator": denominator,
        },
    }  # fmt: skip


def row(label, *by_seed, **changes):
    seeds = {seed: [record(*sums, **changes)] for seed, sums in enumerate(by_seed)}
    return Row(label, "softmax", label, seeds)


def test_figures_are_means_over_seeds_of_ratios_of_sums():
    rows = [
        row("softmax", ([1, 2], [4, 4]), ([3, 4], [4, 4])),  # 3/8 and 7/8
        row("rerope", ([2, 2], [2, 2]), ([1, 0], [1, 1])),  # 1 and 1/2
    ]
    first, second = pool(rows, "softmax", ["accuracy"])
    assert (first["value"], first["by_seed"]) == (5 / 8, [3 / 8, 7 / 8])
    assert (second["value"], second["by_seed"]) == (3 / 4, [1.0, 0.5])
    assert first["difference"] == 0.0
    assert first["difference_interval"] == [0.0, 0.0]
    assert second["difference"] == 1 / 8
    assert (second["method"], second["trained"], second["documents"]) == ("rerope", "softmax", 2)


def test_intervals_of_one_seed_are_those_of_means_of_documents():
    rng = np.random.default_rng(0)
    count = 4000
    base, shift = rng.normal(0.5, 0.2, count), rng.normal(0.01, 0.05, count)
    rows = [
        row("softmax", (base.tolist(), [1] * count)),
        row("rerope", ((base + shift).tolist(), [1] * count)),
    ]
    first, second = pool(rows, "softmax", ["accuracy"])
    low, high = first["interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / count**0.5, rel=0.1)
    # Paired: what both share cancels, and the interval is that of the shift alone.
    low, high = second["difference_interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.05 / count**0.5, rel=0.1)
    assert low < 0.01 < high


def test_intervals_of_equal_documents_are_those_of_seeds():
    # Three seeds that differ, in which all documents are alike: means of three draws of three.
    rows = [row("softmax", *(([x] * 5, [1] * 5) for x in (0.0, 0.3, 0.9)))]
    (found,) = pool(rows, "softmax", ["accuracy"])
    assert found["value"] == pytest.approx(0.4)
    # Each end is one of 27 draws, 3.7 %, more than what is cut off.
    np.testing.assert_allclose(found["interval"], [0.0, 0.9], atol=1e-12)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_best_and_worst_are_told_by_intervals(metric):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 100)
    # b cannot be told from c, and both can from a.
    values = {"a": 0.2 + noise, "b": 0.8 + noise, "c": 0.81 + rng.normal(0, 0.1, 100)}
    rows = [row(label, (x.tolist(), [1] * 100), metric=metric) for label, x in values.items()]
    found = {r["method"]: r for r in pool(rows, "a", [metric])}
    high, low = ("best", "worst") if metric == "accuracy" else ("worst", "best")
    assert {label for label, r in found.items() if r[high]} == {"b", "c"}
    assert {label for label, r in found.items() if r[low]} == {"a"}


def test_metrics_with_neither_good_nor_bad_have_no_marks():
    (found,) = pool([row("a", ([1], [2]), metric="entropy")], "a", ["entropy"])
    assert "best" not in found


def test_what_cannot_be_pooled():
    two, one = ([1, 2], [1, 1]), ([1], [1])
    with pytest.raises(ValueError, match="perplexity: cannot be pooled over seeds"):
        pool([row("a", two)], "a", ["perplexity"])
    with pytest.raises(ValueError, match=r"b: seeds \[0, 1\], others \[0\]"):
        pool([row("a", two), row("b", two, two)], "a", ["accuracy"])
    with pytest.raises(ValueError, match=r"a at .*: seeds were evaluated on other documents"):
        pool([row("a", two, one)], "a", ["accuracy"])
    with pytest.raises(ValueError, match="b: evaluated on other documents than a"):
        pool([row("a", two), row("b", two, documents=[0, 7])], "a", ["accuracy"])
