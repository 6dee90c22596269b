import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import ByteTokenizer, mask_tokens
from lenext.errors import UserError


def masked(tokens, seed=0, rate=0.15, tokenizer=None):
    return mask_tokens(tokens, np.random.default_rng(seed), tokenizer or ByteTokenizer(), rate)


@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 2**32))
def test_count_and_contents(n, rate, seed):
    tokens = np.random.default_rng(1).integers(256, size=n).astype(np.uint16)
    before = tokens.copy()
    out = masked(tokens, seed, rate)
    k = max(1, round(rate * n))
    assert {name: (a.shape, a.dtype) for name, a in out.items()} == {
        "tokens": ((n,), np.int32),
        "positions": ((k,), np.int32),
        "targets": ((k,), np.int32),
        "weights": ((k,), np.float32),
    }
    positions = out["positions"]
    assert np.all(np.diff(positions) > 0)
    assert positions[0] >= 0
    assert positions[-1] < n
    np.testing.assert_array_equal(out["targets"], before[positions])
    np.testing.assert_array_equal(np.delete(out["tokens"], positions), np.delete(before, positions))
    np.testing.assert_array_equal(out["weights"], 1)
    np.testing.assert_array_equal(tokens, before)


def assert_binomial(count, n, p):
    sigma = np.sqrt(n * p * (1 - p))
    assert abs(count - n * p) < 5 * sigma, (count, n * p, sigma)


def test_eighty_ten_ten():
    # All originals are 300, no regular id, so each of the three fates shows.
    k = 20_000
    out = masked(np.full(2 * k, 300), rate=0.5)
    now = out["tokens"][out["positions"]]
    assert_binomial(np.sum(now == 256), k, 0.8)
    assert_binomial(np.sum(now < 256), k, 0.1)
    assert_binomial(np.sum(now == 300), k, 0.1)
    assert np.sum((now <= 256) | (now == 300)) == k


class FourLetters(ByteTokenizer):
    regular_ids = np.array([3, 97, 98, 200])


def test_random_ids_are_uniform_over_the_regular_ones():
    out = masked(np.full(80_000, 300), rate=1.0, tokenizer=FourLetters())
    random_ids = out["tokens"][out["tokens"] < 256]
    counts = np.bincount(random_ids, minlength=256)
    assert np.flatnonzero(counts).tolist() == [3, 97, 98, 200]
    for count in counts[counts > 0]:
        assert_binomial(count, len(random_ids), 1 / 4)


def test_positions_are_uniform():
    rng, draws, n = np.random.default_rng(0), 3000, 20
    tokens = np.zeros(n, np.uint16)
    chosen = [mask_tokens(tokens, rng, ByteTokenizer(), 0.15)["positions"] for _ in range(draws)]
    for count in np.bincount(np.concatenate(chosen), minlength=n):
        assert_binomial(count, draws, 3 / n)


def test_the_rng_decides():
    tokens = np.arange(200)
    first, again, other = (masked(tokens, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    assert not np.array_equal(first["positions"], other["positions"])


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(UserError, match=r"^masking rate must be above 0 and at most 1, not "):
        masked(np.zeros(8, np.uint16), rate=rate)
