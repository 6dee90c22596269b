"""Tiles: what they may touch, what they may keep, and rows that take several of them.

Values and gradients of every method by blocks are test_reference.py's and test_guarantees.py's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, init_params, make_method
from lenext.attention.axes.axis import Visibility
from lenext.attention.axes.weighting import log1p_of_unit, rounded_sigmoid, rounded_softplus
from lenext.attention.compute import one_tile
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, located
from lenext.attention.compute.plan import plan_of, visible_keys
from lenext.attention.compute.tiles import default_tile, suits
from tests.attention.common import QUICK, TRAIN_LENGTH, quick_attend
from tests.attention.reference import reference_attend

LONG = 65_536


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def qkv(length, *, heads=2, dim=8, seed=0):
    return [normal(seed + i, 1, length, heads, dim) for i in range(3)]


def temporaries(method, length, *, gradient, heads=4, dim=64):
    """Bytes that attention takes besides its arguments and results, compiled and not run."""
    made = make_method(method, train_length=64)

    def out(q, k, v):
        return attend(q, k, v, made, causal=True)

    def pulled(q, k, v):
        return jax.vjp(out, q, k, v)[1](q)

    x = jax.ShapeDtypeStruct((1, length, heads, dim), jnp.float32)
    compiled = jax.jit(pulled if gradient else out, compiler_options=QUICK).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("method", ["softmax", "lssar", "windowed"])
def test_memory_at_65536(method, gradient):
    """Below 1 GB above the arguments, where one head's complete rows would take 16."""
    assert temporaries(method, LONG, gradient=gradient) < 1e9


