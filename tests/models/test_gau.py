"""GAU-alpha against an independent float64 forward pass, and what swapping a method does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import make_method
from lenext.models import (
    GAUEncoder,
    ModelConfig,
    model_methods,
    parameter_table,
    places_of,
    take_apart,
    with_method,
)
from lenext.models.attention import Context
from tests.models.common import by_public_name, weights_of

SIZES = ModelConfig(vocab_size=11, hidden_size=12, intermediate_size=20, key_size=8, num_layers=3)


def build(methods="softmax", sizes=SIZES, seed=0):
    pattern = [make_method(name, train_length=16) for name in methods.split("|")]
    model = GAUEncoder(sizes, pattern, rngs=nnx.Rngs(seed))
    # Gains of one and offsets of zero would hide whether they are applied, and to what.
    rng = np.random.default_rng(1)
    layers, per_key = model.layers, (sizes.num_layers, SIZES.key_size)
    for part in (layers.q_scale, layers.k_scale):
        part.scale[...] = jnp.asarray(rng.normal(1, 0.3, per_key), jnp.float32)
        if part.offset is not None:
            part.offset[...] = jnp.asarray(rng.normal(0, 0.3, per_key), jnp.float32)
    if sizes.use_bias:
        for dense in (layers.i_dense, layers.o_dense):
            dense.bias[...] = jnp.asarray(rng.normal(0, 0.3, dense.bias.shape), jnp.float32)
    return model


def forward(p, tokens, types, mask, layers, use_bias, scale=lambda n: 1.0):
    """GAU-alpha in float64 NumPy, one sequence, plain RoPE: written from the paper's description,
    not from the model's code. `scale` is a temperature by the number of visible keys."""
    key = 8

    def norm(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)

    x = norm(p["word_embedding.embedding"][tokens] + p["type_embedding.embedding"][types])
    for i in range(layers):
        w = {
            k.removeprefix(f"layers.{i}."): v for k, v in p.items() if k.startswith(f"layers.{i}.")
        }
        h = x @ w["i_dense.kernel"] + (w["i_dense.bias"] if use_bias else 0)
        h = h / (1 + np.exp(-h))
        u, v, z = h[:, :20], h[:, 20:40], h[:, 40:]
        q = z * w["q_scale.scale"] + (w["q_scale.offset"] if use_bias else 0)
        k = z * w["k_scale.scale"] + (w["k_scale.offset"] if use_bias else 0)
        out = np.zeros((len(tokens), 20))
        for t in range(len(tokens)):
            logits = np.zeros(len(tokens))
            for s in range(len(tokens)):
                for pair in range(key // 2):
                    angle = (t - s) * 10000.0 ** (-2 * pair / key)
                    a, b = q[t, 2 * pair : 2 * pair + 2]
                    c, d = k[s, 2 * pair : 2 * pair + 2]
                    # Re[(a + ib) conj(c + id) e^(i angle)]
                    logits[s] += np.cos(angle) * (a * c + b * d) - np.sin(angle) * (b * c - a * d)
            logits = logits / np.sqrt(key) * scale(mask.sum())
            e = np.where(mask, np.exp(logits - logits[mask].max()), 0)
            out[t] = e / e.sum() @ v
        o = (u * out) @ w["o_dense.kernel"] + (w["o_dense.bias"] if use_bias else 0)
        x = norm(x + o)
    return x @ p["word_embedding.embedding"].T


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("padded", [0, 4])
def test_forward_pass_is_gau_alpha(use_bias, padded):
    sizes = ModelConfig(**{**vars(SIZES), "use_bias": use_bias})
    model = build(sizes=sizes)
    rng = np.random.default_rng(0)
    tokens, types = rng.integers(0, 11, (2, 15)), rng.integers(0, 2, (2, 15))
    mask = np.arange(15)[None] < np.array([[15], [15 - padded]])
    hidden, _ = model.encode(
        jnp.asarray(tokens), token_types=jnp.asarray(types), mask=jnp.asarray(mask)
    )
    logits = np.asarray(model.logits(hidden))
    for b in range(2):
        expected = forward(weights_of(model), tokens[b], types[b], mask[b], 3, use_bias)
        np.testing.assert_allclose(logits[b][mask[b]], expected[mask[b]], atol=3e-5)


def test_swapped_temperature_acts_in_every_layer():
    model = with_method(build(), make_method("softmax_plus", train_length=16))
    tokens = np.random.default_rng(0).integers(0, 11, (1, 15))
    types, mask = np.zeros(15, int), np.ones(15, bool)
    expected = forward(
        weights_of(model), tokens[0], types, mask, 3, False, lambda n: np.log(n) / np.log(512)
    )
    np.testing.assert_allclose(np.asarray(model(jnp.asarray(tokens)))[0], expected, atol=3e-5)


def test_gradient_is_the_forward_pass_derivative():
    """Along a random direction of all parameters, by central differences in float64."""
    model = build()
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    rng = np.random.default_rng(3)
    tokens, cotangent = rng.integers(0, 11, (1, 9)), rng.normal(size=(9, 11))
    step = jax.tree.map(lambda x: rng.normal(size=x.shape), params)

    def loss(params):
        logits = nnx.merge(graphdef, params)(jnp.asarray(tokens))
        return jnp.sum(logits[0] * jnp.asarray(cotangent, jnp.float32))

    grads = jax.jit(jax.grad(loss))(params)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(step), strict=True)
    ours = sum(float(np.sum(np.asarray(g, np.float64) * d)) for g, d in pairs)

    def reference(epsilon):
        moved = jax.tree.map(lambda x, d: np.asarray(x, np.float64) + epsilon * d, params, step)
        named = by_public_name(moved, places_of(model))
        logits = forward(named, tokens[0], np.zeros(9, int), np.ones(9, bool), 3, False)
        return float((logits * cotangent).sum())

    theirs = (reference(1e-6) - reference(-1e-6)) / 2e-6
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_swapping_shares_parameters_and_leaves_the_original_alone():
    model = build()
    tokens = jnp.arange(11)[None] % 11
    before = model(tokens)
    swapped = with_method(model, make_method("rerope+infoscale", train_length=4))
    before_and_after = (nnx.to_flat_state(nnx.state(m)) for m in (model, swapped))
    for (path, ours), (same_path, theirs) in zip(*before_and_after, strict=True):
        assert path == same_path
        assert ours[...] is theirs[...]
    assert not np.allclose(swapped(tokens), before, atol=1e-4)
    assert [m.name for m in model_methods(model)] == ["softmax"] * 3
    np.testing.assert_array_equal(model(tokens), before)


