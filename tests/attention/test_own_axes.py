"""Choices of one's own are computed as lenext's are: by the definition, in blocks and tiles.

The choices and their plain definitions are in own_axes.py; the numbers here come from those.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, attention_weights, choose_implementation, make_method, register
from lenext.attention.axes.visibility import Window
from lenext.attention.axes.weighting import Softmax
from lenext.attention.compute import fused, tiles
from lenext.attention.compute.fused import why_not_fused
from tests.attention import test_guarantees as guarantees
from tests.attention.common import (
    DIM,
    EVERY_NAME,
    HEADS,
    KV_HEADS,
    hiding,
    inputs,
    unchecked_types,
    unequal_params,
    value_and_grads,
)
from tests.attention.common import TRAIN_LENGTH as LENGTH
from tests.attention.own_axes import (
    ENTRIES,
    Contrast,
    Dilated,
    Norms,
    Slope,
    TwoSpeeds,
    plain_attend,
)

TOGETHER = "own_two_stage+own_similarity+own_position+own_temperature+own_chunks"
EVERYTHING = [*ENTRIES, TOGETHER]


@pytest.fixture(autouse=True)
def registered():
    for name, entry in ENTRIES.items():
        register(name, entry)


both_ways = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
everything = pytest.mark.parametrize("name", EVERYTHING)


@functools.cache
def problem(length: int = 111):
    """q, k, v and a cotangent, B = 2."""
    q, k, v = inputs(seed=21, batch=2, queries=length, keys=length)
    cotangent = np.random.default_rng(22).normal(size=(*q.shape[:3], v.shape[-1]))
    return q, k, v, cotangent.astype(np.float32)


def places(given: str) -> dict:
    """Nothing, padding on either side of the second sequence, or that and two documents."""
    nothing, packed = hiding(2, 111), guarantees.packed(2, 111)
    return {
        "nothing": nothing, "padding": nothing | {"kv_mask": packed["kv_mask"]}, "pack": packed,
    }[given]  # fmt: skip


def solve(name, given, causal, implementation, block_size=None):
    """attend's output and gradients."""
    made = make_method(name, train_length=LENGTH)
    return value_and_grads(
        *problem(), unequal_params(made), places(given), method=made, causal=causal,
        implementation=implementation, block_size=block_size,
    )  # fmt: skip


@functools.cache
def plainly(name, given, causal):
    """The plain definition's output, a direction of arguments, and the slope along it."""
    q, k, v, cotangent = problem()
    params = unequal_params(make_method(name, train_length=LENGTH))
    rng = np.random.default_rng(23)
    start = jax.tree.map(lambda x: np.asarray(x, np.float64), (q, k, v, params))
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), start)

    def out(step):
        q, k, v, params = jax.tree.map(lambda x, d: x + step * d, start, direction)
        return plain_attend(q, k, v, params, name, LENGTH, causal=causal, **places(given))

    step = 1e-8  # so small that no relu has its kink between the two
    slope = np.sum(cotangent * (out(step) - out(-step))) / (2 * step)
    return out(0.0), direction, slope


CASES = [
    # What hides keys, causal, the tile or block.
    ("pack", True, 64),
    ("padding", False, 17),
    ("nothing", True, 64),
    ("nothing", False, 17),
]


