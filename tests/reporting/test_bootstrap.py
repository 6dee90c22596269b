import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lenext.reporting.bootstrap import interval, ratios, resample

documents = st.integers(1, 12)


def counts(size):
    return hnp.arrays(np.float64, size, elements=st.integers(1, 50).map(float))


def test_interval_of_evenly_spaced_samples():
    samples = np.random.default_rng(0).permutation(np.linspace(0.0, 1.0, 1001))
    assert interval(samples) == pytest.approx((0.025, 0.975), abs=1e-12)
    assert interval(samples, level=0.5) == pytest.approx((0.25, 0.75), abs=1e-12)


def test_interval_of_one_value():
    assert interval(np.full(50, 0.3)) == (0.3, 0.3)


def test_interval_of_samples_that_are_infinite():
    assert interval(np.array([np.inf] * 5 + [1.0, 2.0, np.nan])) == (1.0, np.inf)
    assert interval(np.full(3, np.inf)) == (np.inf, np.inf)


@given(documents, st.integers(1, 40), st.integers(0, 2**32))
def test_resamples_are_documents_and_follow_from_the_seed(count, times, seed):
    draws = resample(count, times, seed)
    assert draws.shape == (times, count)
    assert draws.min() >= 0
    assert draws.max() < count
    np.testing.assert_array_equal(draws, resample(count, times, seed))


def test_another_seed_draws_otherwise():
    assert not np.array_equal(resample(10, 20, 0), resample(10, 20, 1))


def test_documents_are_drawn_with_replacement_and_evenly():
    draws = resample(10, 5000, 0)
    distinct = np.array([len(set(row)) for row in draws.tolist()])
    assert distinct.mean() == pytest.approx(10 * (1 - 0.9**10), abs=0.05)
    np.testing.assert_allclose(np.bincount(draws.ravel()) / draws.size, 0.1, atol=0.005)


@given(st.data())
def test_ratios_are_of_the_sums(data):
    count = data.draw(documents)
    numerator, denominator = data.draw(counts(count)), data.draw(counts(count))
    draws = resample(count, 7, 0)
    expected = [
        sum(numerator[i] for i in row) / sum(denominator[i] for i in row) for row in draws.tolist()
    ]
    np.testing.assert_allclose(ratios(numerator, denominator, draws), expected, rtol=1e-12)


def test_a_long_document_weighs_more():
    draws = np.array([[0, 1]])
    assert ratios(np.array([1.0, 0.0]), np.array([1.0, 3.0]), draws).tolist() == [0.25]


@given(st.data())
def test_the_interval_lies_within_the_documents(data):
    count = data.draw(documents)
    denominator = data.draw(counts(count))
    share = data.draw(hnp.arrays(np.float64, count, elements=st.floats(0, 1)))
    low, high = interval(ratios(share * denominator, denominator, resample(count, 50, 0)))
    assert share.min() - 1e-9 <= low <= high <= share.max() + 1e-9


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(ratios(values, np.ones(400), resample(400, 4000, 0)))
    error = values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_95_in_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        values = rng.normal(loc=0.5, size=60)
        low, high = interval(ratios(values, np.ones(60), resample(60, 300, 0)))
        held.append(low < 0.5 < high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
