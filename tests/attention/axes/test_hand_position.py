"""Angles, gains and biases that one can work out on paper, read off rows of a key or two."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import make_method
from tests.attention.common import quick_statistics, quick_weights

E = math.e
assert_close = np.testing.assert_allclose


def logits(method: str, delta, *, heads=1, query_dim=0, key_dim=0, dim=2, length=4, **options):
    """Logits [D, heads] of q = sqrt(H) e_query on a lone k = e_key, at distances i - j = delta."""
    delta = np.asarray(delta)
    q = np.zeros((len(delta), 1, heads, dim), np.float32)
    k = np.zeros((len(delta), 1, 1, dim), np.float32)
    q[..., query_dim], k[..., key_dim] = math.sqrt(dim), 1
    made = make_method(method, train_length=length, **options)
    places = {"q_positions": delta[:, None] + 50, "kv_positions": np.full((len(delta), 1), 50)}
    statistics = quick_statistics(q, k, made, **places)
    return np.asarray(statistics.max_logit)[:, :, 0]


def test_rope_turns_by_the_distance():
    """H = 2: one pair, a radian a token. The sine's sign is RoFormer's: q turned by +i."""
    delta = np.array([0, 1, 2, -1, 30])
    assert_close(logits("softmax", delta)[:, 0], np.cos(delta), atol=1e-5)
    assert_close(logits("softmax", delta, key_dim=1)[:, 0], np.sin(delta), atol=1e-5)
    assert_close(logits("nope", delta)[:, 0], 1, atol=1e-6)


def test_pairs_of_dimensions():
    """H = 4: dimension 0 pairs with 1 or with 2, at a radian a token."""
    for pairing, partner, stranger in [("interleaved", 1, 2), ("halves", 2, 1)]:
        kw = {"dim": 4, "pairing": pairing}
        assert_close(logits("softmax", [1], key_dim=partner, **kw), math.sin(1), atol=1e-6)
        assert_close(logits("softmax", [1], key_dim=stranger, **kw), 0, atol=1e-6)


def test_scaled_positions():
    """PI divides positions by s; YaRN also grows the logits by (0.1 ln s + 1)^2; NTK neither."""
    delta = np.array([0, 1, 8])
    assert_close(logits("pi", delta, scale=4)[:, 0], np.cos(delta / 4), atol=1e-5)
    gain = (0.1 * math.log(4) + 1) ** 2
    # H = 2, L = 4: the only pair is the first, which YaRN and NTK leave as it is.
    assert_close(logits("yarn", delta, scale=4)[:, 0], gain * np.cos(delta), atol=1e-5)
    assert_close(logits("ntk", delta, scale=4)[:, 0], np.cos(delta), atol=1e-5)
    # H = 4: the last pair, 0.01 radians a token at base 10^4, slows by s in both.
    last = {"dim": 4, "query_dim": 2, "key_dim": 3, "scale": 4}
    assert_close(logits("ntk", delta, **last)[:, 0], np.sin(delta * 0.01 / 4), atol=1e-6)
    assert_close(logits("yarn", delta, **last)[:, 0], gain * np.sin(delta * 0.01 / 4), atol=1e-6)


def test_bands_as_weights_were_trained_with():
    """Of H = 4 at base 10^4: of 64 tokens, 10.2 and 0.102 turns in the two pairs."""
    delta = np.array([0, 1, 8, -30])
    last = {"dim": 4, "query_dim": 2, "key_dim": 3, "scale": 4}
    # Half of the way from 0.002 to 0.202 turns: half is interpolated.
    bands = {"original_length": 64, "slow_turns": 0.0018592, "fast_turns": 0.2018592}
    frequency = 0.01 * (0.5 + 0.5 / 4)
    assert_close(
        logits("llama3", delta, **bands, **last)[:, 0], np.sin(delta * frequency), atol=1e-5
    )
    # Far above both: nothing is.
    bands = {"original_length": 10**6, "slow_turns": 1, "fast_turns": 4}
    assert_close(logits("llama3", delta, **bands, **last)[:, 0], np.sin(delta * 0.01), atol=1e-5)
    bands = {"original_length": 10**6, "attention_factor": 1.5}
    turned = 1.5**2 * np.sin(delta * 0.01)
    assert_close(logits("yarn", delta, **bands, **last)[:, 0], turned, atol=1e-5)


def test_dynamic_ntk_follows_the_length_that_weights_follow():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 12, 1, 4)).astype(np.float32)
    said, shorter, plain = (
        np.asarray(quick_weights(q, k, make_method("dynamic_ntk", **options)))
        for options in (
            {"train_length": 12, "original_length": 4}, {"train_length": 4}, {"train_length": 12}
        )
    )  # fmt: skip
    assert_close(said, shorter, atol=1e-7)
    assert np.max(np.abs(said - plain)) > 1e-3


@pytest.mark.parametrize("name", ["yarn", "llama3"])
def test_bands_that_are_none(name):
    with pytest.raises(ValueError, match=r"fast_turns=1: should be at least slow_turns=2"):
        make_method(name, train_length=4, fast_turns=1, slow_turns=2)


def test_dynamic_ntk_is_rope_up_to_the_training_length():
    """A key of 64 trained: 0.01 radians a token in the last pair of H = 4, whatever s."""
    delta = np.array([0, 1, 8, -30])
    last = {"dim": 4, "query_dim": 2, "key_dim": 3, "length": 64}
    for scale in (1, 4):
        turned = logits("dynamic_ntk", delta, scale=scale, **last)[:, 0]
        assert_close(turned, np.sin(delta * 0.01), atol=1e-6)


def test_clamped_distance():
    """ReRoPE stops turning at |distance| = w, on both sides; the default w is L."""
    delta = np.array([-9, -4, -3, -2, 0, 2, 3, 4, 9])
    clamped = np.clip(delta, -3, 3)
    assert_close(logits("rerope", delta, window=3)[:, 0], np.cos(clamped), atol=1e-5)
    assert_close(logits("rerope", delta, window=3, key_dim=1)[:, 0], np.sin(clamped), atol=1e-5)
    assert_close(logits("rerope", delta, key_dim=1)[:, 0], np.sin(np.clip(delta, -4, 4)), atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (8, [2.0**-h for h in range(1, 9)]),
        (12, [2.0**-h for h in range(1, 9)] + [2.0**-h for h in (0.5, 1.5, 2.5, 3.5)]),
        (1, [2.0**-8]),
        (3, [2.0**-4, 2.0**-8, 2.0**-2]),
    ],
)
def test_alibi_slopes(heads, slopes):
    """-m |distance| on top of q.k/sqrt(H) = 1, the same ahead as behind."""
    delta = np.array([0, 1, 7, -7])
    expected = 1 - np.abs(delta)[:, None] * np.array(slopes)
    assert_close(logits("alibi", delta, heads=heads), expected, rtol=1e-6)


@pytest.mark.parametrize("leak", [4, 1 / 16])
def test_leaky_distance(leak):
    """w = 3: distances of 3 and 11 are 3 and 3 + 8 / 4, on both sides; or 3 + 8 * 16."""
    delta = np.array([-11, -3, -2, 0, 2, 3, 7, 11])
    leaked = np.array([-5, -3, -2, 0, 2, 3, 4, 5])
    if leak < 1:
        leaked = np.array([-131, -3, -2, 0, 2, 3, 67, 131])
    kw = {"window": 3, "leak": leak}
    assert_close(logits("leaky_rerope", delta, **kw)[:, 0], np.cos(leaked), atol=1e-5)
    assert_close(logits("leaky_rerope", delta, key_dim=1, **kw)[:, 0], np.sin(leaked), atol=1e-5)


def test_t5_buckets():
    """One a distance up to 15; then 16 steps from 16 to 128, each longer by 8^(1/16) = 1.139."""
    table = np.arange(32, dtype=np.float32)[:, None]
    delta = np.array([0, 1, 15, 16, 18, 19, 20, 21, 44, 46, 112, 113, 127, 128, 5000])
    by_hand = np.array([0, 1, 15, 16, 16, 17, 17, 18, 23, 24, 30, 31, 31, 31, 31])
    made = make_method("t5_bias", train_length=4)
    params = {"position": {"table": table}}

    def biases(delta, causal):
        shape = (len(delta), 1, 1, 2)
        q, k = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        at = {"q_positions": delta[:, None] + 6000, "kv_positions": np.full((len(delta), 1), 6000)}
        found = quick_statistics(q, k, made, causal=causal, params=params, **at)
        return np.asarray(found.max_logit)[:, 0, 0]

    assert_close(biases(delta, causal=True), by_hand)
    # Seen from both sides, 8 of 16 are of one distance, and 8 steps go from 8 to 128: of 2^(1/2).
    sided = np.array([0, 1, 9, 10, 10, 10, 10, 10, 12, 13, 15, 15, 15, 15, 15])
    assert_close(biases(delta, causal=False), sided)
    assert_close(biases(-delta[1:], causal=False), 16 + sided[1:])


def test_t5_s_own_scale():
    """No 1 / sqrt(H): q . k is 2 for H = 4 and q = 2 e_0."""
    assert_close(logits("t5_bias", [3], dim=4), 1, rtol=1e-6)
    assert_close(logits("t5_bias", [3], dim=4, scaled=False), 2, rtol=1e-6)


def test_dual_chunk_distance():
    """C = 6, w = 2, so chunks of 4. The query at place 9 stands at 1, at 5 for the one before."""
    keys = np.arange(10)
    place, stands = keys % 4, np.repeat([6, 5, 1], [4, 4, 2])
    q, k = np.zeros((10, 1, 1, 2), np.float32), np.zeros((10, 10, 1, 2), np.float32)
    q[..., 0], k[..., 1] = math.sqrt(2), 1
    made = make_method("dual_chunk(chunk=6,window=2)", train_length=8)
    # One key each, and the first, from which places count.
    mask = (keys == 0) | (keys == keys[:, None])
    at = {"q_positions": np.array([9]), "kv_positions": keys, "kv_mask": mask}
    weights = np.asarray(quick_weights(q, k, made, causal=True, **at))[:, 0, 0]
    ratios = np.log(weights[keys, keys] / weights[:, 0])
    assert_close(ratios, np.sin(stands - place) - np.sin(6), atol=1e-5)


def test_dual_chunk_s_scale():
    """In documents of 3 L, the authors' code has logits times (0.05 ln 3 + 1)^2."""
    q = np.full((1, 12, 1, 2), 2**0.25, np.float32)
    found = [
        float(quick_statistics(q, q, made, causal=True).max_logit[0, 0, 0])
        for made in (
            make_method(f"dual_chunk(mscale={on})", train_length=4) for on in (True, False)
        )
    ]
    assert_close(found[0] / found[1], (0.05 * math.log(3) + 1) ** 2, rtol=1e-6)


