"""Cross-entropy by chunks against a float64 definition: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from lenext.attention import make_method
from lenext.models import Decoder, GAUEncoder, ModelConfig, token_figures
from lenext.models.cross_entropy import cross_entropy, default_chunk
from lenext.models.parts import Head

Z_LOSS = 0.3


def reference(hidden, matrix, bias, targets, weights, softcap=0.0):
    """Figures, and the gradient of the mean of loss + Z_LOSS log_z^2, in float64; matrix [V, D]."""
    logits = hidden @ matrix.T + bias
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    log_z = np.log(np.exp(logits).sum(axis=-1))
    one_hot = np.eye(len(matrix))[targets]
    loss = log_z - (logits * one_hot).sum(axis=-1)
    correct = logits.argmax(axis=-1) == targets
    weights = weights / max(weights.sum(), 1.0)
    p = np.exp(logits - log_z[..., None])
    bent = 1 - (logits / softcap) ** 2 if softcap else 1.0
    slope = weights[..., None] * (p * (1 + 2 * Z_LOSS * log_z)[..., None] - one_hot) * bent
    flat = slope.reshape(-1, len(matrix))
    grads = slope @ matrix, flat.T @ hidden.reshape(len(flat), -1), flat.sum(axis=0)
    return (loss, correct, log_z), grads


def example(batch, length, width, size, seed=0):
    rng = np.random.default_rng(seed)
    weights = (rng.random((batch, length)) < 0.7).astype(float)
    targets = rng.integers(size, size=(batch, length))
    return (
        rng.normal(size=(batch, length, width)), rng.normal(size=(size, width)),
        rng.normal(size=size), targets, weights,
    )  # fmt: skip


def ours(hidden, matrix, bias, targets, weights, *, axes, chunk, dtype="float32", softcap=0.0):
    """As `reference`, from the code under test; bias None for none."""
    weights = jnp.asarray(weights, jnp.float32)

    def objective(hidden, matrix, bias):
        figures = cross_entropy(
            hidden, Head(matrix, bias, axes, softcap), jnp.asarray(targets, jnp.int32), chunk=chunk
        )
        each = figures.loss + Z_LOSS * jnp.square(figures.log_z)
        return jnp.sum(each * weights) / jnp.maximum(jnp.sum(weights), 1.0), figures

    matrix = jnp.asarray(matrix if axes == "vd" else matrix.T, jnp.float32)
    bias = None if bias is None else jnp.asarray(bias, jnp.float32)
    slope = jax.jit(jax.grad(objective, argnums=(0, 1, 2), has_aux=True))
    grads, figures = slope(jnp.asarray(hidden, dtype), matrix, bias)
    of_matrix = grads[1] if axes == "vd" else grads[1].T
    return figures, (grads[0], of_matrix, grads[2])


def assert_as_plain(inputs, axes, chunk, atol=1e-5, softcap=0.0):
    figures, grads = ours(*inputs, axes=axes, chunk=chunk, softcap=softcap)
    filled = (*inputs[:2], 0.0 if inputs[2] is None else inputs[2], *inputs[3:])
    expected, expected_grads = reference(*filled, softcap=softcap)
    np.testing.assert_array_equal(figures.correct, expected[1])
    np.testing.assert_allclose(figures.loss, expected[0], atol=atol)
    np.testing.assert_allclose(figures.log_z, expected[2], atol=atol)
    for name, found, right in zip(("hidden", "matrix", "bias"), grads, expected_grads, strict=True):
        if found is not None:
            np.testing.assert_allclose(found, right, atol=atol, err_msg=name)


@pytest.mark.parametrize("chunk", [5, None], ids=["chunks", "at once"])
def test_logits_that_are_bounded(chunk):
    """As Gemma 2's; the last chunk reaches back."""
    assert_as_plain(example(2, 5, 4, 13), "vd", chunk, softcap=1.5)


def test_a_row_by_hand():
    """Logits ln 1, ln 2, ln 5, ln 2 sum to ln 10 whatever the chunk; the likeliest is number 2."""
    logits = jnp.log(jnp.asarray([[1.0], [2.0], [5.0], [2.0]]))
    hidden, targets = jnp.ones((1, 2, 1)), jnp.asarray([[1, 2]])
    for chunk in (1, 2, 3, 4):
        figures = cross_entropy(hidden, Head(logits, None, "vd"), targets, chunk=chunk)
        np.testing.assert_allclose(figures.loss, np.log([[5.0, 2.0]]), rtol=1e-6)
        np.testing.assert_allclose(figures.log_z, np.log([[10.0, 10.0]]), rtol=1e-6)
        np.testing.assert_array_equal(figures.correct, [[0.0, 1.0]])


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 5), st.integers(2, 23)),
    chunk=st.integers(1, 23), axes=st.sampled_from(["vd", "dv"]), biased=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_and_chunk(shape, chunk, axes, biased, seed):
    hidden, matrix, bias, targets, weights = example(*shape, seed=seed)
    assert_as_plain((hidden, matrix, bias if biased else None, targets, weights), axes, chunk)


@pytest.mark.parametrize("axes", ["vd", "dv"])
def test_a_larger_vocabulary_that_is_no_multiple(axes):
    assert_as_plain(example(3, 33, 16, 1013), axes, 128)


def test_of_equal_logits_the_first_counts():
    matrix = jnp.zeros((7, 2))
    targets = jnp.asarray([[0, 1, 3, 6]])
    for chunk in (2, 3, 7):
        figures = cross_entropy(jnp.ones((1, 4, 2)), Head(matrix, None, "vd"), targets, chunk=chunk)
        np.testing.assert_array_equal(figures.correct, [[1, 0, 0, 0]])


