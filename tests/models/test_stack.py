"""Layers stacked: what they start from, by what names they go, and that no weight is copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import (
    build_model,
    named_parameters,
    places_of,
    take_apart,
    token_figures,
    with_method,
)
from lenext.models.decoder import DecoderLayer
from lenext.models.parts import Linears
from tests.models.common import by_public_name, fill

SIX = "windowed(window=8)|windowed(window=8)|windowed(window=8)|lssar|softmax|yarn(scale=2)"
HALF = "softmax|ssmax"
FOUR = "fire|ssmax|softmax|ssmax+rerope"


def build(method="softmax", family="decoder", **changes):
    settings = base_config().model
    settings.update(
        family=family, hidden_size=24, intermediate_size=32, key_size=8, num_heads=2, num_layers=5
    )
    settings.update(changes)
    return build_model(settings, read_methods(method, 8), vocab_size=13, seed=0)


def tokens_of(batch, length):
    return jnp.asarray(np.random.default_rng(0).integers(0, 13, (batch, length)), jnp.int32)


def test_layers_start_as_if_made_one_by_one():
    """To the bit: what a seed gives is not for the way of storing it to say."""
    model = build("softmax|ssmax")
    rngs = nnx.Rngs(0)
    nnx.Embed(13, 24, rngs=rngs)
    linear = Linears(model.config, rngs)
    found = named_parameters(model)
    for i in range(5):
        layer = DecoderLayer(model.config, model.methods[i], linear)
        for path, x in nnx.to_flat_state(nnx.state(layer)):
            name = ".".join(map(str, ("layers", i, *path))).replace("learned.0.", "learned.")
            np.testing.assert_array_equal(found.pop(name), x[...], err_msg=name)
    assert found.keys() == {"embedding.embedding", "norm.scale"}


@pytest.mark.parametrize(
    ("family", "method"),
    [("gau", FOUR), ("encoder", FOUR), ("decoder", FOUR), ("decoder", SIX), ("decoder", "softmax")],
)
def test_a_stack_is_its_layers_one_after_another(family, method):
    model = build(method, family)
    # Initial values are the same in all layers: whose is taken would not show.
    rng, values = np.random.default_rng(1), named_parameters(model)

    def draw(name, shape):
        return values[name] * rng.uniform(0.5, 1.5, shape) if "learned" in name else None

    fill(model, draw)
    apart = take_apart(model)
    tokens, rows = tokens_of(2, 19), jnp.arange(0, 19, 3)
    mask = jnp.arange(19)[None] < jnp.asarray([[19], [13]])
    ours, seen = jax.jit(lambda: model.encode(tokens, mask=mask, probe=rows))()
    theirs, expected = jax.jit(lambda: apart.encode(tokens, mask=mask, probe=rows))()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(seen.entropy, expected.entropy, atol=2e-5)
    assert seen.entropy.shape[0] == 5
    assert apart.methods == model.methods
    assert named_parameters(apart).keys() == named_parameters(model).keys()


@pytest.mark.parametrize("method", [SIX, FOUR])
def test_a_stacks_gradient_is_its_layers(method):
    model = build(method)
    tokens = tokens_of(2, 19)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((2, 18))}

    def gradient(model):
        graphdef, state = nnx.split(model)

        def loss(params):
            return jnp.sum(token_figures(nnx.merge(graphdef, params), batch).loss)

        found = jax.jit(jax.grad(loss))(nnx.to_pure_dict(state))
        return by_public_name(found, places_of(model))

    ours, theirs = gradient(model), gradient(take_apart(model))
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, atol=2e-4, err_msg=name)


def test_layers_taken_apart_leave_no_second_copy():
    model = build(HALF)
    tokens = tokens_of(1, 9)
    before = np.asarray(model(tokens))
    kept = take_apart(model)
    np.testing.assert_allclose(model(tokens), kept(tokens), atol=2e-5)
    apart = take_apart(model, free=True)
    assert all(
        leaf[...].is_deleted()
        for path, leaf in nnx.to_flat_state(nnx.state(model))
        if path[0] == "layers" and "learned" not in path
    )
    np.testing.assert_allclose(apart(tokens), before, atol=2e-5)


def test_a_stack_does_not_decode():
    with pytest.raises(ValueError, match=r"stacked: decoding wants lenext\.models\.take_apart"):
        build().empty_caches(1, 8)


WIDE = {"hidden_size": 128, "intermediate_size": 512, "key_size": 32, "num_heads": 4}
LAYER_BYTES = 4 * (4 * 128 * 128 + 3 * 128 * 512)


def temporaries(f, *args, **jit):
    return jax.jit(f, **jit).lower(*args).compile().memory_analysis().temp_size_in_bytes


class TestMemory:
    """Of compiled programs, at sizes where a copy of the weights is most of what there is."""

    @pytest.mark.parametrize(
        ("method", "depth"), [("softmax", 12), (HALF, 12), (SIX, 14)], ids=["one", "half", "six"]
    )
    def test_a_pass_copies_no_weights(self, method, depth):
        model = build(method, num_layers=depth, **WIDE)
        tokens = tokens_of(1, 32)

        def encode(params, graphdef):
            return nnx.merge(graphdef, params).encode(tokens)[0]

        ours, theirs = (
            temporaries(encode, nnx.state(each), nnx.graphdef(each), static_argnums=1)
            for each in (model, take_apart(model))
        )
        assert ours <= 1.3 * theirs + LAYER_BYTES

    def test_a_gradient_is_all_that_a_backward_pass_adds(self):
        """Layers add to it their gradient, which is given back, and activations: no weights."""
        tokens = tokens_of(1, 33)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((1, 32))}

        def added(depth):
            model = build(HALF, num_layers=depth, remat=True, **WIDE)
            graphdef, state = nnx.split(model)

            def loss(params):
                return jnp.sum(token_figures(nnx.merge(graphdef, params), batch).loss)

            return temporaries(jax.grad(loss), nnx.to_pure_dict(state))

        assert added(18) - added(6) < 12 * 0.2 * LAYER_BYTES

    def test_a_token_copies_neither_weights_nor_caches(self):
        model = take_apart(build("softmax|lssar", num_layers=4, **WIDE))
        graphdef, state = nnx.split(model)
        caches = model.empty_caches(1, 4096)

        def step(params, caches):
            return nnx.merge(graphdef, params).step(tokens_of(1, 1), jnp.int32(9), caches)

        held = temporaries(step, state, caches, donate_argnums=1)
        assert held < LAYER_BYTES + caches[0][0].v.nbytes


def test_methods_swapped_share_the_weights():
    model = build(HALF)
    swapped = with_method(model, read_methods("rerope|lssar|softmax", 8))
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(each))) for each in (model, swapped))
    shared = {path for path in ours if "learned" not in path}
    assert shared == theirs.keys()
    assert all(ours[path][...] is theirs[path][...] for path in shared)
