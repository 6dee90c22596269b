"""Rows that one can work out on paper, one for each similarity, temperature, weighting and mask.

The tests of a whole row use `position="none"` and keys of one, zero or minus one along the first
dimension, so that the logits are small whole numbers.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attention_weights, make_method
from tests.attention.common import quick_statistics, quick_weights
from tests.attention.reference import spec
from tests.attention.reference_weighting import NORMALISED

E = math.e


def row(
    method: str,
    cosines,
    *,
    dim: int = 4,
    train_length: int = 4,
    scaled=True,
    params=None,
    **options,
):
    """Weights [S] of one query on unit keys at these cosines, which are the logits too."""
    cosines = np.asarray(cosines, np.float32)
    q = np.zeros((1, 1, 1, dim), np.float32)
    q[..., 0] = math.sqrt(dim) if scaled else 1
    k = np.zeros((1, len(cosines), 1, dim), np.float32)
    k[0, :, 0, 0], k[0, :, 0, 1] = cosines, np.sqrt(1 - cosines**2)
    made = make_method(method, train_length=train_length, position="none", **options)
    params = None if params is None else jax.tree.map(np.float32, params)
    return np.asarray(quick_weights(q, k, made, params=params))[0, 0, 0]


assert_close = np.testing.assert_allclose


def test_softmax():
    assert_close(row("softmax", [0, 1]), np.array([1, E]) / (1 + E), rtol=1e-6)
    assert_close(row("softmax", [1, 0, -1]), np.array([E, 1, 1 / E]) / (E + 1 + 1 / E), rtol=1e-6)


def test_cosine_forgets_norms():
    """c cos with no 1/sqrt(H): e^c, whatever the length of q."""
    for scaled in (True, False):
        assert_close(
            row("cosscale", [0, 1], cos_scale=1, scaled=scaled), [1 / (1 + E), E / (1 + E)]
        )
        two = row("cosscale", [0, 1], cos_scale=2, scaled=scaled)
        assert_close(two, np.array([1, E**2]) / (1 + E**2), rtol=1e-6)
    assert_close(row("cosscale", [0.75, 0.75, 0.75 + 1 / 128])[2], E / (2 + E), rtol=1e-4)


def test_log_length():
    """L = 4: sixteen keys make the factor ln 16 / ln 4 = 2, two keys stay at 1 or give 1/2."""
    weights = row("log_length", [1] + [0] * 15)
    assert_close(weights, np.array([E**2] + [1] * 15) / (E**2 + 15), rtol=1e-5)
    assert_close(row("log_length", [0, 1]), np.array([1, E]) / (1 + E), rtol=1e-6)
    half = math.exp(0.5)
    assert_close(
        row("log_length", [0, 1], clamp=False), np.array([1, half]) / (1 + half), rtol=1e-5
    )


def test_entropy_matched():
    """L = 4, H0 = ln 2: sixteen keys make the factor sqrt(ln 8 / ln 2); three stay, or get less."""
    weights, e = row("entropy_matched", [1] + [0] * 15), math.exp(3**0.5)
    assert_close(weights, np.array([e] + [1] * 15) / (e + 15), rtol=1e-5)
    assert_close(row("entropy_matched", [0, 0, 1]), np.array([1, 1, E]) / (2 + E), rtol=1e-6)
    less = math.exp((math.log(1.5) / math.log(2)) ** 0.5)
    expected = np.array([1, 1, less]) / (2 + less)
    assert_close(row("entropy_matched", [0, 0, 1], clamp=False), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("slopes", "square"),
    [
        ([1, 0, 0, 0], 1 + math.log(2)),  # as measured: from L to 2 L, to 8 L, to 32 L, beyond
        ([0, 1, 0, 0], 1 + math.log(4)),
        ([0, 0, 1, 0], 1 + math.log(4)),
        ([0, 0, 0, 1], 1 + math.log(2)),
        ([-9, 0, 0, 0], 1 / 16),  # never below
    ],
)
def test_entropy_matched_by_pieces(slopes, square):
    """L = 4 and 256 = 64 L keys, of which one has a logit of 1."""
    params = {"temperature": {"slopes": np.array([slopes])}}
    weights = row("entropy_matched", [1] + [0] * 255, params=params)
    e = math.exp(square**0.5)
    assert_close(weights, np.array([e] + [1] * 255) / (e + 255), rtol=1e-5)


def test_entropy_matched_holds_the_entropy_of_normal_logits():
    """Of variance ln L, for which H0 is about ln L / 2 (it is that for many keys).

    Sixteen times the keys then add a tenth of what they add without it, ln 16 and less.
    """

    def entropy(method, n):
        q, k = np.zeros((40, 1, 1, 4), np.float32), np.zeros((40, n, 1, 4), np.float32)
        q[..., 0] = 2  # sqrt(H)
        k[..., 0, 0] = np.random.default_rng(0).normal(0, np.log(64) ** 0.5, (40, n))
        weights = quick_weights(q, k, make_method(method, train_length=64, position="none"))
        weights = np.asarray(weights, np.float64)
        return -np.sum(weights * np.log(weights), axis=-1).mean()

    assert abs(entropy("entropy_matched", 4096) - entropy("entropy_matched", 256)) < 0.3
    assert entropy("softmax", 4096) - entropy("softmax", 256) > 2.0


def test_softmax_plus():
    """ln 2 / ln 512 = 1/9 and ln 8 / ln 512 = 1/3, whatever the training length."""
    ninth, third = math.exp(1 / 9), math.exp(1 / 3)
    for length in (4, 64):
        weights = row("softmax_plus", [0, 1], train_length=length)
        assert_close(weights, np.array([1, ninth]) / (1 + ninth), rtol=1e-5)
        weights = row("softmax_plus", [1] + [0] * 7, train_length=length)
        assert_close(weights[0], third / (third + 7), rtol=1e-5)


def temperatures(method: str, counts, *, dim: int, length: int, params=None, heads: int = 1, **kw):
    """The factor [len(counts), heads] that rows of so many visible keys get: all logits are it."""
    keys = max(counts)
    q = np.zeros((len(counts), 1, heads, dim), np.float32)
    k = np.zeros((len(counts), keys, 1, dim), np.float32)
    q[..., 0], k[..., 0] = math.sqrt(dim), 1
    made = make_method(method, train_length=length, position="none", **kw)
    mask = np.arange(keys) < np.asarray(counts)[:, None]
    statistics = quick_statistics(q, k, made, kv_mask=mask, params=params, block_size=1)
    return np.asarray(statistics.max_logit)[:, :, 0]


def test_infoscale_table():
    """The table of the formula sheet, H = 128, L = 64; exactly 1 at L and, clamped, below."""
    counts = [128, 256, 512, 1024, 2048, 4096, 64, 5]
    factors = temperatures("infoscale", counts, dim=128, length=64)[:, 0]
    assert_close(factors[:6], [1.077, 1.149, 1.215, 1.277, 1.336, 1.392], atol=5e-4)
    assert_close(factors[6:], 1, rtol=1e-6)
    factors = temperatures("infoscale", [64, 5, 1], dim=128, length=64, clamp=False)[:, 0]
    below = math.sqrt((1 - 5 ** (-1 / 64)) / (1 - 64 ** (-1 / 64)))
    assert_close(factors, [1, below, 0], rtol=1e-5, atol=1e-6)
    # 4 heads of 32 are 128 dimensions.
    kw = {"dim": 32, "length": 64, "heads": 4, "all_heads": True}
    assert_close(
        temperatures("infoscale", [128, 4096], **kw), [[1.077] * 4, [1.392] * 4], atol=5e-4
    )


def test_ssmax():
    """1 at L to begin with; s_h ln n with each head's own s."""
    counts, length = [64, 4096, 8], 64
    assert_close(temperatures("ssmax", counts, dim=8, length=length)[:, 0], [1, 2, 0.5], rtol=1e-6)
    params = {"temperature": {"slope": jnp.array([0.5, 2.0])}}
    factors = temperatures("ssmax", counts, dim=8, length=length, heads=2, params=params)
    assert_close(factors, np.log([[64, 64], [4096, 4096], [8, 8]]) * [0.5, 2.0], rtol=1e-5)


