"""Which methods a fused kernel can compute, why not the others, and what the kernels are given."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, make_method, method_names
from lenext.attention.axes.position import Rope
from lenext.attention.compute.call import Call
from lenext.attention.compute.fused import SPLASH, attend_fused, why_not_fused
from lenext.attention.compute.places import Places, located

WEIGHTS = "its weights are not a plain softmax of the logits"
SIMILARITY = "its similarity multiplies vectors of 18 dimensions, not of 16"
VISIBILITY = "its rows see something other than all keys or a window"
ROTATIONS = "it rotates near and far keys differently, which takes a score matrix each"
GAIN = "its gain on the logits follows the distance"
BIAS = "its bias on the logits is an array of all queries by all keys"

REFUSED = {
    **dict.fromkeys(["lssa", "lssar", "reweighted_softmax", "reweighted_sigmoid"], WEIGHTS),
    **dict.fromkeys(["sigmoid", "relu", "relu2", "softmax1", "sparsemax", "adaptive"], WEIGHTS),
    **dict.fromkeys(["softmax_sink", "entmax", "stick_breaking"], WEIGHTS),
    **dict.fromkeys(["forgetting", "asentmax"], "it follows the layer's input"),
    "soft": SIMILARITY,
    **dict.fromkeys(["lm_infinite", "streaming_llm", "chunked"], VISIBILITY),
    **dict.fromkeys(
        ["rerope", "leaky_rerope", "self_extend", "rerope_log", "dual_chunk"], ROTATIONS
    ),
    "scale_invariant": GAIN,
    **dict.fromkeys(["alibi", "kerple_log", "fire", "t5_bias"], BIAS),
}


def reason(name: str, **options) -> str | None:
    return why_not_fused(make_method(name, train_length=8, **options), 4, 16)


@pytest.mark.parametrize("name", method_names())
def test_catalogue(name):
    assert reason(name) == REFUSED.get(name)


def test_options_and_compositions():
    assert reason("rerope", position="none") is None  # nothing is rotated, near or far
    assert reason("alibi+infoscale") == BIAS
    assert reason("yarn(scale=4)+cosscale+ssmax+windowed") is None
    assert reason("lssa(phi='exp')") == WEIGHTS
    assert reason("softmax(softcap=50)") == "its similarity bounds the logits"
    assert reason("yarn(scale=4,rotary_dim=8,logit_scale=0.1)") is None
    factors = make_method("longrope(factors=(1.0, 2.0))", train_length=8)
    assert why_not_fused(factors, 4, 4) is None
    with pytest.raises(ValueError, match="2 factors: should be 8"):
        why_not_fused(factors, 4, 16)


def test_a_position_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class GainOfRows(Rope):
        """A gain for whole rows, which goes into q."""

        def gain(self, rows):
            return jnp.log1p(rows.n)

    @dataclasses.dataclass(frozen=True)
    class OnlyNear(Rope):
        """One rotation, but not for all keys."""

        def pieces(self, rows):
            (piece,) = super().pieces(rows)
            return [dataclasses.replace(piece, where=rows.delta < 2)]

    method = make_method("softmax", train_length=8)
    assert why_not_fused(dataclasses.replace(method, position=GainOfRows()), 4, 16) is None
    assert why_not_fused(dataclasses.replace(method, position=OnlyNear()), 4, 16) == ROTATIONS


def sixteen_bits(length, *, heads=4, kv_heads=2, dim=16):
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, dim) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


TAKEN = [
    ("softmax", False),
    ("infoscale(clamp=False)", True),
    ("yarn(scale=4)", True),
    ("cosscale(cos_scale=8)+log_length", True),
    ("windowed(window=9)", True),
    ("ssa", False),
]


@pytest.mark.parametrize(("method", "causal"), TAKEN)
def test_cudnn_is_given_the_whole_method(monkeypatch, method, causal):
    """The call for a GPU, computed by the same function's plain form."""
    calls = []
    plain = functools.partial(jax.nn.dot_product_attention)

    def recorded(*arguments, implementation, **options):
        calls.append((implementation, options))
        return plain(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = make_method(method, train_length=8)
    q, k, v = sixteen_bits(40)
    try:
        out = attend(q, k, v, made, causal=causal)
    finally:
        jax.clear_caches()  # what was compiled for this GPU must serve no other test
    ((implementation, options),) = calls
    assert implementation == "cudnn"
    assert options["scale"] == 1.0
    assert options["is_causal"] == causal
    assert options["local_window_size"] == ((8, 0) if "window" in method else None)
    monkeypatch.undo()
    expected = np.asarray(attend(q, k, v, made, causal=causal, implementation="naive"), np.float32)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float32), expected, atol=2e-2 * np.max(np.abs(expected))
    )


@pytest.mark.parametrize(
    ("method", "causal", "queries"),
    [("log_length", True, 128), ("windowed(window=30)", False, 256), ("softmax", True, 256)],
)
def test_splash_in_the_interpreter(method, causal, queries):
    """The TPU's kernel, value and gradient, queries being the last of 256 keys."""
    made = make_method(method, train_length=8)
    q, k, v = sixteen_bits(256, heads=2, kv_heads=1)
    q = q[:, -queries:]
    positions = jnp.arange(256)[None]
    places = located(Places(positions[:, -queries:], positions))
    shapes = q.shape, k.shape, v.shape
    call = Call(made, *shapes, "bfloat16", causal, ordered=True, masked=False, length=shapes[1][1])

    def fused(q, k, v):
        return attend_fused(q, k, v, call, {}, places, kernel=SPLASH, interpret=True)

    def definition(q, k, v):
        return attend(q, k, v, made, causal=causal, implementation="naive")

    with jax.numpy_rank_promotion("allow"):  # within the library's kernel
        out, pull = jax.vjp(fused, q, k, v)
        ours = [out, *pull(q)]
    out, pull = jax.vjp(definition, q, k, v)
    for a, b in zip(ours, [out, *pull(q)], strict=True):
        b = np.asarray(b, np.float32)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=2e-2 * np.max(np.abs(b)))