def turned_by(method: str, i: int, keys: list[int], *, start: int = 0, **options):
    """Sine of the angle between the query at place i of a document and each of its keys."""
    q, k = np.zeros((len(keys), 1, 1, 2), np.float32), np.zeros((len(keys), 20, 1, 2), np.float32)
    q[..., 0], k[..., 1] = math.sqrt(2), 1
    made = make_method(method, train_length=4, **options)
    # One key each, beside the document's first, which is what places count from.
    mask = (np.arange(20) == 0) | (np.arange(20) == np.asarray(keys)[:, None])
    places = {"q_positions": np.array([start + i]), "kv_positions": start + np.arange(20)}
    weights = np.asarray(quick_weights(q, k, made, kv_mask=mask, **places))[:, 0, 0]
    return np.log(weights[np.arange(len(keys)), keys] / weights[:, 0])


@pytest.mark.parametrize("start", [0, 5, 1003])
def test_grouped_distance(start):
    """w = 4, g = 2, i = 11: the window's own distances, then 5 - floor(j / 2) + 4 - 2."""
    keys = [10, 8, 7, 6, 5, 2, 13, 15, 16]
    turned = [1, 3, 5 - 3 + 2, 5 - 3 + 2, 5 - 2 + 2, 5 - 1 + 2, -2, 5 - 7 - 2, 5 - 8 - 2]
    first = np.sin(5 - 0 + 2)
    ratios = turned_by("self_extend", 11, keys, start=start, window=4, group=2)
    assert_close(ratios, np.sin(turned) - first, atol=1e-5)