def test_steps_of_the_logarithm():
    """Llama 4's first step is at floor - 1, Ministral's at L; a document counts from its start."""
    for first in (0, 1000):
        places = np.array([0, 2, 3, 4, 6, 7, 11])
        q, k = np.zeros((7, 1, 1, 4), np.float32), np.zeros((7, 1, 1, 4), np.float32)
        q[..., 0], k[..., 0] = 2, 1
        at = {"q_positions": first + places[:, None], "kv_positions": np.full((7, 1), first)}
        made = make_method("llama4", train_length=64, floor=4, position="none")
        factors = np.ravel(quick_statistics(q, k, made, **at).max_logit)
        assert_close(factors, 1 + 0.1 * np.log([1, 1, 2, 2, 2, 3, 4]), rtol=1e-6)
        made = make_method("mistral3", train_length=4, beta=0.5, position="none")
        factors = np.ravel(quick_statistics(q, k, made, **at).max_logit)
        assert_close(factors, 1 + 0.5 * np.log([1, 1, 1, 2, 2, 2, 3]), rtol=1e-6)


def test_ssa():
    """Almost 1 to begin with; one beta, and each head's own product with q = (2, 0, ...)."""
    assert_close(temperatures("ssa", [1], dim=4, length=4), 1, rtol=1e-6)
    start = 1 + math.exp(-math.exp(2)) * math.log(16)
    assert_close(temperatures("ssa", [16], dim=4, length=4), start, rtol=1e-6)
    query = jnp.array([[0.0, 9.0, 9.0, 9.0], [0.5, 0.0, 0.0, 0.0]])
    params = {"temperature": {"beta": jnp.array(0.0), "query": query}}
    factors = temperatures("ssa", [16], dim=4, length=4, heads=2, params=params)
    expected = [1 + math.log(16) / E, 1 + math.log(16) / E + math.tanh(1)]
    assert_close(factors[0], expected, rtol=1e-5)