@pytest.mark.parametrize("offset", [-500.0, 500.0])
def test_logits_far_from_zero(offset):
    """exp of them is 0 or infinite in float32."""
    hidden, matrix, bias, targets, _ = example(1, 9, 4, 11)
    figures, _ = ours(hidden, matrix, bias + offset, targets, np.ones((1, 9)), axes="vd", chunk=4)
    expected, _ = reference(hidden, matrix, bias, targets, np.ones((1, 9)))
    np.testing.assert_allclose(figures.loss, expected[0], atol=2e-4)
    np.testing.assert_allclose(figures.log_z, expected[2] + offset, rtol=1e-6)


def test_tokens_of_no_weight_get_no_gradient():
    hidden, matrix, bias, targets, weights = example(2, 9, 4, 11)
    weights[1] = 0.0
    _, grads = ours(hidden, matrix, bias, targets, weights, axes="vd", chunk=4)
    np.testing.assert_array_equal(grads[0][1], 0.0)
    _, grads = ours(hidden, matrix, bias, targets, 0 * weights, axes="vd", chunk=4)
    for slope in grads:
        np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("axes", ["vd", "dv"])
def test_bfloat16_is_summed_in_float32(axes):
    """Against the definition on operands that are already rounded: no more rounding but one, of the
    gradient of hidden states, to their own type."""
    hidden, matrix, bias, targets, weights = example(2, 17, 8, 61)
    matrix = matrix / np.sqrt(8)
    hidden, matrix = (
        np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), np.float64)
        for x in (hidden, matrix)
    )
    inputs = hidden, matrix, bias, targets, weights
    figures, grads = ours(*inputs, axes=axes, chunk=16, dtype="bfloat16")
    expected, expected_grads = reference(*inputs)
    assert [x.dtype for x in figures] == [jnp.float32] * 3
    assert grads[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(figures.loss, expected[0], atol=1e-5)
    np.testing.assert_allclose(figures.log_z, expected[2], atol=1e-5)
    np.testing.assert_allclose(grads[0].astype(jnp.float32), expected_grads[0], rtol=2**-8)
    for found, right in zip(grads[1:], expected_grads[1:], strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, right, atol=1e-5)


def value_and_grad_bytes(tokens, width, size, chunk):
    """Temporaries and outputs, which hold the gradients, of the compiled value and gradient."""

    def objective(hidden, matrix, targets, weights):
        figures = cross_entropy(hidden, Head(matrix, None, "vd"), targets, chunk=chunk)
        each = figures.loss + Z_LOSS * jnp.square(figures.log_z)
        return jnp.sum(each * weights), jnp.sum(figures.correct * weights)

    shapes = (
        jax.ShapeDtypeStruct((8, tokens // 8, width), jnp.float32),
        jax.ShapeDtypeStruct((size, width), jnp.float32),
        jax.ShapeDtypeStruct((8, tokens // 8), jnp.int32),
        jax.ShapeDtypeStruct((8, tokens // 8), jnp.float32),
    )
    function = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    analysis = function.lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def test_memory_of_value_and_gradient():
    """Beside inputs. The gradients alone are 119 MB, one array of all logits 1638 MB."""
    assert value_and_grad_bytes(8192, 512, 50_000, None) < 300e6
    assert value_and_grad_bytes(8192, 512, 50_000, 50_000) > 1638e6


def test_bytes_are_one_chunk_whatever_the_length():
    assert default_chunk(2**20) >= 300
    assert default_chunk(2048) * 2048 <= 2**21


def build(family, **changes):
    method = make_method("softmax", train_length=8)
    shared = {"vocab_size": 1300, "hidden_size": 16, "intermediate_size": 8, "num_layers": 1}
    if family == "gau":
        return GAUEncoder(ModelConfig(key_size=8, **shared, **changes), method, rngs=nnx.Rngs(0))
    sizes = ModelConfig(num_heads=2, num_kv_heads=2, key_size=8, **shared, **changes)
    return Decoder(sizes, method, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gau", {}), ("decoder", {}), ("decoder", {"tied_head": False, "use_bias": True})],
)
def test_a_models_figures_by_chunks(monkeypatch, family, changes):
    """The figures of a model whose vocabulary is cut are those of its logits, gradient and all."""
    monkeypatch.setattr("lenext.models.cross_entropy.CHUNK_ENTRIES", 1)
    assert default_chunk(18) < 1300
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(1300, size=(2, 9)) for name in ("tokens", "targets")}
    arrays["predicted"] = np.stack([rng.permutation(9), rng.permutation(9)])
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    batch["weights"] = jnp.ones((2, 9))
    graphdef, state = nnx.split(build(family, **changes))

    def cut(params):
        figures = token_figures(nnx.merge(graphdef, params), batch)
        return jnp.sum(figures.loss + jnp.square(figures.log_z)), figures

    def plain(params):
        logits = nnx.merge(graphdef, params)(batch["tokens"])
        if family == "gau":
            logits = jnp.take_along_axis(logits, batch["predicted"][..., None], axis=1)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jax.nn.log_softmax(logits)[
            np.arange(2)[:, None], np.arange(9)[None], arrays["targets"]
        ]
        return jnp.sum(-chosen + jnp.square(log_z)), (-chosen, log_z)

    params = nnx.to_pure_dict(state)
    grads, figures = jax.jit(jax.grad(cut, has_aux=True))(params)
    expected, (loss, log_z) = jax.jit(jax.grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(figures.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(figures.log_z, log_z, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected
    )