@everything
@pytest.mark.parametrize(("given", "causal", "block_size"), CASES)
def test_definition_and_blocks_give_what_plain_numpy_gives(name, given, causal, block_size):
    """Value and gradient; the gradient of plain NumPy is a slope along one direction."""
    expected, direction, slope = plainly(name, given, causal)
    definition = solve(name, given, causal, "naive")
    blocks = solve(name, given, causal, "blockwise", block_size)
    for out, gradients in (definition, blocks):
        np.testing.assert_allclose(out, expected, atol=2e-5 * np.max(np.abs(expected)))
        parts = jax.tree.map(
            lambda g, d: np.sum(np.asarray(g, np.float64) * d), gradients, direction
        )
        size = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients)))
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), slope, atol=1e-4 * size)
    for a, b in zip(jax.tree.leaves(blocks[1]), jax.tree.leaves(definition[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5 * np.max(np.abs(b)) + 1e-6)


def test_tiles_take_what_can_be_summed_up_key_by_key():
    complete = {name for name in EVERYTHING if not suits(name)}
    assert complete == {"own_rows"}

    @dataclasses.dataclass(frozen=True)
    class Falling(Contrast):
        """Its second stage could not find the largest weight at the largest logit."""

        rises = False

    @dataclasses.dataclass(frozen=True)
    class Other(Softmax):
        """Its rows are not what its values say."""

        def __call__(self, logits, mask, rows, params):
            return super().__call__(logits, mask, rows, params) ** 2

    method = make_method("softmax", train_length=LENGTH)
    for weighting in (Falling(), Other()):
        assert not tiles.suits(dataclasses.replace(method, weighting=weighting))


def suits(name):
    return tiles.suits(make_method(name, train_length=LENGTH))


def test_tiles_touch_what_a_visibility_keeps():
    """Chunks of 12: what row 480 may see is in the tiles of 32 from 448 on, for all they know."""
    q, k, v = inputs(seed=24, batch=1, queries=512, keys=512)
    k[:, :448], v[:, :448] = np.nan, np.nan
    for name, finite in [("own_chunks", True), ("own_dilated", False)]:
        method = make_method(name, train_length=LENGTH)
        out = attend(q, k, v, method, causal=True, implementation="blockwise", block_size=32)
        assert np.all(np.isfinite(np.asarray(out)[:, -10:])) == finite


# Fused kernels.

DECLINED = {
    "own_rows": "its weights are not a plain softmax",
    "own_position": "it rotates near and far keys differently",
    "own_gates": "it follows the layer's input",
    TOGETHER: "its weights are not a plain softmax",
}
OURS = ("own_two_stage", "own_by_key", "own_similarity", "own_chunks", "own_dilated")
"""Declined by cuDNN, taken by a kernel of our own where one asks for it."""


@everything
def test_a_gpu_takes_it_or_says_why_not(monkeypatch, name):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    method = make_method(name, train_length=LENGTH)
    q, k = (jax.ShapeDtypeStruct((2, 64, n, DIM), jnp.bfloat16) for n in (HEADS, KV_HEADS))
    if name in DECLINED:
        with pytest.raises(ValueError, match=f"cannot take this call: {DECLINED[name]}"):
            choose_implementation(q, k, k, method, implementation="fused")
    elif name in OURS:
        asked = choose_implementation(q, k, k, method, implementation="fused")
        assert asked.kernel == fused.TRITON
    by_itself = choose_implementation(q, k, k, method).implementation
    assert by_itself == ("naive" if name in (*DECLINED, *OURS) else "fused")


@both_ways
def test_a_kernel_is_given_what_the_axes_make(monkeypatch, causal):
    """The call for a GPU, computed by the same function's plain form."""
    plain = jax.nn.dot_product_attention

    def computed(*arguments, implementation, **options):
        assert implementation == "cudnn"
        return plain(*arguments, implementation="xla", **options)

    q, k = (jnp.asarray(x, jnp.bfloat16) for x in problem(63)[:2])
    method = make_method("own_bounded+own_temperature", train_length=LENGTH)
    expected = np.asarray(attend(q, k, k, method, causal=causal, implementation="naive"), "f4")
    monkeypatch.setattr(jax.nn, "dot_product_attention", computed)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    try:
        out = attend(q, k, k, method, causal=causal, implementation="fused")
    finally:
        jax.clear_caches()  # what was compiled for this GPU must serve no other test
    np.testing.assert_allclose(
        np.asarray(out, "f4"), expected, atol=2e-2 * np.max(np.abs(expected))
    )


def test_what_derives_from_a_kernels_choice_is_not_taken_for_it():
    @dataclasses.dataclass(frozen=True)
    class Holes(Window):
        def __call__(self, delta, ordinal):
            return (jnp.abs(delta) < self.reach) & (delta != 1)

    @dataclasses.dataclass(frozen=True)
    class Cut(Softmax):
        def values(self, logits, shift, rows, params):
            return jnp.maximum(super().values(logits, shift, rows, params) - 0.01, 0.0)

    windowed = make_method("windowed", train_length=LENGTH)
    assert why_not_fused(windowed, HEADS, DIM) is None
    for changed in ({"visibility": Holes(window=9)}, {"weighting": Cut()}):
        assert why_not_fused(dataclasses.replace(windowed, **changed), HEADS, DIM) is not None


# The guarantees, as they are.


def of_every_name():
    """The guarantees that every name of the catalogue is held to, and how each is called."""
    for test in vars(guarantees).values():
        marks = {mark.args[0]: mark.args[1] for mark in getattr(test, "pytestmark", [])}
        if marks.get("method") is EVERY_NAME:
            yield pytest.param(test, {}, id=test.__name__[5:])
        cases = marks.get(("method", "causal"), [])
        if {case.values[0] for case in cases if hasattr(case, "values")} == set(EVERY_NAME):
            for causal in (False, True):
                yield pytest.param(
                    test, {"causal": causal}, id=f"{test.__name__[5:]}-causal={causal}"
                )


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "own_bounded"])
@pytest.mark.parametrize(("guarantee", "way"), list(of_every_name()))
def test_the_guarantees_hold(name, guarantee, way):
    guarantee(name, **way)