def slopes_of(model):
    """By layer: what its temperature learns, a number."""
    found = {}
    for name, x in weights_of(model).items():
        if name.endswith("learned.temperature.slope"):
            found[int(name.split(".")[1])] = float(x[0])
    return found


def test_learned_parts_start_at_initial_values_and_stay_where_shared():
    model = build("ssmax")
    np.testing.assert_allclose(list(slopes_of(model).values()), 1 / np.log(16), rtol=1e-6)
    for layer in range(3):
        model.layers.attention.set_learned(layer, "temperature", "slope", [layer + 1.0])
    kept = with_method(model, make_method("ssmax+rerope", train_length=16))
    assert slopes_of(kept) == slopes_of(model) == {0: 1.0, 1: 2.0, 2: 3.0}
    dropped = with_method(model, make_method("softmax", train_length=16))
    assert slopes_of(dropped) == {}
    again = with_method(dropped, make_method("ssmax", train_length=16))
    np.testing.assert_allclose(list(slopes_of(again).values()), 1 / np.log(16), rtol=1e-6)


def test_learned_parts_stay_with_their_layers_under_another_pattern():
    model = build("ssmax")
    for layer in range(3):
        model.layers.attention.set_learned(layer, "temperature", "slope", [layer + 1.0])
    ssmax, rerope, softmax = (
        make_method(name, train_length=16) for name in ("ssmax", "ssmax+rerope", "softmax")
    )
    mixed = with_method(model, [rerope, softmax, ssmax])
    assert slopes_of(mixed) == {0: 1.0, 2: 3.0}
    turned = with_method(mixed, [softmax, rerope, rerope])
    initial = pytest.approx(1 / np.log(16))
    assert slopes_of(turned) == {1: initial, 2: 3.0}
    # Each layer acts by its own.
    tokens, by_hand = jnp.arange(11)[None], take_apart(turned)
    for layer, slope in ((1, 1 / np.log(16)), (2, 3.0)):
        assert float(by_hand.layers[layer].attention.learned_by(0)["temperature"]["slope"][0]) == (
            pytest.approx(slope)
        )
    np.testing.assert_allclose(turned(tokens), by_hand(tokens), atol=1e-5)