def test_adaptive():
    """Two keys have 0.58 nats, more than 0.5, but the fit is below 1 there; 16 get 2.2."""
    assert_close(row("adaptive", [0, 1]), np.array([1, E]) / (1 + E), rtol=1e-6)
    p = np.array([E] + [1] * 15) / (E + 15)
    h = -np.sum(p * np.log(p))
    factor = np.polyval([-0.037, 0.481, -2.3, 4.917, -1.791], h)
    assert 2.2 < factor < 2.3
    top = math.exp(factor)
    assert_close(
        row("adaptive", [1] + [0] * 15), np.array([top] + [1] * 15) / (top + 15), rtol=1e-5
    )


@pytest.mark.parametrize("method", ["infoscale", "log_length"])
@pytest.mark.parametrize("length", [7, 64, 1000])
def test_temperature_is_exactly_one_at_the_training_length(method, length):
    """Bit for bit what the method gives without its temperature."""
    plain = make_method(method, train_length=length, temperature="softmax")
    made = make_method(method, train_length=length)
    q, k = (np.random.default_rng(i).normal(size=(1, length, 1, 8)).astype("f4") for i in (0, 1))
    q = q[:, -3:]
    np.testing.assert_array_equal(attention_weights(q, k, made), attention_weights(q, k, plain))


def test_lssa():
    """ln(H) ln(n) cos, softplus, row sum. Alone, a key has logit 0 and weight 1."""
    assert_close(row("lssa", [0.3]), [1.0])
    one = math.log(1 + math.exp(math.log(4) * math.log(2)))
    assert_close(row("lssa", [0, 1]), np.array([math.log(2), one]) / (math.log(2) + one), rtol=1e-5)
    assert_close(row("lssa", [0, 1], scaled=False), row("lssa", [0, 1]), rtol=1e-5)


def test_lssar_takes_no_offset_from_short_rows():
    """n <= 3: the powers of LSSA's weights themselves."""
    assert_close(row("lssar", [0.3]), [1.0])
    top = (math.log(1 + math.exp(math.log(4) * math.log(2))) / math.log(2)) ** 15
    assert_close(row("lssar", [0, 1]), np.array([1, top]) / (1 + top), rtol=1e-4)
    top = (math.log(1 + math.exp(math.log(4) * math.log(3))) / math.log(2)) ** 3
    weights = row("lssar", [0, 1, 0], power=3)
    assert_close(weights, np.array([1, top, 1]) / (2 + top), rtol=1e-4)


