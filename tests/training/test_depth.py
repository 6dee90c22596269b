"""What depth costs a training step, in program and memory, and what rematerialisation saves."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model, kinds_of, token_figures
from lenext.training.optimizer import make_optimizer
from lenext.training.step import init_state, make_train_step

FAMILIES = pytest.mark.parametrize("family", ["gau", "decoder"])


def build(family, *, method="softmax", **changes):
    settings = base_config().model
    settings.update(hidden_size=16, intermediate_size=32, key_size=8, num_heads=2, family=family)
    settings.update(changes)
    return build_model(settings, read_methods(method, 8), vocab_size=13, seed=0)


def make_batch(batch, length):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(13, size=(batch, length)) for name in ("tokens", "targets")}
    arrays["predicted"] = np.tile(np.arange(length), (batch, 1))
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    return arrays | {"weights": jnp.ones((batch, length))}


def lowered_step(family, optimizer="adamw", **changes):
    settings = base_config().optimizer
    settings.name = optimizer
    model = build(family, **changes)
    made = make_optimizer(settings, optax.constant_schedule(0.1), kinds_of(model))
    state = jax.eval_shape(lambda: init_state(model, made))
    step = make_train_step(nnx.graphdef(model), made, seed=0, dropout=True)
    return step.lower(state, make_batch(2, 9), np.int32(1))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@FAMILIES
def test_depth_costs_little_compilation(family, optimizer):
    """Lines of the program, which is what takes time to compile; see benchmarks/depth.py."""
    shallow, deep = (
        len(lowered_step(family, optimizer, num_layers=depth, dropout=0.1).as_text().splitlines())
        for depth in (6, 24)
    )
    assert deep < 1.5 * shallow


@pytest.mark.parametrize(
    "how", [{"remat": True}, {"unroll": True}, {"remat": True, "unroll": True}], ids=" ".join
)
@FAMILIES
def test_neither_rematerialising_nor_unrolling_changes_a_gradient(family, how):
    """With dropout, whose masks are drawn anew, and a pattern of two methods."""

    def gradient(remat=False, unroll=False):
        sizes = {"num_layers": 4, "dropout": 0.3, "remat": remat}
        graphdef, state = nnx.split(build(family, method="softmax|lssa", **sizes))

        def loss(params):
            model, key = nnx.merge(graphdef, params), jax.random.key(0)
            figures = token_figures(model, make_batch(2, 11), dropout_key=key, unroll=unroll)
            return jnp.sum(figures.loss)

        return jax.jit(jax.grad(loss))(nnx.to_pure_dict(state))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        gradient(**how), gradient(),
    )  # fmt: skip


@FAMILIES
def test_a_step_scans_from_five_layers_on(family):
    loops = {
        n: lowered_step(family, num_layers=n).as_text().count("stablehlo.while") for n in (4, 5)
    }
    assert loops[5] > loops[4]


@FAMILIES
def test_rematerialisation_keeps_little_of_a_layer(family):
    """Temporaries that a layer adds to the gradient, at sizes where they are mostly activations."""
    batch = make_batch(4, 64)

    def bytes_of(depth, remat):
        graphdef, state = nnx.split(build(family, num_layers=depth, remat=remat))

        def loss(params):
            return jnp.sum(token_figures(nnx.merge(graphdef, params), batch).loss)

        compiled = jax.jit(jax.grad(loss)).lower(nnx.to_pure_dict(state)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept, lean = (bytes_of(12, remat) - bytes_of(3, remat) for remat in (False, True))
    assert lean < 0.25 * kept
    # No less than what enters a layer, [B, T, D] in float32: nine of them.
    assert lean >= 9 * 4 * 64 * 16 * 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("decay_mask", ["matrices", "no_embeddings", "all"])
@FAMILIES
def test_an_optimiser_does_to_each_layer_what_it_does_to_one_alone(family, name, decay_mask):
    """What decays, and which matrices are orthogonalised, is not for the axis of layers to say."""
    settings = base_config().optimizer
    settings.update(name=name, decay_mask=decay_mask, weight_decay=0.5, clip_norm=1e9)
    model = build(family, method="ssmax", num_layers=3)
    optimizer = make_optimizer(settings, optax.constant_schedule(0.1), kinds_of(model))
    params = nnx.to_pure_dict(nnx.state(model))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)

    @jax.jit
    def updates(grads, params):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    together = updates(grads, params)
    # Muon's iterations spread the last bits, in which programs of other shapes differ.
    near = {"rtol": 1e-3, "atol": 1e-4} if name == "muon" else {"rtol": 1e-5, "atol": 1e-6}
    for i in range(3):
        only = operator.itemgetter(slice(i, i + 1))
        alone = updates(*(t | {"layers": jax.tree.map(only, t["layers"])} for t in (grads, params)))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, **near),
            alone["layers"], jax.tree.map(only, together["layers"]),
        )  # fmt: skip
    # A gain by hand: Adam's first step is the rate, and a gain is no matrix.
    if name == "adamw":
        part = {"gau": "q_scale", "decoder": "mlp_norm"}[family]
        gain, slope, x = (tree["layers"][part]["scale"] for tree in (together, grads, params))
        decay = 0.05 * x if decay_mask == "all" else 0.0
        np.testing.assert_allclose(gain, -0.1 * jnp.sign(slope) - decay, rtol=1e-3)