@pytest.mark.parametrize("start", [0, 5, 1003])
def test_distance_in_the_cache(start):
    """Sinks 3, window 4: a full cache has the query at 6, so that sink j is 6 - j away."""
    kw = {"sinks": 3, "window": 4, "start": start}
    assert_close(
        turned_by("streaming_llm", 11, [1, 2, 9], **kw), np.sin([5, 4, 2]) - np.sin(6), atol=1e-5
    )
    # Nothing has left the cache yet.
    assert_close(
        turned_by("streaming_llm", 5, [1, 2, 4], **kw), np.sin([4, 3, 1]) - np.sin(5), atol=1e-5
    )


def test_p_rope():
    """Half of two pairs: the first turns a radian a token, the second not at all."""
    delta = np.array([0, 1, -3, 700])
    kw = {"dim": 4, "fraction": 0.5}
    assert_close(logits("p_rope", delta, key_dim=1, **kw)[:, 0], np.sin(delta), atol=1e-5)
    assert_close(logits("p_rope", delta, query_dim=2, key_dim=2, **kw)[:, 0], 1, atol=1e-6)


def test_scale_invariant():
    """At distance 0, q.k; at tau (e - 1), gain sqrt(3) and bias -2."""
    delta, tau = np.array([0, 1, -1]), 1 / (E - 1)
    kw = {"dim": 4, "query_dim": 2, "key_dim": 2, "fraction": 0.5, "tau": tau}
    assert_close(
        logits("scale_invariant", delta, **kw)[:, 0], [1, *[math.sqrt(3) - 2] * 2], rtol=1e-5
    )