def test_lssar_takes_its_offset_from_rows_of_four():
    """Below-average keys get nothing; two equal ones above share; the rest by their excess."""
    assert_close(row("lssar", [1, 0, 0, 0]), [1, 0, 0, 0])
    assert_close(row("lssar", [1, 0, 1, 0]), [0.5, 0, 0.5, 0], rtol=1e-6)
    logit = math.log(4) ** 2
    soft = [math.log(1 + math.exp(logit * cosine)) for cosine in (1, 0.75, 0, 0)]
    excess = [max(0, 4 * s / sum(soft) - 1) for s in soft]
    expected = np.array(excess) / sum(excess)
    assert_close(row("lssar", [1, 0.75, 0, 0], power=1), expected, rtol=1e-5)
    assert 0 < expected[1] < expected[0]
    cubed = np.array(excess) ** 3
    assert_close(row("lssar", [1, 0.75, 0, 0], power=3), cubed / cubed.sum(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lssar", "lssar(power=3)+nope"])
def test_lssar_rows_of_equal_weights_fall_back(method, dtype):
    """Nothing exceeds the average, up to rounding: LSSA's weights, for any n and any key."""
    rng = np.random.default_rng(0)
    counts = np.concatenate([np.arange(1, 12), rng.integers(12, 700, size=40), [700]])
    direction = rng.normal(size=(len(counts), 1, 1, 64))
    # One direction at many lengths: the cosines agree up to rounding only.
    k = jnp.asarray(direction * rng.uniform(0.1, 30, size=(1, 700, 1, 1)), dtype)
    if dtype == "bfloat16":  # rounding turns the keys themselves: keep the lengths to powers of two
        k = jnp.asarray(direction, dtype) * 2.0 ** rng.integers(-3, 5, size=(1, 700, 1, 1))
        k = k.astype(dtype)
    q = jnp.asarray(rng.normal(size=(len(counts), 1, 1, 64)), dtype)
    mask = np.arange(700) < counts[:, None]
    made = make_method(method, train_length=64, position="none")
    weights = np.asarray(quick_weights(q, k, made, kv_mask=mask))[:, 0, 0]
    assert_close(weights.sum(axis=-1), 1, rtol=1e-5)
    assert_close(weights * counts[:, None], mask, rtol=1e-3)


@pytest.mark.parametrize(
    ("phi", "logits", "values"),
    [
        ("softplus", [0, 1], [math.log(2), math.log(1 + E)]),
        ("sigmoid", [0, 1], [1 / 2, E / (1 + E)]),
        ("relu", [0.5, 1, -1], [1 / 2, 1, 0]),
        ("relu2", [0.5, 1, -1], [1 / 4, 1, 0]),
        # x Phi(x), where Phi(1) = 0.841345, less its least value -0.169971.
        ("gelu_shifted", [0, 1, -1], [0.169971, 1.011316, 0.011316]),
    ],
)
def test_first_stages(phi, logits, values):
    """phi of the bare cosine, over the row's sum or over n."""
    options = {"phi": phi, "scaled": False, "temperature": "softmax"}
    values = np.array(values)
    assert_close(row("lssa", logits, **options), values / sum(values), rtol=1e-5, atol=1e-6)
    unnormalised = row("lssa", logits, norm="none", **options)
    assert_close(unnormalised, values / len(logits), rtol=1e-5, atol=1e-6)


def test_sigmoid():
    """sigmoid(l - ln L), L = 4: 1 / (1 + 4 e^-l); or by row, sigmoid(l - ln n)."""
    assert_close(row("sigmoid", [0, 1]), [1 / 5, E / (E + 4)], rtol=1e-6)
    assert_close(row("sigmoid", [0] * 9), [0.2] * 9, rtol=1e-6)
    assert_close(row("sigmoid", [0, 1], bias="row"), [1 / 3, E / (E + 2)], rtol=1e-6)
    assert_close(row("sigmoid", [0, 0, 0, 0], bias="row"), [0.2] * 4, rtol=1e-6)


def test_softmax_sink():
    """A key more, of logit ln 3, that takes its share and gives nothing; at logit 0 softmax1."""
    params = {"weighting": {"sink": np.log([3.0])}}
    assert_close(row("softmax_sink", [0, 0], params=params), [1 / 5] * 2, rtol=1e-6)
    assert_close(row("softmax_sink", [0, 1], params=params), np.array([1, E]) / (4 + E), rtol=1e-6)
    assert_close(row("softmax_sink", [0, 1]), row("softmax1", [0, 1]), rtol=1e-6)


def broken(positions, *, query, mask=None):
    """Weights of a query on keys of logit ln 3, so that each takes 3/4 of what is left."""
    keys = len(positions)
    q, k = np.full((1, 1, 1, 1), math.log(3), np.float32), np.ones((1, keys, 1, 1), np.float32)
    made = make_method("stick_breaking", train_length=4)
    places = {"q_positions": np.array([query]), "kv_positions": np.array(positions)}
    mask = np.ones((1, keys), bool) if mask is None else np.array(mask)[None]
    return np.asarray(quick_weights(q, k, made, causal=True, kv_mask=mask, **places))[0, 0, 0]


def test_stick_breaking():
    """The nearest key breaks off 3/4, the next 3/4 of the quarter left; none is its own."""
    assert_close(broken([0, 1, 2, 3], query=3), [3 / 64, 3 / 16, 3 / 4, 0], rtol=1e-6)
    assert_close(broken([0, 1, 2, 3], query=4), [3 / 256, 3 / 64, 3 / 16, 3 / 4], rtol=1e-6)
    # By position, as in a cache that goes round; and hidden keys break nothing off.
    assert_close(broken([4, 1, 2, 3], query=5), [3 / 4, 3 / 256, 3 / 64, 3 / 16], rtol=1e-6)
    mask = [True, True, False, True]
    assert_close(broken([0, 1, 2, 3], query=4, mask=mask), [3 / 64, 3 / 16, 0, 3 / 4], rtol=1e-6)
    assert not np.any(broken([0, 1], query=0))


def test_relu():
    assert_close(row("relu", [-1, 1]), [0, 0.5], rtol=1e-6)
    assert_close(row("relu", [0.5, 1, -0.5, 0]), [0.125, 0.25, 0, 0], rtol=1e-6)


def test_relu2():
    assert_close(row("relu2", [-1, 1]), [0, 0.5], rtol=1e-6)
    assert_close(row("relu2", [0.5, 1, -0.5, 0]), [0.0625, 0.25, 0, 0], rtol=1e-6)
    # H = 4, so that q.k = 2 cos: (2 / 4)^2 and (1 / 4)^2.
    assert_close(row("relu2", [0.5, 1, -0.5, 0], gau=True), [0.0625, 0.25, 0, 0], rtol=1e-6)
    assert_close(row("relu2", [-1, 1], gau=True), [0, 1], rtol=1e-6)


def test_softmax1():
    """A key of logit 0 and no value: 1 / (1 + 1), and [1, e] / (2 + e)."""
    assert_close(row("softmax1", [0]), [0.5], rtol=1e-6)
    assert_close(row("softmax1", [0, 1]), np.array([1, E]) / (2 + E), rtol=1e-6)
    assert_close(row("softmax1", [-1]), [1 / (1 + E)], rtol=1e-6)


def test_sparsemax():
    """tau = (0.75 + 0.25 - 1) / 2 = 0, and the third key lies below it; 1 - 0 leaves one key."""
    assert_close(row("sparsemax", [0.75, 0.25, -0.5]), [0.75, 0.25, 0], atol=1e-6)
    assert_close(row("sparsemax", [0, 1]), [0, 1], atol=1e-6)
    assert_close(row("sparsemax", [0.5, 0.5, 0.5]), [1 / 3] * 3, rtol=1e-6)
    assert_close(row("sparsemax", [1, 0.25, 0.25]), [5 / 6, 1 / 12, 1 / 12], rtol=1e-5)


def test_soft():
    """H = 4, |q| = 2, |k| = 1: -|q - k|^2 / 4 = -(5 - 4 cos) / 4, so e^cos as in softmax."""
    assert_close(row("soft", [0, 1]), np.array([1, E]) / (1 + E), rtol=1e-5)
    # And a longer key is a farther one: -(4 - 2) ^ 2 / 4 against 0.
    q, k = np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 2, 1, 4), np.float32)
    q[..., 0], k[0, :, 0, 0] = 2, [2, 4]
    made = make_method("soft", train_length=4, position="none")
    assert_close(np.ravel(quick_weights(q, k, made)), np.array([E, 1]) / (1 + E), rtol=1e-5)