@pytest.mark.parametrize("method", ["softmax", "lssar", "rerope", "alibi"])
def test_memory_is_linear_in_the_length(method):
    short, long = (temporaries(method, n, gradient=True, dim=8) for n in (LONG // 4, LONG))
    assert long < 4.5 * short


def out_of_reach(method, length, seen, *, causal):
    """Outputs of the last ten queries, keys and values not in `seen` being NaN."""
    q, k, v = qkv(length)
    hidden = np.setdiff1d(np.arange(length), seen)
    k[:, hidden], v[:, hidden] = np.nan, np.nan
    made = make_method(method, train_length=TRAIN_LENGTH)
    out = quick_attend(q, k, v, made, causal=causal, implementation="blockwise", block_size=32)
    return np.asarray(out)[0, -10:]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_windows_touch_the_tiles_they_see(causal):
    """512 keys in tiles of 32: the last ten rows see from 470 on, the tiles from 448."""
    assert np.all(np.isfinite(out_of_reach("windowed", 512, np.arange(448, 512), causal=causal)))
    # And the test can tell: one tile less does it.
    less = out_of_reach("windowed", 512, np.arange(480, 512), causal=causal)
    assert not np.all(np.isfinite(less))


def test_sinks_are_in_the_first_tile():
    seen = np.concatenate([np.arange(32), np.arange(448, 512)])
    assert np.all(np.isfinite(out_of_reach("lm_infinite", 512, seen, causal=True)))
    assert not np.all(np.isfinite(out_of_reach("lm_infinite", 512, seen[32:], causal=True)))


def test_causal_rows_stop_at_the_diagonal():
    q, k, v = qkv(256)
    k[:, 128:], v[:, 128:] = np.nan, np.nan
    made = make_method("infoscale", train_length=TRAIN_LENGTH)
    out = quick_attend(q, k, v, made, causal=True, implementation="blockwise", block_size=32)
    assert np.all(np.isfinite(np.asarray(out)[:, :128]))


def test_reweighting_skips_tiles_that_add_nothing():
    """Keys 0..31 point where queries do, all others away: after sharpening only those count."""
    length, dim = 256, 8
    direction = np.zeros(dim, np.float32)
    direction[0] = 1.0
    q = np.broadcast_to(direction, (1, length, 2, dim)).copy()
    k = np.broadcast_to(-direction, (1, length, 2, dim)).copy()
    k[:, :32] *= -1
    v = normal(0, 1, length, 2, dim)
    made = make_method("lssar", train_length=TRAIN_LENGTH, position="none")
    expected = attend(q, k, v, made, implementation="naive")
    v[:, 32:] = np.nan
    out = attend(q, k, v, made, implementation="blockwise", block_size=32)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    # With softplus rows alone every tile counts.
    lssa = make_method("lssa", train_length=TRAIN_LENGTH, position="none")
    assert np.all(np.isnan(attend(q, k, v, lssa, implementation="blockwise", block_size=32)))


@pytest.mark.parametrize("length", [513, 700])
@pytest.mark.parametrize("method", ["softmax", "lssar", "lm_infinite+infoscale"])
def test_default_tiles(method, length):
    """As users call it: odd lengths that take several tiles, bidirectional and causal."""
    q, k, v = (normal(i, 1, length, 4, 16) for i in range(3))
    made = make_method(method, train_length=TRAIN_LENGTH)
    for causal in (True, False):
        out = quick_attend(q, k, v, made, causal=causal, implementation="blockwise")
        expected = reference_attend(q, k, v, method, TRAIN_LENGTH, causal=causal)
        np.testing.assert_allclose(out, expected, atol=3e-4)


def test_default_tile():
    """512, but 1024 of single rows; less where memory or a window asks for less, from 128."""
    assert default_tile(1, 4, None) == 512
    assert default_tile(1, 1, None) == 1024
    assert default_tile(1, 32, None) == 512
    assert default_tile(1, 33, None) == 256
    assert default_tile(64, 64, None) == 128
    assert default_tile(10**9, 1, None) == 128
    assert default_tile(1, 1, 300) == 512
    assert default_tile(1, 1, 512) == 512
    assert default_tile(1, 1, 64) == 128


def test_which_methods_suit():
    def of(name):
        return suits(make_method(name, train_length=8))

    assert all(map(of, ["softmax", "lssa", "lssar", "sigmoid", "relu", "softmax1", "rerope+lssar"]))
    assert not any(map(of, ["sparsemax", "adaptive", "lssar(phi='gelu_shifted')"]))
    assert of("lssa(phi='gelu_shifted')")


@dataclasses.dataclass(frozen=True)
class EveryOther(Visibility):
    """A visibility that says nothing of what it keeps."""

    def __call__(self, delta, ordinal):
        return delta % 2 == 0


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_visibility_of_ones_own(causal):
    q, k, v = qkv(96)
    made = make_method("infoscale", train_length=8)
    made = dataclasses.replace(made, visibility=EveryOther())
    blocks = attend(q, k, v, made, causal=causal, implementation="blockwise", block_size=16)
    whole = attend(q, k, v, made, causal=causal, implementation="naive")
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


@pytest.mark.parametrize("given", ["nothing", "mask", "segments"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("method", ["softmax", "windowed(window=9)", "lm_infinite(window=9)"])
def test_visible_keys(method, causal, given):
    """n by tiles against a count over pairs."""
    length, queries = 61, 50
    mask = np.ones((1, length), bool)
    ids = np.zeros((1, length), int)
    if given == "mask":
        mask[:, :7] = False
    if given == "segments":
        ids[:, 30:] = 1
    made = make_method(method, train_length=8)
    places = Places(
        jnp.arange(length - queries, length)[None],
        jnp.arange(length)[None],
        jnp.asarray(mask) if given == "mask" else None,
        jnp.asarray(ids)[:, -queries:] if given == "segments" else None,
        jnp.asarray(ids) if given == "segments" else None,
    )
    places = located(places)
    q, k = (1, queries, 1, 8), (1, length, 1, 8)
    call = Call(
        made, q, k, k, "float32", causal, ordered=True, masked=given != "nothing", length=length
    )
    n = np.asarray(visible_keys(plan_of(call, 16), places))[0, 0, :, 0]
    for row, i in enumerate(range(length - queries, length)):
        seen = 0
        for j in range(length):
            start = max(np.argmax(mask[0]), 30 * ids[0, j])
            near = "window" not in method or abs(i - j) < 9
            near |= method.startswith("lm_infinite") and 0 <= j - start < 4
            seen += mask[0, j] and ids[0, i] == ids[0, j] and near and (j <= i or not causal)
        assert n[row] == seen, (i, n[row], seen)


@pytest.mark.parametrize("method", ["lssa", "lssar", "reweighted_sigmoid", "softmax1"])
def test_rows_far_below_zero_do_not_underflow(method):
    """A shift that comes with later tiles carries over what earlier ones counted."""
    q, k, v = qkv(64)
    made = make_method(method, train_length=8, position="none")
    q[..., 0], k[..., 0] = 30.0, np.linspace(-40.0, -20.0, 64)[None, :, None]
    if "lss" in method:
        made = dataclasses.replace(
            made, similarity=make_method("softmax", train_length=8).similarity
        )
    blocks = attend(q, k, v, made, causal=False, implementation="blockwise", block_size=16)
    whole = attend(q, k, v, made, causal=False, implementation="naive")
    assert np.all(np.isfinite(whole))
    np.testing.assert_allclose(blocks, whole, atol=3e-4)  # logits of -300 have 3e-5


def test_log1p_of_unit():
    x = np.concatenate([[0.0, 1.0, 0.03], np.logspace(-37, 0, 10_000)])
    x = x.astype(np.float32)
    exact = np.log1p(x.astype(np.float64))
    np.testing.assert_allclose(log1p_of_unit(jnp.asarray(x), jnp.asarray(x)), exact, rtol=3e-6)
    slope = jax.vmap(jax.grad(lambda x: log1p_of_unit(x, x)))(jnp.asarray(x))
    np.testing.assert_allclose(slope, 1 / (1 + x.astype(np.float64)), rtol=3e-6)


def test_rounded_functions():
    """Within 4e-4, value and slope, down to the smallest normal numbers."""
    x = np.concatenate([[-8.0, 0.0], np.linspace(-87, 87, 20_001)]).astype(np.float32)[None, None]
    x = x[..., None]
    exact = x.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    wanted = {
        rounded_softplus: (np.logaddexp(exact, 0), sigmoid),
        rounded_sigmoid: (sigmoid, sigmoid / (1 + np.exp(exact))),
    }
    for function, (values, slopes) in wanted.items():
        found, pull = jax.jvp(function, (jnp.asarray(x),), (jnp.ones_like(x),))
        np.testing.assert_allclose(found, values, rtol=4e-4)
        # That of a sigmoid near 1 falls to nothing.
        np.testing.assert_allclose(
            pull, slopes, rtol=8e-4, atol=3e-7 * (function is rounded_sigmoid)
        )


@pytest.mark.parametrize(
    ("method", "few", "many"),
    [
        ("lssa", False, True),
        ("rerope+lssar", False, True),
        ("lssa(phi='sigmoid')", False, True),
        ("lssa(phi='relu')+softmax", False, False),
        ("sigmoid", False, False),
        ("lssa(phi='exp')", True, True),
        ("lssa+alibi", True, True),
        ("lssa+forgetting", True, True),
        ("lssa+infoscale", True, True),
        ("cosscale", True, True),
        ("softmax", True, True),
    ],
)
def test_which_rows_want_a_shift(method, few, many):
    """Those whose logits may be beyond 80: ln 128 · ln n is above it from 14.5 million keys on."""
    made = make_method(method, train_length=TRAIN_LENGTH)
    for keys, wants in ((2**23, few), (2**24, many)):
        shape = (1, keys, 4, 128)
        call = Call(made, shape, shape, shape, "float32", True, True, False, keys)
        assert plan_of(call, 512).shifted == wants


@pytest.mark.parametrize("method", ["lssa", "lssar", "lssa(phi='sigmoid')"])
def test_rows_that_only_see_what_points_away(method):
    """Their values, e^-30 and less at the end, are weights like others, without a shift."""
    length, dim = 2000, 128
    direction = normal(5, 1, 1, 1, dim)
    q = np.broadcast_to(direction, (1, length, 1, dim))
    k = -q + 0.3 * normal(6, 1, length, 1, dim)
    v = normal(7, 1, length, 1, 4)
    made = make_method(method, train_length=TRAIN_LENGTH, position="none")
    out = attend(q, k, v, made, causal=True, implementation="blockwise", block_size=512)
    unit_q, unit_k = (
        x[0, :, 0].astype(np.float64) / np.linalg.norm(x[0, :, 0], axis=-1, keepdims=True)
        for x in (q, k)
    )
    n = np.arange(1, length + 1)[:, None]
    logits = np.log(dim) * np.log(n) * (unit_q @ unit_k.T)
    weights = np.exp(logits) if "sigmoid" in method else np.log1p(np.exp(logits))
    weights = np.tril(weights / (1 + np.exp(logits)) if "sigmoid" in method else weights)
    weights /= weights.sum(axis=1, keepdims=True)
    if method == "lssar":
        excess = np.maximum(weights * n - np.where(n <= 3, 0, 1), 0) ** 15
        weights = np.tril(excess / excess.sum(axis=1, keepdims=True))
    assert logits[-1].max() < -30
    np.testing.assert_allclose(out[0, :, 0], weights @ v[0, :, 0], atol=3e-4)


def test_learned_parts_get_their_gradients_from_every_tile():
    q, k, v = qkv(96, heads=4)
    made = make_method("kerple_log+ssmax", train_length=8)
    params = init_params(made, 4, 8)

    def loss(params, implementation):
        out = attend(q, k, v, made, causal=True, params=params, implementation=implementation,
                     block_size=16)  # fmt: skip
        return jnp.sum(jnp.sin(out))

    ours, exact = jax.grad(loss)(params, "blockwise"), jax.grad(loss)(params, "naive")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert np.max(np.abs(b)) > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lssar", "lssar+windowed", "rerope+lssar"])
def test_values_that_are_kept_are_those_made_anew(monkeypatch, method):
    """A second pass has them of the first, as far as they take little memory."""
    made = make_method(method, train_length=TRAIN_LENGTH)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 75, 2, 16)), jnp.float32) for _ in range(3))
    found = []
    two_of_five = 2 * 4 * 2 * 2 * 16 * 16
    for most in (one_tile.KEPT_BYTES, two_of_five, 0):
        monkeypatch.setattr(one_tile, "KEPT_BYTES", most)
        compiled = jax.jit(
            lambda *x: attend(*x, made, causal=True, implementation="blockwise", block_size=16)
        ).lower(q, k, v).compile()  # fmt: skip
        jax.clear_caches()  # the number is no part of what tells programs apart
        kept = compiled.memory_analysis().temp_size_in_bytes
        found.append((np.asarray(compiled(q, k, v)), kept))
    (with_all, most), (with_some, some), (anew, least) = found
    np.testing.assert_allclose(with_all, anew, atol=1e-5)
    np.testing.assert_allclose(with_some, anew, atol=1e-5)
    assert most > some > least
