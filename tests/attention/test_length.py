"""What follows the length follows tokens, never the shape of an array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import (
    attend,
    attention_weights,
    count_tokens,
    init_params,
    make_method,
    method_names,
    row_statistics,
)
from lenext.models import Decoder, Encoder, ModelConfig, token_figures
from tests.attention.axes.test_position import DISTANCES, assert_turns, frequencies
from tests.attention.common import QUICK, inputs, unchecked_types

L = 8
FOLLOWERS = [
    "pi",
    "ntk",
    "dynamic_ntk",
    "yarn",
    "llama3",
    "longrope",
    "self_extend",
    "leaky_rerope",
]
every_follower = pytest.mark.parametrize("name", FOLLOWERS)
EXACT = 2e-5


@functools.cache
def made(name):
    return make_method(name, train_length=L)


@functools.partial(
    jax.jit, static_argnames=("method", "causal", "implementation"), compiler_options=QUICK
)
def attended(q, k, v, method, places, *, causal=True, implementation="naive"):
    return attend(
        q, k, v, method, causal=causal, implementation=implementation,
        block_size=None if implementation == "naive" else 7, **places,
    )  # fmt: skip


def alone(name, arguments, start, stop):
    """The tokens from start to stop on their own; S is their number, and positions are from 0."""
    return attended(*(x[:, start:stop] for x in arguments), made(name), {})


def test_no_other_method_follows_the_length():
    assert {name for name in method_names() if made(name).follows_length} == set(FOLLOWERS)


@every_follower
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
@pytest.mark.parametrize("form", ["number", "rows", "keys"])
def test_sixteen_keys_and_eight_of_padding(name, implementation, form):
    arguments = inputs(seed=1, batch=1, queries=24, keys=24)
    mask = np.arange(24)[None] < 16
    length = {"number": np.int32(16), "rows": np.array([16]), "keys": np.where(mask, 16, 0)}[form]
    out = attended(
        *arguments, made(name), {"kv_mask": mask, "length": length}, implementation=implementation
    )
    np.testing.assert_allclose(out[:, :16], alone(name, arguments, 0, 16), atol=EXACT)


@every_follower
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_documents_of_a_pack_equal_themselves_alone(name, implementation):
    """Of 12 and 12, 12 and 20 and 20 and 12, with ids in any order; other tokens fill the row up.

    The packs are rows of one batch, so that a row's lengths must not reach another's.
    """
    arguments = inputs(seed=2, batch=4, queries=40, keys=40)
    first, second = np.array([[[12], [12], [20], [20]], [[12], [20], [12], [20]]])
    place = np.arange(40)
    ids = np.where(place < first, 7, np.where(place < first + second, -2, 3))
    places = {"q_segment_ids": ids, "kv_segment_ids": ids}
    places["length"] = np.select([ids == 7, ids == -2], [first, second], 40 - first - second)
    out = attended(*arguments, made(name), places, implementation=implementation)
    for i, (begin, end) in enumerate(zip(first[:, 0], (first + second)[:, 0], strict=True)):
        row = [x[i : i + 1] for x in arguments]
        one, other = alone(name, row, 0, begin), alone(name, row, begin, end)
        np.testing.assert_allclose(out[i : i + 1, :begin], one, atol=EXACT)
        np.testing.assert_allclose(out[i : i + 1, begin:end], other, atol=EXACT)


@every_follower
def test_a_cache_of_64_that_holds_12(name):
    q, k, v = inputs(seed=3, batch=1, queries=12, keys=12)
    room = [np.pad(x, [(0, 0), (0, 52), (0, 0), (0, 0)]) for x in (k, v)]
    places = {
        "q_positions": np.array([11]), "kv_mask": np.arange(64)[None] < 12, "length": np.int32(12),
    }  # fmt: skip
    out = attended(q[:, -1:], *room, made(name), places)
    np.testing.assert_allclose(out[:, 0], alone(name, (q, k, v), 0, 12)[:, -1], atol=EXACT)


def test_a_leak_grows_from_sixteen_on():
    q, k, v = inputs(seed=4, batch=1, queries=20, keys=20)
    outs = [attend(q, k, v, made("leaky_rerope"), length=x) for x in (20, 16 * L - 16, 64 * L)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.max(np.abs(outs[0] - outs[2])) > 1e-3


@every_follower
def test_known_when_compiling_or_not_it_is_the_same(name):
    q, k, v = inputs(seed=4, batch=2, queries=20, keys=20)
    known = attend(q, k, v, made(name), length=31)
    for length in (jnp.int32(31), jnp.full((2,), 31), np.full((1, 20), 31), np.full((2, 20), 31)):
        np.testing.assert_allclose(attend(q, k, v, made(name), length=length), known, atol=EXACT)
    if name != "leaky_rerope":  # whose leak is the same up to some 16 L
        assert np.max(np.abs(attend(q, k, v, made(name)) - known)) > 1e-3
    ours = attention_weights(q, k, made(name), length=jnp.int32(31))
    np.testing.assert_allclose(ours, attention_weights(q, k, made(name), length=31), atol=EXACT)
    logits = [row_statistics(q, k, made(name), length=x).max_logit for x in (31, jnp.int32(31))]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("name", ["pi", "ntk", "yarn"])
@pytest.mark.parametrize("known", [True, False])
def test_frequencies_are_those_of_the_length(name, known):
    """By the formula in float64, at s = 3; what is traced counts in float32."""
    setting = {"dim": 32, "base": 1e4, "train_length": L, "scale": 3.0}
    expected, gain = frequencies(name, **setting)
    how = {"length": 24, "statistics": row_statistics} if known else {"length": np.int32(24)}
    slack = 0.0 if known else 4e-7  # 1.2e-7 of what is taken off, twice and more of what is left
    assert_turns(made(name), 32, expected, DISTANCES, gain=gain, slack=slack, **how)


def test_gradients_pass_through_a_traced_length():
    q, k, v = inputs(seed=5, batch=1, queries=20, keys=20)

    def total(q, length):
        return jnp.sum(attend(q, k, v, made("yarn"), length=length) ** 2)

    known, traced = (jax.grad(total)(q, length) for length in (33, jnp.int32(33)))
    np.testing.assert_allclose(traced, known, atol=1e-4)


def test_compiled_once_for_all_lengths():
    q, k, v = inputs(seed=6, batch=1, queries=1, keys=30)
    traces = []

    @jax.jit
    def step(q, k, v, length):
        traces.append(length)
        mask = jnp.arange(30)[None] < length
        return attend(
            q, k, v, made("dynamic_ntk"), kv_mask=mask, q_positions=length[None] - 1, length=length
        )

    outs = [step(q, k, v, jnp.int32(length)) for length in (3, 9, 30)]
    assert len(traces) == 1
    assert all(np.isfinite(out).all() for out in outs)


@pytest.mark.parametrize(
    ("mask", "ids", "expected"),
    [
        (None, None, 5),
        ([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], None, [3, 4]),
        (None, [[4, 4, -1, 4, 0]], [[3, 3, 1, 3, 1]]),
        ([[1, 0, 1, 1, 0]], [[4, 4, -1, 4, 0]], [[2, 2, 1, 2, 0]]),
    ],
)
def test_tokens_are_counted_by_document(mask, ids, expected):
    mask = None if mask is None else np.array(mask, bool)
    ids = None if ids is None else np.array(ids, np.int32)
    np.testing.assert_array_equal(count_tokens(mask, ids, 5), expected)


@every_follower
def test_a_bare_call_that_leaves_it_open_is_refused(name):
    q, k, v = inputs(seed=7, batch=1, queries=9, keys=9)
    ids = np.zeros((1, 9), np.int32)
    for given in (
        {"kv_mask": np.ones((1, 9), bool)},
        {"kv_segment_ids": ids, "q_segment_ids": ids},
        {"q_positions": np.arange(9)},
        {"kv_positions": np.arange(9)},
    ):
        with pytest.raises(
            ValueError, match=r"follows the length .*: give length=.* scale="
        ) as error:
            attend(q, k, v, made(name), **given)
        assert "\n" not in str(error.value)
        attend(q, k, v, made("rerope+infoscale"), **given)


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (0, "length=0: should be at least 1"),
        (2**31, "below 2\\^31"),
        (np.ones(3, np.int32), r"length \(3,\): should be a number, \[2\] or \[2, 9\]"),
        (np.ones((2, 8), np.int32), r"length \(2, 8\)"),
        (np.ones(2, np.float32), "length is float32: should be an integer"),
    ],
)
def test_lengths_that_are_none(length, says):
    q, k, v = inputs(seed=8, batch=2, queries=9, keys=9)
    with unchecked_types(), pytest.raises(ValueError, match=says):
        attend(q, k, v, made("pi"), length=length)


SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "key_size": 8,
}


@pytest.mark.parametrize("name", ["pi", "yarn+infoscale", "dynamic_ntk|llama3"])
def test_models_count(name):
    """Padded and packed, a decoder gives each document what it gives it alone."""
    methods = [make_method(one, train_length=L) for one in name.split("|")]
    sizes = ModelConfig(num_kv_heads=2, num_layers=2, **SIZES)
    model = Decoder(sizes, methods, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(9).integers(0, 13, (1, 32)).astype(np.int32)
    one, other = model(tokens[:, :12]), model(tokens[:, 12:])
    ids = np.where(np.arange(32) < 12, 5, 1)[None].astype(np.int32)
    packed = model(tokens, segment_ids=ids)
    np.testing.assert_allclose(packed[:, :12], one, atol=1e-4)
    np.testing.assert_allclose(packed[:, 12:], other, atol=1e-4)
    padded = model(tokens, mask=np.arange(32)[None] < 12)
    np.testing.assert_allclose(padded[:, :12], one, atol=1e-4)


def test_encoders_and_what_is_looked_at_count_too():
    sizes = ModelConfig(num_layers=1, **SIZES)
    model = Encoder(sizes, make_method("yarn", train_length=L), rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(10).integers(0, 13, (1, 24)).astype(np.int32)
    mask = np.arange(24)[None] < 16
    probe = jnp.arange(16)

    def figures(tokens, **more):
        chosen = jnp.arange(16)[None]
        batch = {"tokens": jnp.asarray(tokens), "predicted": chosen, "targets": chosen % 13} | more
        return token_figures(model, batch | {"weights": jnp.ones((1, 16))}, probe=probe)

    padded, alone = figures(tokens, mask=jnp.asarray(mask)), figures(tokens[:, :16])
    np.testing.assert_allclose(padded.loss, alone.loss, atol=1e-5)
    np.testing.assert_allclose(padded.rows.max_logit, alone.rows.max_logit, atol=1e-5)


def test_initial_params_are_of_no_length():
    assert init_params(made("yarn"), 2, 8) == {}
