"""Statistics of rows against their definitions, computed from the reference's float64 rows."""

import numpy as np
import pytest

from lenext.attention import make_method, row_statistics
from tests.attention.common import TRAIN_LENGTH, inputs, quick_statistics
from tests.attention.reference import reference_rows

METHODS = ["softmax", "rerope+infoscale", "lssar", "relu", "lm_infinite+log_length", "alibi"]
LENGTH = 111
places = {
    "kv_mask": np.arange(LENGTH) < np.array([[LENGTH], [95]]),
    "q_segment_ids": (np.arange(LENGTH) < np.array([[0], [30]])).astype(np.int32),
    "kv_segment_ids": (np.arange(LENGTH) < np.array([[0], [30]])).astype(np.int32),
}


def expected_statistics(q, k, method, *, causal):
    """Each figure [B, N, T] by its plain definition, row by row."""
    logits, weights, seen, _ = reference_rows(q, k, method, TRAIN_LENGTH, causal=causal, **places)
    batch, heads, length, _ = logits.shape
    names = ("entropy", "dilution", "gap_scale", "max_logit", "sink_weight")
    out = {name: np.zeros((batch, heads, length)) for name in names}
    for b, h, i in np.ndindex(batch, heads, length):
        keys = np.flatnonzero(seen[b, i])
        if not len(keys):
            continue
        row = logits[b, h, i, keys]
        out["max_logit"][b, h, i] = row.max()
        out["gap_scale"][b, h, i] = gap_scale(row)
        if not weights[b, h, i].any():
            continue
        w = weights[b, h, i, keys] / weights[b, h, i, keys].sum()
        out["entropy"][b, h, i] = -np.sum(w[w > 0] * np.log(w[w > 0]))
        out["dilution"][b, h, i] = np.sum(w[np.abs(i - keys) >= TRAIN_LENGTH])
        segments = places["kv_segment_ids"][b]
        document = (segments == segments[i]) & places["kv_mask"][b]
        out["sink_weight"][b, h, i] = np.sum(w[keys < np.flatnonzero(document)[0] + 4])
    return out


def gap_scale(row: np.ndarray) -> float:
    """sup over t > 0 of ln N(t) / t, N(t) the keys within t of the top: tried at every gap."""
    gaps = row.max() - row
    if np.sum(gaps == 0) > 1:
        return np.inf
    return max([np.log(np.sum(gaps <= t)) / t for t in gaps if t > 0], default=0.0)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("method", METHODS)
def test_statistics(method, causal):
    q, k, _ = inputs(seed=31, batch=2, queries=LENGTH, keys=LENGTH)
    made = make_method(method, train_length=TRAIN_LENGTH)
    ours = quick_statistics(q, k, made, causal=causal, block_size=40, **places)._asdict()
    expected = expected_statistics(q, k, method, causal=causal)
    for name in ("entropy", "dilution", "max_logit", "sink_weight"):
        np.testing.assert_allclose(ours[name], expected[name], atol=3e-4, err_msg=name)
    # A gap is a difference of logits, so it is the scale's inverse that has an absolute error.
    scales = np.asarray(ours["gap_scale"]), expected["gap_scale"]
    np.testing.assert_array_equal(scales[0] == 0, scales[1] == 0)
    inverse = [1 / np.where(scale > 0, scale, 1) for scale in scales]
    np.testing.assert_allclose(*inverse, atol=1e-5, err_msg="gap_scale")
    assert np.max(expected["dilution"]) > 0.2 or method in ("alibi", "lm_infinite+log_length")


@pytest.mark.parametrize("block_size", [None, 7, 33, 200])
def test_uniform_rows(block_size):
    """q = 0: entropy ln n, sinks 4/n, all but L of n keys diluted, and no gap at the top."""
    q, k, _ = inputs(seed=32, batch=1, queries=50, keys=50)
    made = make_method("softmax", train_length=10)
    ours = quick_statistics(0 * q, k, made, causal=True, block_size=block_size)
    n = np.arange(1.0, 51)
    np.testing.assert_allclose(ours.entropy[0, 0], np.log(n), atol=1e-5)
    np.testing.assert_allclose(ours.dilution[0, 0], np.maximum(0, 1 - 10 / n), atol=1e-6)
    np.testing.assert_allclose(ours.sink_weight[0, 0], np.minimum(1, 4 / n), atol=1e-6)
    np.testing.assert_array_equal(ours.keys[0, 0], n)
    np.testing.assert_array_equal(ours.max_logit, 0)
    np.testing.assert_array_equal(ours.gap_scale[0, 0], [0] + [np.inf] * 49)


def test_a_sharp_row():
    """One key 30 above 99 equal ones: no entropy, and ln 100 / 30 for the scale."""
    q = np.zeros((1, 1, 1, 4), np.float32)
    k = np.zeros((1, 100, 1, 4), np.float32)
    q[..., 0], k[0, 7, 0, 0] = 2, 30
    made = make_method("nope", train_length=10)
    ours = row_statistics(q, k, made)
    np.testing.assert_allclose(np.ravel(ours.entropy), 0, atol=1e-6)
    np.testing.assert_allclose(np.ravel(ours.gap_scale), np.log(100) / 30, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(ours.max_logit), 30, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(ours.dilution), 1, atol=1e-6)  # the query is at 99
    np.testing.assert_allclose(np.ravel(ours.sink_weight), 0, atol=1e-6)


def test_empty_rows_have_finite_statistics():
    q, k, _ = inputs(seed=33, batch=2, queries=9, keys=9)
    mask = np.array([[False], [True]]) & np.ones((1, 9), bool)
    for method in ("softmax", "relu"):
        made = make_method(method, train_length=10)
        for name, figure in quick_statistics(q, k, made, kv_mask=mask)._asdict().items():
            np.testing.assert_array_equal(np.asarray(figure)[0], 0, err_msg=name)
            assert np.all(np.isfinite(figure)), name


def test_shapes_and_types():
    """[B, N, T] in float32, from bfloat16 too, and with fewer queries than keys."""
    q, k, _ = inputs(seed=34, batch=2, queries=9, keys=20)
    made = make_method("infoscale", train_length=10)
    for figure in row_statistics(q.astype("bfloat16"), k.astype("bfloat16"), made):
        assert figure.shape == (2, 4, 9)
        assert figure.dtype == np.float32