@everything
def test_the_guarantees_with_cases_of_their_own_hold(name):
    guarantees.test_rows_that_see_nothing(name, False, "naive")
    guarantees.test_rows_that_see_nothing(name, True, "blockwise")
    guarantees.test_every_method_differs_from_softmax(name, True)
    guarantees.test_blocks_equal_the_definition_in_bfloat16(name, True)


def test_the_guarantees_of_temperatures_hold():
    guarantees.test_temperature_is_one_at_the_training_length_only("own_temperature")
    guarantees.test_every_temperature_is_one_factor_a_row("own_temperature")


# Mistakes are found while tracing.


def mistaken(base, method, returned):
    """A choice that returns something else from one method."""
    changed = {method: returned, "__module__": __name__}
    return dataclasses.dataclass(frozen=True)(type("Mistaken", (base,), changed))()


def halved(x):
    return x[..., : x.shape[-1] // 2]


MISTAKES = [
    (
        "temperature", Slope, "__call__", lambda self, rows, q, params: rows.n[:, 0],
        "temperature of Mistaken returned (1, 5, 1): should be [B or 1, N or 1, T or 1, 1] = "
        "[2 or 1, 4 or 1, 5 or 1, 1]",
    ),
    (
        "temperature", Slope, "__call__", lambda self, rows, q, params: rows.n.astype(jnp.int32),
        "temperature of Mistaken returned int32: should be floating",
    ),
    (
        "temperature", Slope, "__call__", lambda self, rows, q, params: 1.0,
        "temperature of Mistaken returned 1.0: should be an array",
    ),
    (
        "position", TwoSpeeds, "gain", lambda self, rows: rows.n[0],
        "gain of Mistaken returned (1, 5, 1): should be [B or 1, N or 1, T or 1, S or 1] = "
        "[2 or 1, 4 or 1, 5 or 1, 5 or 1]",
    ),
    (
        "position", TwoSpeeds, "bias", lambda self, rows, params: params["slope"],
        "bias of Mistaken returned (4,): should be [B or 1, N or 1, T or 1, S or 1] = "
        "[2 or 1, 4 or 1, 5 or 1, 5 or 1]",
    ),
    (
        "position", TwoSpeeds, "arrange", lambda self, x: halved(x),
        "arrange of Mistaken returned (2, 5, 2, 8): should be [B, S, K, H] = [2, 5, 2, 16]",
    ),
    (
        "position", TwoSpeeds, "pieces", lambda self, rows: [],
        "pieces of Mistaken returned none: should be some",
    ),
    (
        "position", TwoSpeeds, "pieces",
        lambda self, rows: [
            dataclasses.replace(TwoSpeeds.pieces(self, rows)[0], where=rows.delta[:, 0] < 2)
        ],
        "where of Mistaken returned (1, 5, 5): should be [B or 1, 1, T or 1, S or 1] = "
        "[2 or 1, 1, 5 or 1, 5 or 1]",
    ),
    (
        "position", TwoSpeeds, "pieces",
        lambda self, rows: [dataclasses.replace(TwoSpeeds.pieces(self, rows)[0], k_phase=rows.n)],
        "k_phase of Mistaken returned (1, 1, 1, 1): should be [B or 1, S or 1, P] = "
        "[2 or 1, 5 or 1, 8]",
    ),
    (
        "similarity", Norms, "of_keys", lambda self, k: k,
        "of_queries and of_keys of Mistaken returned 17 and 16 dimensions: should be as many",
    ),
    (
        "similarity", Norms, "of_queries", lambda self, q: q[..., 0],
        "of_queries of Mistaken returned (1, 1, 1): should be [1, 1, 1, I] = [1, 1, 1, any]",
    ),
    (
        "weighting", Softmax, "__call__", lambda self, logits, mask, rows, params: logits[:, :1],
        "weighting of Mistaken returned (2, 1, 5, 5): should be [B, N, T, S] = [2, 4, 5, 5]",
    ),
    (
        "weighting", Softmax, "values", lambda self, logits, shift, rows, params: jnp.exp(shift),
        "values of Mistaken returned (2, 4, 5, 1): should be [B, N, T, S] = [2, 4, 5, 5]",
    ),
    (
        "weighting", Softmax, "shift", lambda self, largest, params: largest[:, :1],
        "shift of Mistaken returned (2, 1, 5, 1): should be [B, N, T, 1] = [2, 4, 5, 1]",
    ),
    (
        "weighting", Softmax, "rest", lambda self, shift, params: 1.0,
        "rest of Mistaken returned 1.0: should be an array",
    ),
    (
        "weighting", Contrast, "second", lambda self, weights, largest, rows: largest,
        "second of Mistaken returned (2, 4, 5, 1): should be [B, N, T, S] = [2, 4, 5, 5]",
    ),
    (
        "weighting", Contrast, "is_flat", lambda self, largest, rows: largest,
        "is_flat of Mistaken returned float32: should be bool",
    ),
    (
        "visibility", Dilated, "__call__", lambda self, delta, ordinal: (delta < 4)[0, 0],
        "visibility of Mistaken returned (5, 5): should be [B or 1, 1, T or 1, S or 1] = "
        "[1, 1, 5 or 1, 5 or 1]",
    ),
    (
        "visibility", Dilated, "__call__", lambda self, delta, ordinal: delta,
        "visibility of Mistaken returned int32: should be bool",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "base", "method", "returned", "message"),
    MISTAKES,
    ids=[f"{axis} {number}" for number, (axis, *_) in enumerate(MISTAKES)],
)
def test_what_an_axis_returns_is_checked(axis, base, method, returned, message):
    made = make_method("softmax", train_length=LENGTH)
    made = dataclasses.replace(made, **{axis: mistaken(base, method, returned)})
    q, k, v = inputs(seed=25, batch=2, queries=5, keys=5)
    # Bare of annotations, as users run it: here lenext's own would be the first to complain.
    with unchecked_types():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}(\n|$)"):
            attend(q, k, v, made, implementation="naive")
        with pytest.raises(ValueError, match="of Mistaken returned"):
            attend(q, k, v, made, implementation="blockwise", block_size=3)
        with pytest.raises(ValueError, match="of Mistaken returned"):
            attention_weights(q, k, made)
