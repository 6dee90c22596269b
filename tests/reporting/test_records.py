"""Runs of several seeds taken together, by hand and by the laws of large numbers."""

import dataclasses

import numpy as np
import pytest

from lenext.reporting.records import Cell, Row, effective_lengths, make_records


def cell(numerator, denominator, metric="accuracy", length=64, positions=None, documents=None):
    sums = {
        "metric": metric, "positions": positions, "predictions": int(sum(denominator)),
        "numerator": numerator, "denominator": denominator,
    }  # fmt: skip
    return Cell(
        length=length, protocol="mlm15", documents=documents or list(range(len(numerator))),
        sequences=8, tokens=8 * length, seconds=1.0, compile_seconds=1.0, peak_bytes=1, flops=1.0,
        cache_bytes=None, unsuited=[], sums=[sums],
    )  # fmt: skip


def row(label, *by_seed, **changes):
    return Row(
        label, "softmax", label,
        {seed: [cell(*sums, **changes)] for seed, sums in enumerate(by_seed)},
    )  # fmt: skip


def test_figures_are_means_over_seeds_of_ratios_of_sums():
    rows = [
        row("softmax", ([1, 2], [4, 4]), ([3, 4], [4, 4])),  # 3/8 and 7/8
        row("rerope", ([2, 2], [2, 2]), ([1, 0], [1, 1])),  # 1 and 1/2
    ]
    first, second = make_records(rows, "softmax", ["accuracy"])
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
    first, second = make_records(rows, "softmax", ["accuracy"])
    low, high = first["interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / count**0.5, rel=0.1)
    # Paired: what both share cancels, and the interval is that of the shift alone.
    low, high = second["difference_interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.05 / count**0.5, rel=0.1)
    assert low < 0.01 < high


def test_intervals_of_equal_documents_are_those_of_seeds():
    # Three seeds that differ, in which all documents are alike: means of three draws of three.
    rows = [row("softmax", *(([x] * 5, [1] * 5) for x in (0.0, 0.3, 0.9)))]
    (found,) = make_records(rows, "softmax", ["accuracy"])
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
    found = {r["method"]: r for r in make_records(rows, "a", [metric])}
    high, low = ("best", "worst") if metric == "accuracy" else ("worst", "best")
    assert {label for label, r in found.items() if r[high]} == {"b", "c"}
    assert {label for label, r in found.items() if r[low]} == {"a"}


def test_metrics_with_neither_good_nor_bad_have_no_marks():
    (found,) = make_records([row("a", ([1], [2]), metric="entropy")], "a", ["entropy"])
    assert "best" not in found


def test_what_cannot_be_pooled():
    two, one = ([1, 2], [1, 1]), ([1], [1])
    with pytest.raises(ValueError, match="perplexity: cannot be pooled over seeds"):
        make_records([row("a", two, two)], "a", ["perplexity"])
    with pytest.raises(ValueError, match=r"b: seeds \[0, 1\], others \[0\]"):
        make_records([row("a", two), row("b", two, two)], "a", ["accuracy"])
    with pytest.raises(ValueError, match=r"a at .*: seeds were evaluated on other documents"):
        make_records([row("a", two, one)], "a", ["accuracy"])
    with pytest.raises(ValueError, match="b: evaluated on other documents than a"):
        make_records([row("a", two), row("b", two, documents=[0, 7])], "a", ["accuracy"])


def test_a_perplexity_is_of_the_loss_of_one_seed():
    one = row("a", ([2.0, 4.0, 3.0], [2, 2, 2]), metric="perplexity")
    (found,) = make_records([one], "a")
    assert found["value"] == pytest.approx(np.exp(1.5))
    low, high = found["interval"]
    # The lowest mean of three documents is 1, the highest 2; each end is one draw of 27.
    assert (low, high) == pytest.approx((np.exp(1.0), np.exp(2.0)))


def test_of_one_document_there_is_no_interval():
    rows = [row("a", ([2, 0], [4, 0])), row("b", ([3, 0], [4, 0]))]
    first, second = make_records(rows, "a")
    assert first["interval"] is second["interval"] is second["difference_interval"] is None
    assert second["difference"] == 0.25
    assert (first["best"], first["worst"]) == (False, True)
    assert (second["best"], second["worst"]) == (True, False)
    assert make_records([row("a", ([1], [4]), ([2], [4]))], "a")[0]["interval"] is None


def test_rows_may_lack_lengths_that_the_baseline_has():
    two = row("a", ([1, 2], [4, 4]))
    longer = Row("a", "softmax", "a", {0: [*two.by_seed[0], cell([1, 1], [4, 4], length=128)]})
    found = make_records([longer, row("b", ([2, 2], [4, 4]))], "a")
    assert [(r["method"], r["length"]) for r in found] == [("a", 64), ("a", 128), ("b", 64)]


def losses(label, by_length, spread=0.0, documents=50):
    """A row of losses by length, documents apart by `spread`."""
    noise = np.random.default_rng(0).normal(0, spread, documents)
    cells = [
        cell((loss + noise).tolist(), [1] * documents, "loss", length)
        for length, loss in by_length.items()
    ]
    return Row(label, "softmax", label, {0: cells})


def test_effective_lengths_by_hand():
    rows = [
        losses("holds", {32: 9.0, 64: 1.0, 128: 1.04, 256: 1.05}),
        losses("fails", {32: 0.9, 64: 1.0, 128: 1.06, 256: 0.9}),  # what comes later does not count
        losses("at once", {64: 1.0, 128: 2.0, 256: 2.0}),
        losses("no L", {80: 1.0, 160: 1.01, 320: 3.0}),
        losses("only shorter", {16: 1.0, 32: 1.0}),
    ]
    found = [effective_lengths([one], 64, 0.05)[0] for one in rows]
    assert [(r["from"], r["effective_length"], r["longest"]) for r in found] == [
        (64, 256, 256), (64, 64, 256), (64, 64, 256), (80, 160, 320), (16, 32, 32),
    ]  # fmt: skip
    assert [r["interval"] for r in found] == [
        [n, n] for n in (256, 64, 64, 160, 32)
    ]  # documents are alike


def test_what_is_no_number_reaches_no_length_and_is_not_the_best():
    nan = float("nan")
    rows = [losses("a", {64: 1.05}), losses("b", {64: nan}), losses("c", {64: 0.5})]
    found = {r["method"]: r for r in make_records(rows, "a")}
    assert [(found[x]["best"], found[x]["worst"]) for x in "abc"] == [
        (False, True), (False, False), (True, False)
    ]  # fmt: skip
    (lost,) = effective_lengths([losses("b", {64: nan, 128: nan})], 64, 0.05)
    assert (lost["effective_length"], lost["interval"]) == (None, None)
    (later,) = effective_lengths([losses("b", {64: 1.0, 128: nan, 256: 1.0})], 64, 0.05)
    assert (later["effective_length"], later["interval"]) == (64, [64, 64])


def test_of_several_seeds_no_perplexity_is_pooled_unasked():
    of_all = [
        {"metric": m, "positions": None, "predictions": 2, "numerator": [1.0, 2.0],
         "denominator": [1, 1]} for m in ("loss", "perplexity")
    ]  # fmt: skip
    both = dataclasses.replace(cell([1], [1]), documents=[0, 1], sums=of_all)
    one, two = (Row("a", "softmax", "a", {seed: [both] for seed in range(n)}) for n in (1, 2))
    assert [r["metric"] for r in make_records([one], "a")] == ["loss", "perplexity"]
    assert [r["metric"] for r in make_records([two], "a")] == ["loss"]


def test_effective_lengths_are_as_sure_as_their_documents():
    # 2 % below the margin, with documents 20 % apart at 128 alone: the mean of 50 is off by 3 %.
    rng = np.random.default_rng(1)
    cells = [
        cell([1.0] * 50, [1] * 50, "loss", 64),
        cell((1.03 + rng.normal(0, 0.2, 50)).tolist(), [1] * 50, "loss", 128),
    ]
    (found,) = effective_lengths([Row("a", "softmax", "a", {0: cells})], 64, 0.05)
    assert found["interval"] == [64, 128]
    (one,) = effective_lengths([losses("a", {64: 1.0, 128: 1.0}, documents=1)], 64, 0.05)
    assert one["interval"] is None
