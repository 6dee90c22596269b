"""Angles, frequencies and slopes: against float64, another library, and far out.

A lone key's logit shows what a pair of dimensions turns by: gain * cos of the angle for a key in
the query's own dimension, gain * sin for a key in its partner.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import init_params, make_method, row_statistics, unsuited_axes
from lenext.attention.compute.places import Places, located
from tests.attention.common import (
    EVERY_NAME,
    GOLDEN,
    HEADS,
    TRAIN_LENGTH,
    inputs,
    out_and_weights,
    quick_statistics,
)
from tests.attention.reference import alibi_slopes, yarn_frequencies

DISTANCES = np.array([0, 1, 2, 3, 7, -5, 19, 64, 250, -511])


def turns(made, dim: int, q_positions, kv_positions, statistics=quick_statistics, **more):
    """gain * cos and gain * sin of every pair's angle, each [D, H/2], for D pairs of positions."""
    count, pairs = len(q_positions), dim // 2
    own, partner = np.eye(dim)[0::2], np.eye(dim)[1::2]  # [P, H]; head p looks at pair p
    q = np.tile(np.sqrt(dim) * own, (2 * count, 1, 1, 1)).astype(np.float32)
    k = np.concatenate([np.tile(x, (count, 1, 1, 1)) for x in (own, partner)]).astype(np.float32)
    positions = {
        "q_positions": np.tile(np.asarray(q_positions, np.int32), 2)[:, None],
        "kv_positions": np.tile(np.asarray(kv_positions, np.int32), 2)[:, None],
    }
    logits = np.asarray(statistics(q, k, made, **positions, **more).max_logit)
    return np.split(logits.reshape(2 * count, pairs), 2)


def assert_turns(
    made, dim, frequencies, distances, *, start=0, gain=1.0, slack=0.0, drift=0.0, **more
):
    """Angles are distance * frequency, to `slack` of the angle and `drift` a token of distance."""
    cosines, sines = turns(made, dim, start + distances, np.full(len(distances), start), **more)
    angles = distances[:, None] * np.asarray(frequencies, np.float64)
    allowed = 3e-6 + slack * np.abs(angles) + drift * np.abs(distances[:, None])
    assert np.all(np.abs(cosines / gain - np.cos(angles)) < allowed)
    assert np.all(np.abs(sines / gain - np.sin(angles)) < allowed)


