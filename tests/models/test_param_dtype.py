"""Weights of 16 bits: what is rounded, what is computed of it, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import (
    ModelConfig,
    build_model,
    held_as,
    in_words,
    named_parameters,
    take_apart,
)
from lenext.models.generation import Sampling, generate
from lenext.models.parts import Linears, dense

FAMILIES = pytest.mark.parametrize("family", ["gau", "decoder", "encoder"])
WIDE = ("scale", "norm", "learned", "head_bias")
"""Parts of names of what stays float32."""


def section(family, **changes):
    config = base_config().model
    config.update(
        family=family, hidden_size=24, intermediate_size=40, key_size=8, num_layers=3, num_heads=2,
        use_bias=True, qk_norm=True, tied_head=False, **changes,
    )  # fmt: skip
    return config


def build(family, param_dtype, method="ssmax|softmax", **changes):
    config = section(family, param_dtype=param_dtype, **changes)
    return build_model(config, read_methods(method, 8), 31, seed=3)


def tokens_of(*shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, 31, shape))


def widened(model):
    """The same weights, float32."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.float32), state))


@FAMILIES
def test_initial_values_are_float32s_rounded(family):
    wide, half = (named_parameters(build(family, x)) for x in ("float32", "bfloat16"))
    assert wide.keys() == half.keys()
    for name, x in wide.items():
        assert x.dtype == np.float32
        stays = any(part in name for part in WIDE)
        assert half[name].dtype == (np.float32 if stays else jnp.bfloat16), name
        np.testing.assert_array_equal(half[name], x.astype(half[name].dtype))
    assert {x.dtype for x in half.values()} == {np.dtype(np.float32), np.dtype(jnp.bfloat16)}


@FAMILIES
def test_what_float32_weights_become_is_what_a_model_holds(family):
    config = section(family, param_dtype="bfloat16")
    methods = read_methods("ssmax|softmax", 8)
    wide = build_model(config, methods, 31, seed=3, param_dtype="float32")
    held = held_as(config, methods, 31)(nnx.to_pure_dict(nnx.state(wide)))
    half = nnx.to_pure_dict(nnx.state(build(family, "bfloat16")))
    jax.tree.map(np.testing.assert_array_equal, held, half)
    assert jax.tree.map(lambda x: x.dtype, held) == jax.tree.map(lambda x: x.dtype, half)


def test_float32_weights_are_not_copied_to_be_held():
    config, methods = section("decoder"), read_methods("softmax", 8)
    params = nnx.to_pure_dict(nnx.state(build("decoder", "float32", "softmax")))
    held = held_as(config, methods, 31)(params)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True):
        assert ours is theirs


@FAMILIES
def test_a_pass_computes_with_the_rounded_values_in_the_compute_type(family):
    half = build(family, "bfloat16")
    wide, tokens = widened(half), tokens_of(2, 13)
    expected = wide(tokens)
    np.testing.assert_allclose(half(tokens), expected, rtol=2e-5, atol=2e-6)
    words = in_words(half)
    kinds = {x.dtype for x in jax.tree.leaves(nnx.state(words.layers))}
    assert kinds == {np.dtype(np.uint16), np.dtype(np.float32)}
    np.testing.assert_allclose(words(tokens), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_words_are_the_same_parameters_by_name(family):
    before = {name: np.array(x) for name, x in named_parameters(build(family, "bfloat16")).items()}
    after = named_parameters(in_words(build(family, "bfloat16")))
    for name, x in before.items():
        assert after[name].dtype == x.dtype
        np.testing.assert_array_equal(after[name], x)


def test_words_draw_the_same_text():
    prompt, how = np.asarray(tokens_of(2, 5)), {"sampling": Sampling(0.0)}
    expected = list(generate(widened(build("decoder", "bfloat16")), prompt, 6, **how))
    for model in (build("decoder", "bfloat16"), in_words(build("decoder", "bfloat16"))):
        np.testing.assert_array_equal(list(generate(model, prompt, 6, **how)), expected)
    apart = take_apart(in_words(build("decoder", "bfloat16")), free=True)
    np.testing.assert_array_equal(list(generate(apart, prompt, 6, **how)), expected)


def test_of_words_a_pass_widens_a_layer_at_a_time():
    """A stack of 16 bits takes half the room of float32, and a pass no more beside it."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "key_size": 64, "num_layers": 16}

    def temporaries(model):
        graphdef, state = nnx.split(model)
        params, tokens = nnx.to_pure_dict(state), tokens_of(1, 32)

        def encode(params, tokens):
            return nnx.merge(graphdef, params).encode(tokens)[0]

        analysis = jax.jit(encode).lower(params, tokens).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def model(param_dtype):
        config = base_config().model
        config.update(family="decoder", param_dtype=param_dtype, **sizes)
        return build_model(config, read_methods("softmax", 8), 31, seed=0)

    wide, words = model("float32"), in_words(model("bfloat16"))
    layer = sum(x.nbytes for x in jax.tree.leaves(nnx.state(wide.layers))) / 16
    assert temporaries(words) < temporaries(wide) + 1.2 * layer


def test_products_of_bfloat16_are_rounded_once():
    """Sums of 4096 products, to a unit of the last place of bfloat16; the gradients likewise."""
    rng = np.random.default_rng(0)
    x, w, slope = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in [(5, 4096), (4096, 3), (5, 3)]
    )
    sizes = ModelConfig(vocab_size=2, hidden_size=2, intermediate_size=2, num_layers=1,
                        dtype="bfloat16")  # fmt: skip
    graphdef, _ = nnx.split(Linears(sizes, nnx.Rngs(0))(4096, 3, use_bias=False))

    def apply(x, w):
        return dense(nnx.merge(graphdef, nnx.State({"kernel": nnx.Param(w)})), x[None])[0]

    out, pull = jax.vjp(apply, x, w.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    exact = [np.asarray(each, np.float64) for each in (x, w, slope)]
    d_x, d_w = pull(slope)
    for ours, wanted in [
        (out, exact[0] @ exact[1]), (d_x, exact[2] @ exact[1].T), (d_w, exact[0].T @ exact[2]),
    ]:  # fmt: skip
        np.testing.assert_allclose(np.asarray(ours, np.float64), wanted, rtol=2.0**-8, atol=2e-3)
