import dataclasses

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
        "predicted": ((k,), np.int32),
        "targets": ((k,), np.int32),
        "weights": ((k,), np.float32),
    }
    positions = out["predicted"]
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
    now = out["tokens"][out["predicted"]]
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
    chosen = [mask_tokens(tokens, rng, ByteTokenizer(), 0.15)["predicted"] for _ in range(draws)]
    for count in np.bincount(np.concatenate(chosen), minlength=n):
        assert_binomial(count, draws, 3 / n)


def test_the_rng_decides():
    tokens = np.arange(200)
    first, again, other = (masked(tokens, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    assert not np.array_equal(first["predicted"], other["predicted"])


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(UserError, match=r"^masking rate must be above 0 and at most 1, not "):
        masked(np.zeros(8, np.uint16), rate=rate)


@given(st.integers(2, 200), st.floats(0.001, 1), st.data())
def test_padding_is_neither_masked_nor_predicted(n, rate, data):
    real = data.draw(st.integers(1, n))
    tokens = np.concatenate([np.full(real, 7), np.full(n - real, 257)])
    rng = np.random.default_rng(0)
    out = mask_tokens(tokens, rng, ByteTokenizer(), rate, real=real)
    k, chosen = max(1, round(rate * n)), max(1, round(rate * real))
    assert out["weights"].tolist() == [1] * chosen + [0] * (k - chosen)
    assert len(set(out["predicted"][:chosen])) == chosen
    assert out["predicted"][:chosen].max() < real
    assert set(out["targets"][:chosen]) == {7}
    assert set(out["predicted"][chosen:]) <= {n - 1}
    assert np.all(out["tokens"][real:] == 257)


def test_masks_of_bytes_are_what_they_always_were():
    # As computed before vocabularies had anything but bytes: training runs are to be repeatable.
    tokens = np.arange(40).astype(np.uint16)
    out = mask_tokens(tokens, np.random.default_rng(5), ByteTokenizer(), 0.3)
    assert out["predicted"].tolist() == [0, 2, 10, 15, 17, 19, 22, 24, 25, 36, 38, 39]
    assert out["tokens"][out["predicted"]].tolist() == [
        256,
        256,
        256,
        15,
        256,
        256,
        256,
        24,
        92,
        225,
        256,
        256,
    ]


def test_a_tokenizer_without_a_mask():
    @dataclasses.dataclass(frozen=True)
    class NoMask(ByteTokenizer):
        mask_id: int | None = None

    with pytest.raises(UserError, match=r"^masked language modelling needs a mask token, and"):
        masked(np.zeros(8, np.uint16), tokenizer=NoMask())