def frequencies(name: str, *, dim: int, base: float, train_length: int, scale: float):
    """Float64 frequencies [H/2] and gain of a position by its formula."""
    plain = base ** (-2 * np.arange(dim // 2) / dim)
    if name == "pi":
        return plain / scale, 1.0
    if name == "ntk":
        # Written so that the last pair is seen to slow by s, and pair p by s^(2p / (H - 2)).
        return plain * scale ** (-np.arange(dim // 2) / (dim / 2 - 1)), 1.0
    if name == "yarn":
        return yarn_frequencies(dim, base, scale, train_length), (0.1 * np.log(scale) + 1) ** 2
    return plain, 1.0


SETTINGS = [
    {key: setting[key] for key in ("dim", "base", "train_length", "scale")}
    for setting in GOLDEN["frequencies"]
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda x: f"{x['dim']}-{x['train_length']}")
@pytest.mark.parametrize("name", ["pi", "ntk", "yarn"])
def test_frequencies_by_formula(name, setting):
    dim, options = setting["dim"], {key: setting[key] for key in ("base", "scale")}
    made = make_method(name, train_length=setting["train_length"], **options)
    expected, gain = frequencies(name, **setting)
    assert_turns(made, dim, expected, DISTANCES, gain=gain)


@pytest.mark.parametrize("setting", GOLDEN["frequencies"], ids=lambda x: f"{x['dim']}-{x['scale']}")
@pytest.mark.parametrize("name", ["pi", "ntk", "yarn"])
def test_frequencies_of_transformers(name, setting):
    """Its linear, dynamic (at one length) and yarn, kept in golden/; computed in float32 there."""
    options = {key: setting[key] for key in ("base", "scale")}
    made = make_method(name, train_length=setting["train_length"], **options)
    # Its factor is on cos and on sin, so on q and on k: squared in the logits.
    gain = setting["yarn_magnitude"] ** 2 if name == "yarn" else 1.0
    assert_turns(made, setting["dim"], setting[name], DISTANCES, gain=gain, slack=1e-6)


@pytest.mark.parametrize("setting", GOLDEN["frequencies"], ids=lambda x: f"{x['dim']}-{x['scale']}")
@pytest.mark.parametrize("name", ["dynamic_ntk", "llama3", "longrope", "p_rope"])
def test_more_frequencies_of_transformers(name, setting):
    """Its dynamic at three times the training length, llama3, longrope, p-RoPE.

    The last is called proportional there.
    """
    options = {"base": setting["base"], "scale": setting["scale"]}
    if name == "p_rope":
        del options["scale"]
    if name == "longrope":
        options["factors"] = tuple(1 + 0.25 * p for p in range(setting["dim"] // 2))
    made = make_method(name, train_length=setting["train_length"], **options)
    length = np.int32(3 * setting["train_length"])
    gain = 1.0
    if name == "longrope":  # its factor on cos and on sin, squared
        gain = 1 + np.log(setting["scale"]) / np.log(setting["train_length"])
    # In float32 there; a base near 1e8 loses some more.
    assert_turns(
        made, setting["dim"], setting[name], DISTANCES, gain=gain, slack=2e-6, length=length
    )


class TestScaledWeights:
    """Rotations swapped in where weights were trained with scaled ones."""

    @pytest.mark.parametrize("setting", GOLDEN["frequencies"], ids=lambda x: f"{x['dim']}")
    @pytest.mark.parametrize("name", ["softmax", "rerope", "leaky_rerope", "pi", "ntk"])
    def test_start_from_llama3_s(self, name, setting):
        """As transformers' frequencies times what a rule does to any."""
        length, dim = setting["train_length"], setting["dim"]
        options = f"base={setting['base']},scale={setting['scale']}"
        trained = make_method(f"llama3({options})", train_length=length)
        given = {"pi": "(scale=3)", "ntk": "(scale=3)", "softmax": ""}
        given["leaky_rerope"] = "(window=10,leak=8)"
        method = name + given.get(name, "(window=10)")
        expected, distances = np.array(setting["llama3"]), DISTANCES
        if name == "pi":
            expected = expected / 3
        if name == "ntk":
            expected = expected * 3.0 ** (-np.arange(dim // 2) / (dim / 2 - 1))
        if name == "rerope":
            distances = np.clip(distances, -10, 10)
        if name == "leaky_rerope":
            beyond = np.maximum(np.abs(distances) - 10, 0)
            distances = np.sign(distances) * (np.minimum(np.abs(distances), 10) + beyond / 8)
        for made in (
            make_method(method, train_length=length, trained=trained),
            make_method(f"trained+{method}", train_length=length, trained=trained),
            make_method(f"llama3({options})+{method}", train_length=length),
        ):
            cosines, sines = turns(made, dim, DISTANCES, np.zeros_like(DISTANCES))
            angles = distances[:, None] * expected
            np.testing.assert_allclose(cosines, np.cos(angles), atol=1e-4)
            np.testing.assert_allclose(sines, np.sin(angles), atol=1e-4)

    def test_yarn_counts_turns_at_the_frequencies_of_the_weights(self):
        """On weights of PI at 4, L holds the turns that L / 4 holds plainly."""
        made = make_method("pi(scale=4)+yarn(scale=2)", train_length=512)
        expected = yarn_frequencies(64, 10000.0, 2.0, 128) / 4
        assert_turns(made, 64, expected, DISTANCES, gain=(0.1 * np.log(2) + 1) ** 2)

    def test_gains_of_yarn_stay(self):
        trained = make_method("yarn(scale=4)", train_length=512)
        expected, gain = frequencies("yarn", dim=64, base=10000.0, train_length=512, scale=4.0)
        made = make_method("rerope(window=1000)", train_length=512, trained=trained)
        assert_turns(made, 64, expected, DISTANCES, gain=gain)
        made = make_method("yarn(scale=2)", train_length=512, trained=trained)
        cosines, _ = turns(made, 64, np.zeros(1), np.zeros(1))
        np.testing.assert_allclose(cosines, gain * (0.1 * np.log(2) + 1) ** 2, rtol=1e-5)

    @pytest.mark.parametrize("trained", ["yarn", "llama3", "dynamic_ntk(scale=2)", "p_rope"])
    def test_scales_that_follow_the_keys_are_none_of_the_weights(self, trained):
        trained = make_method(trained, train_length=64)
        plain = make_method("rerope", train_length=64)
        assert make_method("rerope", train_length=64, trained=trained) == plain

    def test_another_base_is_another_base_under_the_scale_too(self):
        trained = make_method("pi(scale=4)", train_length=512)
        made = make_method("rerope(base=100,window=1000)", train_length=512, trained=trained)
        expected, _ = frequencies("pi", dim=32, base=100.0, train_length=512, scale=4.0)
        assert_turns(made, 32, expected, DISTANCES)


class TestPartialRotation:
    """`rotary_dim`: the first dimensions turn as heads of that size do, and the others never."""

    @pytest.mark.parametrize("pairing", ["halves", "interleaved"])
    def test_is_a_rotation_of_the_first_and_a_product_of_the_others(self, pairing):
        """Whose logits are the sum of those of two heads that the dimensions are split into."""
        q, k, _ = inputs(seed=53, batch=1, queries=7, keys=7)
        q, k = q[:, -1:, :2], k[:, :1]  # one query, one key, 6 apart
        places = {"q_positions": np.array([[6]]), "kv_positions": np.array([[0]])}
        options = f"pairing='{pairing}'"

        def logit(name, first, last):
            made = make_method(f"{name}", train_length=TRAIN_LENGTH)
            got = quick_statistics(q[..., first:last], k[..., first:last], made, **places)
            return np.asarray(got.max_logit)

        whole = logit(f"softmax(rotary_dim=6,logit_scale=0.7,{options})", 0, 16)
        turned = logit(f"softmax(logit_scale=0.7,{options})", 0, 6)
        still = logit("nope(logit_scale=0.7)", 6, 16)
        np.testing.assert_allclose(whole, turned + still, atol=1e-5)

    @pytest.mark.parametrize(
        "name",
        [
            "ntk(scale=3)",
            "dynamic_ntk(scale=2)",
            "yarn(scale=4)",
            "llama3(scale=8)",
            "p_rope",
            "self_extend(window=5,group=8)",
        ],
    )
    def test_rules_of_frequencies_count_what_turns(self, name):
        """Half of 32 dimensions turn, and are amplified, as a head of 16 does."""

        def seen(dim, text):
            made = make_method(text, train_length=64)
            cosines, sines = turns(made, dim, DISTANCES, np.zeros_like(DISTANCES), length=200)
            return cosines[:, :8], sines[:, :8]

        options = name[:-1] + "," if "(" in name else name + "("
        for ours, theirs in zip(seen(32, f"{options}rotary_dim=16)"), seen(16, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)

    def test_stays_with_the_weights(self):
        trained = make_method(
            "softmax(rotary_dim=4,logit_scale=0.5,softcap=9,base=100)", train_length=64
        )
        kept = "(rotary_dim=4,logit_scale=0.5,softcap=9,base=100)"
        for name in ("rerope", "ntk", "infoscale", "p_rope"):
            expected = make_method(name + kept, train_length=64)
            for text in (name, f"trained+{name}", f"softmax+{name}"):
                assert make_method(text, train_length=64, trained=trained) == expected
        both = make_method("rerope(rotary_dim=4)+infoscale", train_length=64)
        assert make_method("softmax(rotary_dim=4)+rerope+infoscale", train_length=64) == both
        assert unsuited_axes(make_method("softmax", train_length=64), trained) == ["position"]
        assert not unsuited_axes(make_method("rerope", train_length=64, trained=trained), trained)

    def test_frequencies_of_scaled_weights_are_of_what_turns(self):
        trained = make_method("pi(scale=4,rotary_dim=16)", train_length=512)
        made = make_method("rerope(window=1000)", train_length=512, trained=trained)
        expected, _ = frequencies("pi", dim=16, base=10000.0, train_length=512, scale=4.0)
        cosines, _ = turns(made, 32, DISTANCES, np.zeros_like(DISTANCES))
        np.testing.assert_allclose(cosines[:, :8], np.cos(DISTANCES[:, None] * expected), atol=1e-4)
        np.testing.assert_allclose(cosines[:, 8:], 1, atol=1e-5)

    def test_what_it_may_be(self):
        with pytest.raises(ValueError, match="rotary_dim=5: should be even"):
            make_method("softmax(rotary_dim=5)", train_length=64)
        made = make_method("softmax(rotary_dim=32)", train_length=64)
        q, k, _ = inputs(seed=54, batch=1, queries=1, keys=1)
        with pytest.raises(ValueError, match="rotary_dim=32: should be at most head_dim, 16"):
            quick_statistics(q, k, made)


class TestLongRope:
    """Two lists of factors, and a gain, by hand."""

    LONG, SHORT = np.array([1.0, 1.5, 2.0, 8.0]), np.array([0.99, 1.0, 1.1, 1.2])
    PLAIN = 10000.0 ** (-np.arange(4) / 4)

    def made(self, more="", length=64):
        lists = f"factors={tuple(self.LONG.tolist())},short_factors={tuple(self.SHORT.tolist())}"
        return make_method(f"longrope({lists}{more})", train_length=length)

    @pytest.mark.parametrize(("length", "factors"), [(63, SHORT), (64, SHORT), (65, LONG)])
    def test_short_factors_up_to_the_training_length(self, length, factors):
        for given in (length, np.int32(length)):  # known beforehand, and traced
            statistics = row_statistics if isinstance(given, int) else quick_statistics
            assert_turns(
                self.made(), 8, self.PLAIN / factors, DISTANCES, length=given, slack=1e-6,
                statistics=statistics,
            )  # fmt: skip

    def test_original_length_in_place_of_the_training_length(self):
        made = self.made(",original_length=16,scale=4", length=64)
        gain = 1 + np.log(4) / np.log(16)
        for length, factors in [(16, self.SHORT), (17, self.LONG)]:
            assert_turns(
                made, 8, self.PLAIN / factors, DISTANCES, gain=gain, length=np.int32(length),
                slack=1e-6,
            )  # fmt: skip
        made = self.made(",original_length=16,scale=4,attention_factor=1.25", length=64)
        assert_turns(
            made, 8, self.PLAIN / self.LONG, DISTANCES, gain=1.25**2, length=np.int32(64),
            slack=1e-6,
        )  # fmt: skip

    def test_others_start_from_the_factors_at_the_training_length(self):
        trained = self.made(",original_length=16,scale=4", length=64)
        made = make_method("rerope(window=1000)", train_length=64, trained=trained)
        gain = 1 + np.log(4) / np.log(16)
        assert_turns(made, 8, self.PLAIN / self.LONG, DISTANCES, gain=gain)
        assert not made.follows_length

    def test_each_document_has_its_own(self):
        """In one batch, by what each row's `length` says."""
        made, places = self.made(), np.full((2, 1), 0)
        q, k = np.zeros((2, 1, 1, 8), np.float32), np.zeros((2, 1, 1, 8), np.float32)
        q[..., 6], k[..., 6] = np.sqrt(8), 1.0  # the last pair's first dimension
        logits = quick_statistics(
            q, k, made, q_positions=places + 100, kv_positions=places,
            length=np.array([64, 65], np.int32),
        ).max_logit  # fmt: skip
        angles = 100 * self.PLAIN[3] / np.array([self.SHORT[3], self.LONG[3]])
        np.testing.assert_allclose(np.ravel(logits), np.cos(angles), atol=1e-5)


@pytest.mark.parametrize("heads", sorted(GOLDEN["alibi"], key=int))
def test_slopes_of_transformers(heads):
    """BLOOM's slopes, kept in golden/: read off a key at distance 1 from a query of zeros."""
    q, k = np.zeros((2, 1, int(heads), 4), np.float32), np.ones((2, 1, 1, 4), np.float32)
    made = make_method("alibi", train_length=8)
    places = {"q_positions": np.array([[6], [1]]), "kv_positions": np.array([[5], [8]])}
    logits = np.asarray(quick_statistics(q, k, made, **places).max_logit)[:, :, 0]
    slopes = np.array(GOLDEN["alibi"][heads])
    np.testing.assert_allclose(logits, -slopes * [[1], [7]], rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(int(heads)), slopes, rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "pi", "ntk", "yarn"])
def test_distances_count_at_a_million_tokens(name):
    """There a float32 product of position and frequency is off by hundredths of a radian."""
    setting = {"dim": 32, "base": 10000.0, "train_length": 512, "scale": 3.0}
    options = {} if name == "softmax" else {"scale": setting["scale"]}
    made = make_method(name, train_length=setting["train_length"], **options)
    expected, gain = frequencies(name, **setting)
    for start in (999_983, 2**24 + 1, -70_000):
        assert_turns(made, 32, expected, DISTANCES, start=start, gain=gain)
    # Distances as long as that themselves: each token may add 2^-33 turns.
    far = np.array([10**5, -(10**5), 10**6])
    assert_turns(made, 32, expected, far, gain=gain, drift=2 * np.pi / 2**33)


def test_the_extension_factor_follows_the_keys():
    """s = max(1, S / L) of the key array's length, and given `scale` overrules it."""
    q, k = np.zeros((2, 1, 1, 2), np.float32), np.ones((2, 24, 1, 2), np.float32)
    q[..., 0], k[..., 1] = np.sqrt(2), 0
    mask = np.arange(24) == [[23], [17]]  # one key each, at distances 0 and 6
    for length, scale, s in [(8, None, 3.0), (24, None, 1.0), (48, None, 1.0), (8, 2.0, 2.0)]:
        made = make_method("pi", train_length=length, scale=scale)
        logits = np.ravel(quick_statistics(q, k, made, kv_mask=mask).max_logit)
        np.testing.assert_allclose(logits, np.cos([0, 6 / s]), atol=1e-5)
        made = make_method("yarn", train_length=length, scale=scale)
        logits = np.ravel(quick_statistics(q, k, made, kv_mask=mask).max_logit)
        np.testing.assert_allclose(logits[0], (0.1 * np.log(s) + 1) ** 2, atol=1e-5)


def test_scale_s_is_that_of_all_keys_in_blocks_too():
    """A block of causal rows stands against a prefix of the keys; s must not follow that."""
    q, k, _ = inputs(seed=51, batch=1, queries=60, keys=60)
    made = make_method("pi", train_length=20)
    given = make_method("pi", train_length=20, scale=3)
    blocks = quick_statistics(q, k, made, causal=True, block_size=16)
    whole = quick_statistics(q, k, given, causal=True, block_size=60)
    np.testing.assert_allclose(blocks.max_logit, whole.max_logit, atol=1e-5)


def test_ordinals():
    """A key's place in its document, from the first real token on; ids in no order, and padding."""
    positions = jnp.array([[10, 11, 12, 13, 14, 15, 16]])
    ids = jnp.array([[7, 7, -2, -2, 7, 3, 3], [0] * 7])
    mask = jnp.array([[False, True, True, True, True, True, True], [False] * 3 + [True] * 4])
    queries, query_ids = positions[:, 2:5], jnp.array([[-2, 7, 5], [0, 0, 9]])

    def at(mask, ids, query_ids):
        return located(Places(queries, positions, mask, query_ids, ids))

    packed = at(mask, ids, query_ids)
    ours = np.asarray(packed.kv_ordinals)
    np.testing.assert_array_equal(ours, [[-1, 0, 0, 1, 3, 0, 1], [-3, -2, -1, 0, 1, 2, 3]])
    np.testing.assert_array_equal(packed.q_starts, [[12, 11, 0], [13, 13, 0]])
    padded = at(mask, None, None)
    np.testing.assert_array_equal(padded.kv_ordinals[1], ours[1])
    np.testing.assert_array_equal(padded.q_starts, [[11] * 3, [13] * 3])
    np.testing.assert_array_equal(at(None, None, None).kv_ordinals, [list(range(7))])


@pytest.mark.parametrize("name", EVERY_NAME)
def test_only_distances_count(name):
    """Moving all positions along changes nothing, a million tokens out or below zero."""
    made = make_method(name, train_length=TRAIN_LENGTH)
    q, k, v = inputs(seed=52, batch=3, queries=50, keys=50)
    q, k, v = (np.repeat(x[:1], 3, axis=0) for x in (q, k, v))
    positions = np.arange(50) + np.array([[0], [1_000_003], [-20]])
    places = {"q_positions": positions, "kv_positions": positions}
    params = init_params(made, HEADS, q.shape[-1])
    out, _ = out_and_weights(q, k, v, params, places, method=made, causal=True)
    np.testing.assert_allclose(out[1:], np.asarray(out)[:1].repeat(2, axis=0), atol=2e-5)