def test_reweighted_softmax():
    """Three keys take no offset: the powers of e^cos; five equal but one leave that one."""
    assert_close(
        row("reweighted_softmax", [0, 1], power=3), np.array([1, E**3]) / (1 + E**3), rtol=1e-5
    )
    assert_close(row("reweighted_softmax", [1, 0, 0, 0, 0]), [1, 0, 0, 0, 0])
    odds = (E / (1 + E)) / 0.5
    expected = np.array([1, odds**3]) / (1 + odds**3)
    assert_close(row("reweighted_sigmoid", [0, 1], power=3), expected, rtol=1e-5)


def seen(method: str, query: int, *, causal: bool, **options) -> list[int]:
    """The keys of twelve that a query sees: with q = 0 they share the row evenly."""
    q, k = np.zeros((1, 12, 1, 2), np.float32), np.ones((1, 12, 1, 2), np.float32)
    made = make_method(method, train_length=3, **options)
    weights = np.asarray(quick_weights(q, k, made, causal=causal))[0, 0, query]
    keys = np.flatnonzero(weights)
    assert_close(weights[keys], 1 / len(keys), rtol=1e-6)
    return keys.tolist()


def test_chunks():
    """Of 3 tokens, L; of 4 where that is said; a chunk's first row sees itself alone."""
    assert seen("chunked", 8, causal=True) == [6, 7, 8]
    assert seen("chunked", 9, causal=True) == [9]
    assert seen("chunked", 7, causal=False) == [6, 7, 8]
    assert seen("chunked", 6, causal=True, chunk=4) == [4, 5, 6]


