"""What methods make of a layer's input; what they do with it: test_reference, test_guarantees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import (
    Gates,
    attend,
    attention_weights,
    flax_attention_fn,
    init_gates,
    make_gates,
    make_method,
)
from lenext.attention.axes.gates import running_sum
from tests.attention.common import HEADS, KV_HEADS, inputs

WIDTH = 5
LENGTH = 23
X = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
ZEROS = (jnp.zeros((1, 1, 1)),) * 2


def made(name):
    return make_method(name, train_length=16)


def drawn(method, seed=1):
    """What makes its gates, away from where it starts."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + rng.normal(scale=0.7, size=x.shape).astype(np.float32),
        init_gates(method, HEADS, WIDTH),
    )


def gates_of(method, params, x=X, **where):
    return make_gates(method, params, jnp.asarray(x), num_heads=HEADS, **where)


def softmax(logits):
    seen = np.tri(LENGTH, dtype=bool)
    values = np.where(
        seen, np.exp(logits - np.max(np.where(seen, logits, -np.inf), -1)[..., None]), 0
    )
    return values / values.sum(axis=-1, keepdims=True)


def test_forget_gates_by_hand():
    """Three tokens, one head: gates of 1/2, 1/4 and 1/5, which a query does not meet itself."""
    method = made("forgetting")
    logits = np.log([1.0, 1 / 3, 1 / 4]).astype(np.float32)  # of f / (1 - f)
    params = {"position": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}
    gates = make_gates(method, params, jnp.asarray(logits[None, :, None]), num_heads=1)
    zeros = np.zeros((1, 3, 1, 4), np.float32)
    weights = attention_weights(zeros, zeros, method, causal=True, gates=gates)[0, 0]
    kept = np.array([[1, 0, 0], [1 / 4, 1, 0], [1 / 20, 1 / 5, 1]])
    np.testing.assert_allclose(weights, kept / kept.sum(axis=-1, keepdims=True), atol=1e-6)


def test_forget_gates_are_what_their_formula_says():
    method, (q, k, _) = made("forgetting"), inputs(2, 2, LENGTH, LENGTH)
    params = drawn(method)
    kernel, bias = (np.asarray(params["position"][x], np.float64) for x in ("kernel", "bias"))
    weights = attention_weights(q, k, method, causal=True, gates=gates_of(method, params))
    for b in range(2):
        log_f = -np.log1p(np.exp(-(X[b].astype(np.float64) @ kernel + bias)))  # [T, N]
        for h in range(HEADS):
            logits = q[b, :, h].astype(np.float64) @ k[b, :, h // (HEADS // KV_HEADS)].T / 4
            for i in range(LENGTH):
                for j in range(i):
                    logits[i, j] += log_f[j + 1 : i + 1, h].sum()
            np.testing.assert_allclose(weights[b, h], softmax(logits), atol=1e-6)


def test_asentmax_s_temperature_is_what_its_formula_says():
    """With alpha = 1, which is softmax."""
    method, (q, k, _) = made("nope+asentmax(alpha=1)"), inputs(3, 2, LENGTH, LENGTH)
    params = drawn(method)
    of_beta, of_gamma = (
        X.astype(np.float64) @ np.asarray(params["temperature"][x], np.float64)
        for x in ("beta", "gamma")
    )  # [B, T, N]
    n = np.arange(1, LENGTH + 1)[None, :, None]
    factor = 1 + np.log1p(np.exp(of_beta)) * np.log(n + 1) ** (2 * np.tanh(of_gamma))
    weights = attention_weights(q, k, method, causal=True, gates=gates_of(method, params))
    for b in range(2):
        for h in range(HEADS):
            logits = q[b, :, h].astype(np.float64) @ k[b, :, h // (HEADS // KV_HEADS)].T / 4
            expected = softmax(factor[b, :, h, None] * logits)
            np.testing.assert_allclose(weights[b, h], expected, atol=1e-6)


def test_running_sums_stay_exact_for_a_million_tokens():
    x = np.random.default_rng(4).uniform(-0.04, 0, size=(1, 1_000_000, 1)).astype(np.float32)
    high, low = jax.jit(running_sum)(jnp.asarray(x), ZEROS)
    exact = np.cumsum(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.asarray(high, np.float64) + low, exact, atol=1e-6)
    # A float32 alone would not do: between neighbours all of its error is seen.
    assert np.max(np.abs(np.asarray(high, np.float64) - exact)) > 1e-4


def test_running_sums_go_on_and_have_a_gradient():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 9, 1)), jnp.float32)
    whole = running_sum(x, ZEROS)
    first = running_sum(x[:, :4], ZEROS)
    rest = running_sum(x[:, 4:], (first[0][:, -1:], first[1][:, -1:]))
    for parts, sums in zip(zip(first, rest, strict=True), whole, strict=True):
        joined = jnp.concatenate(parts, axis=1)
        assert joined.shape == sums.shape
    together = [sum(np.asarray(x, np.float64) for x in s) for s in (first, rest, whole)]
    np.testing.assert_allclose(np.concatenate(together[:2], axis=1), together[2], atol=1e-9)
    weights = jnp.arange(9.0).reshape(1, 9, 1)
    gradient = jax.grad(lambda x: jnp.sum(weights * sum(running_sum(x, ZEROS))))(x)
    np.testing.assert_allclose(gradient[0, :, 0], np.cumsum(np.arange(9.0)[::-1])[::-1])