def test_learned_parts_receive_gradients():
    model = build("ssmax")
    graphdef, state = nnx.split(model)
    grads = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(jnp.arange(11)[None]) ** 2))(
        nnx.to_pure_dict(state)
    )
    slopes = grads["layers"]["attention"]["learned"][0]["temperature"]["slope"]
    assert slopes.shape == (3, 1)
    assert np.all(np.abs(slopes) > 1e-6)


@pytest.mark.parametrize(
    "pattern", ["softmax|rerope(window=3)", "softmax|nope|alibi|ssmax", "alibi"]
)
def test_pattern_repeats_over_layers(pattern):
    """A scan over layers of several methods is the layers one after another."""
    sizes = ModelConfig(**{**vars(SIZES), "num_layers": 6})
    model = build(pattern, sizes)
    names = pattern.split("|")
    assert [m.name for m in model_methods(model)] == [names[i % len(names)] for i in range(6)]
    tokens = jnp.arange(9)[None]
    hidden, figures = model.encode(tokens, probe=jnp.arange(9))
    x = model.word_embedding(tokens) + model.type_embedding(jnp.zeros_like(tokens))
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-12)
    context = Context(probe=jnp.arange(9))
    for i, layer in enumerate(take_apart(model).layers):
        x, seen = layer(x, lambda a, *given: a(*given, context), dropout_key=None)
        np.testing.assert_allclose(figures.entropy[i], seen.entropy, atol=1e-5)
    np.testing.assert_allclose(hidden, x, atol=1e-5)


def test_pattern_that_does_not_divide_the_depth():
    sizes = ModelConfig(**{**vars(SIZES), "num_layers": 3})
    names = [m.name for m in model_methods(build("softmax|nope", sizes))]
    assert names == ["softmax", "nope", "softmax"]


def test_padding_leaves_the_document_alone():
    model = build("infoscale")
    tokens = jnp.arange(20)[None] % 11
    mask = jnp.arange(20)[None] < 13
    padded, _ = model.encode(tokens, mask=mask)
    alone, _ = model.encode(tokens[:, :13])
    np.testing.assert_allclose(padded[:, :13], alone, atol=2e-6)


def test_bfloat16_computes_close_to_float32_from_float32_parameters():
    model = build()
    half = build(sizes=ModelConfig(**{**vars(SIZES), "dtype": "bfloat16"}))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    hidden, _ = half.encode(jnp.arange(11)[None])
    assert hidden.dtype == jnp.bfloat16
    logits, exact = half(jnp.arange(11)[None]), model(jnp.arange(11)[None])
    assert logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits: three layers of rounding to 2^-9 each way.
    assert float(jnp.max(jnp.abs(logits - exact)) / jnp.max(jnp.abs(exact))) < 2e-2


def test_dropout_follows_its_key():
    sizes = ModelConfig(**{**vars(SIZES), "dropout": 0.5})
    model, tokens = build(sizes=sizes), jnp.arange(11)[None]
    one, _ = model.encode(tokens, dropout_key=jax.random.key(1))
    same, _ = model.encode(tokens, dropout_key=jax.random.key(1))
    other, _ = model.encode(tokens, dropout_key=jax.random.key(2))
    off, _ = model.encode(tokens)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, off)


def test_parameter_table_adds_up():
    model = build("ssmax")
    total = sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    assert parameter_table(model).splitlines()[-1].split() == ["parameters", f"{total:,}"]
    # 3 layers of 12 x 48 + 20 x 12 + 8 + 8 + 1, and embeddings of 13 rows of 12.
    assert total == 3 * (12 * 48 + 20 * 12 + 8 + 8 + 1) + 13 * 12