def test_a_cache_of_the_training_length():
    """StreamingLLM's sinks and window are L keys together, by default."""
    assert seen("streaming_llm", 8, causal=True, sinks=1) == [0, 7, 8]
    assert seen("streaming_llm", 8, causal=True, sinks=7) == [0, 1, 2, 3, 4, 5, 6, 8]


def test_visible_keys():
    assert seen("softmax", 4, causal=True) == [0, 1, 2, 3, 4]
    assert seen("softmax", 4, causal=False) == list(range(12))
    assert seen("windowed", 8, causal=True) == [6, 7, 8]
    assert seen("windowed", 8, causal=False) == [6, 7, 8, 9, 10]
    assert seen("windowed", 1, causal=True, window=1) == [1]
    assert seen("lm_infinite", 8, causal=True, sinks=2) == [0, 1, 6, 7, 8]
    assert seen("lm_infinite", 8, causal=False, sinks=2) == [0, 1, 6, 7, 8, 9, 10]
    assert seen("lm_infinite", 11, causal=False) == [0, 1, 2, 3, 9, 10, 11]
    assert seen("lm_infinite", 1, causal=True) == [0, 1]
    assert seen("lm_infinite", 1, causal=False) == [0, 1, 2, 3]
    assert seen("streaming_llm", 8, causal=True, sinks=2, window=3) == [0, 1, 6, 7, 8]
    assert seen("streaming_llm", 8, causal=False, sinks=2, window=3) == [0, 1, 6, 7, 8, 9, 10]
    assert seen("rerope", 11, causal=True) == list(range(12))


def test_an_empty_row_is_zero():
    for method in ["softmax", "lssar", "sigmoid", "relu", "lssa"]:
        made = make_method(method, train_length=4)
        q, k = np.ones((1, 3, 1, 2), np.float32), np.ones((1, 3, 1, 2), np.float32)
        mask = np.array([[False, True, True]])
        weights = np.asarray(quick_weights(q, k, made, causal=True, kv_mask=mask))
        np.testing.assert_array_equal(weights[0, 0, 0], 0)
        if spec(method)["weighting"][0] in NORMALISED:
            assert_close(weights[0, 0, 1], [0, 1, 0], rtol=1e-6)


def test_gradient_of_two_keys():
    """d/dl of softmax([0, l]) at 0 is 1/4."""
    q = jnp.array([math.sqrt(2), 0])[None, None, None, :]
    made = make_method("nope", train_length=4)

    def second(logit):
        k = jnp.zeros((1, 2, 1, 2)).at[0, 1, 0, 0].set(logit)
        return attention_weights(q, k, made)[0, 0, 0, 1]

    assert_close(jax.grad(second)(0.0), 0.25, rtol=1e-6)