@pytest.mark.parametrize("name", ["forgetting", "asentmax"])
def test_padding_s_input_counts_for_nothing(name):
    """NaN in what the mask hides, in the midst of the row and behind it."""
    method = made(name)
    params, mask = drawn(method), np.arange(LENGTH)[None] % 7 < 5
    hidden = np.where(mask[:, :, None], X, np.nan).astype(np.float32)
    for gate in jax.tree.leaves(gates_of(method, params, hidden, mask=jnp.asarray(mask))):
        assert np.all(np.isfinite(gate))


@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_hidden_keys_gates_count_for_nothing(implementation):
    """NaN there reaches neither output nor gradient."""
    method, (q, k, v) = made("forgetting"), inputs(6, 2, LENGTH, LENGTH)
    mask = np.arange(LENGTH)[None].repeat(2, axis=0) % 5 > 0
    gates = gates_of(method, drawn(method))

    def loss(k, gates):
        out = attend(
            q, k, v, method, causal=True, kv_mask=mask, gates=gates, block_size=8,
            implementation=implementation,
        )  # fmt: skip
        return jnp.sum(jnp.where(mask[:, :, None, None], out, 0.0) ** 2)

    def hiding(value):
        keys = jax.tree.map(lambda x: jnp.where(mask[:, :, None], x, value), gates.keys)
        return gates._replace(keys=keys)

    expected = jax.value_and_grad(loss, (0, 1))(k, hiding(0.0))
    found = jax.value_and_grad(loss, (0, 1))(k, hiding(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("name", "gates", "message"),
    [
        ("forgetting", None, "follows the layer's input: should have gates=, from make_gates"),
        ("forgetting", Gates({}, {}), "should have gates=, from make_gates"),
        ("softmax", "of forgetting", "'softmax' follows no layer's input: should have no gates"),
        ("asentmax", "of forgetting", "'asentmax' follows the layer's input: should have gates="),
    ],
)
def test_gates_of_another_method_are_refused(name, gates, message):
    q, k, v = inputs(7, 2, LENGTH, LENGTH)
    if gates == "of forgetting":
        gates = gates_of(made("forgetting"), drawn(made("forgetting")))
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, made(name), causal=True, gates=gates)


def test_gates_of_another_shape_are_refused():
    q, k, v = inputs(8, 2, 4, LENGTH)
    method = made("forgetting")
    gates = gates_of(method, drawn(method))
    with pytest.raises(ValueError, match=r"gates \(2, 23, 4\): should be \[2, 4, 4\]"):
        attend(q, k, v, method, causal=True, gates=gates)


def test_a_layer_of_flax_has_no_input_to_give():
    function = flax_attention_fn(made("forgetting"), causal=True)
    q = jnp.zeros((1, 3, 2, 4))
    with pytest.raises(ValueError, match="'forgetting' follows the layer's input"):
        function(q, q, q)