def test_kerple_log():
    """1 - p ln(1 + a |distance|), p = a = 1 to begin with."""
    delta = np.array([0, 1, -7])
    assert_close(
        logits("kerple_log", delta, heads=2)[:, 1], 1 - np.log([1, 2, 8]), rtol=1e-5, atol=1e-6
    )


def test_fire():
    """One unit that passes its input: ln(1 + |distance|) / ln(1 + max(i, L)) for |c| = 1, L = 3."""
    q = np.zeros((2, 1, 1, 4), np.float32)
    k = np.zeros((2, 8, 1, 4), np.float32)
    made = make_method("fire", train_length=3)
    learned = {"c": -1.0, "threshold": -1.0, "inner_bias": np.zeros(32), "outer_bias": [0.25]}
    learned |= {"inner": np.eye(32)[0], "outer": np.eye(32)[:, :1]}
    params = {"position": {name: jnp.asarray(x, jnp.float32) for name, x in learned.items()}}
    places = {"q_positions": np.array([[7], [1]]), "causal": True, "params": params}
    weights = np.asarray(quick_weights(q, k, made, **places))[:, 0, 0]
    far = np.exp(np.log(8 - np.arange(8.0)) / np.log(8))
    assert_close(weights[0], far / far.sum(), rtol=1e-5)
    near = np.exp(np.log([2.0, 1.0]) / np.log(4))
    assert_close(weights[1, :2], near / near.sum(), rtol=1e-5)
    # Key 0 is the farthest; the last bias is on every logit alike.
    largest = np.ravel(quick_statistics(q, k, made, **places).max_logit)
    assert_close(largest, [1.25, np.log(2) / np.log(4) + 0.25], rtol=1e-5)
