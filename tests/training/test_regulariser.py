"""The regulariser of heads' entropies: its figures by hand, its gradient, and runs that have it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.attention import RowStatistics
from lenext.config import base_config, read_methods
from lenext.errors import UserError
from lenext.models import attention_maps, build_model, token_figures
from lenext.training import train
from lenext.training.regulariser import EntropyRegulariser, penalty, rows_looked_at
from lenext.training.step import init_state, make_train_step
from tests.training.common import read_metrics, tiny_config
from tests.training.runs import assert_same_run, interruption

VOCABULARY, LENGTH, FACTOR = 11, 12, 0.7


def test_by_hand():
    """Two heads; rows of 1, 8 and 8 keys. ln 8 = 2.079: off by more than 0.2 of it counts."""
    most = np.log(8.0)
    entropy = np.array([[[0.0, 0.5 * most, 0.6 * most], [0.0, 0.9 * most, 0.0]]])[None]
    keys = np.array([1.0, 8.0, 8.0])[None, None, None].repeat(2, axis=2)
    zeros = jnp.zeros((1, 1, 2, 3))
    rows = RowStatistics(jnp.asarray(entropy), zeros, zeros, zeros, zeros, jnp.asarray(keys))
    found = penalty(rows, jnp.asarray([[0.5, 0.5]]))
    # Of six rows one is off by 0.4 ln 8 and one by 0.5 ln 8; 0.1 is let go.
    np.testing.assert_allclose(found, [(0.4**2 + 0.5**2) * most**2 / 6], rtol=1e-6)
    found = penalty(rows, jnp.asarray([[0.85, 0.5]]))  # now the first head's rows are off, too
    expected = (0.35**2 + 0.25**2 + 0.4**2 + 0.5**2) * most**2 / 6
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize(("length", "first", "last"), [(64, 1, 63), (5, 0, 4), (4096, 127, 4095)])
def test_rows_are_spread(length, first, last):
    rows = rows_looked_at(length)
    assert (rows[0], rows[-1], len(rows)) == (first, last, min(length, 32))
    assert np.ptp(np.diff(rows)) <= 1


@pytest.fixture(scope="module")
def model():
    settings = base_config().model
    settings.update(
        family="decoder", hidden_size=8, intermediate_size=12, key_size=4, num_layers=2,
        num_heads=2,
    )  # fmt: skip
    model = build_model(settings, read_methods("infoscale|windowed(window=5)", 8), VOCABULARY, 3)
    for path, x in nnx.to_flat_state(nnx.state(model)):
        x[...] = x[...] * (1 if "scale" in path else 25)
    return model


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(VOCABULARY, size=(4, LENGTH)) for _ in range(2))
    batch = {"tokens": tokens, "targets": targets}
    weights = rng.integers(2, size=(4, LENGTH))
    return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()} | {
        "weights": jnp.asarray(weights, jnp.float32)
    }


def by_maps(params, thresholds, graphdef, batch):
    """Loss and penalty from complete attention maps."""
    model = nnx.merge(graphdef, params)
    figures = token_figures(model, batch)
    loss = jnp.sum(figures.loss * batch["weights"]) / jnp.sum(batch["weights"])
    weights = attention_maps(model, batch["tokens"])  # [layers, B, N, T, T]
    logs = jnp.log(jnp.where(weights > 0, weights, 1.0))
    most = jnp.log(jnp.sum(weights > 0, axis=-1).astype(jnp.float32))
    delta = -jnp.sum(weights * logs, axis=-1) - thresholds[:, None, :, None] * most
    off = jnp.where(jnp.abs(delta) > 0.2 * most, delta**2, 0.0)
    return loss + FACTOR * jnp.mean(off), jnp.mean(off)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_goes_down_its_gradient(model, batch, accumulate):
    regulariser = EntropyRegulariser(FACTOR, optax.sgd(10.0))
    optimizer, graphdef = optax.sgd(0.1), nnx.graphdef(model)
    state = jax.tree.map(jnp.copy, init_state(model, optimizer, regulariser=regulariser))
    thresholds = jnp.asarray([[0.5, 0.9], [0.2, 0.5]])
    state["optimizer"]["entropy"]["thresholds"] = jnp.copy(thresholds)
    params = jax.tree.map(jnp.copy, state["params"])
    step = make_train_step(
        graphdef, optimizer, seed=0, dropout=False, accumulate=accumulate, regulariser=regulariser
    )
    after, metrics = step(state, batch, np.int32(1))
    (_, expected), grads = jax.value_and_grad(by_maps, (0, 1), has_aux=True)(
        params, thresholds, graphdef, batch
    )
    assert expected > 0.01
    np.testing.assert_allclose(metrics["entropy_penalty"], expected, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: (a - b) / 0.1, params, after["params"])
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(grads[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.max(np.abs(theirs)) + 1e-5)
    ours = (thresholds - after["optimizer"]["entropy"]["thresholds"]) / 10
    np.testing.assert_allclose(ours, grads[1], rtol=1e-4, atol=1e-6)
    assert np.any(grads[1])
    without = make_train_step(graphdef, optimizer, seed=0, dropout=False)
    plain = jax.tree.map(jnp.copy, init_state(model, optimizer))
    assert jax.tree.structure(plain) != jax.tree.structure(after)
    assert "entropy_penalty" not in without(plain, batch, np.int32(1))[1]


class TestRuns:
    @pytest.fixture
    def regularised(self, config):
        config.training.entropy_regulariser = 0.5
        return config

    def test_a_resumed_one_is_an_undisturbed_one(self, regularised, tmp_path):
        train(regularised, tmp_path / "whole")
        with interruption(8, "step"):
            train(regularised, tmp_path / "halved")
        train(regularised, tmp_path / "halved")
        assert_same_run(tmp_path / "halved", tmp_path / "whole")
        penalties = [x["entropy_penalty"] for x in read_metrics(tmp_path / "whole") if "loss" in x]
        assert len(penalties) > 3
        # Heads that attend to all alike, as at the start, are drawn from ln n down.
        assert penalties[-1] < penalties[0]

    def test_a_branch_keeps_its_thresholds(self, regularised, undisturbed, data_dir, tmp_path):
        branch = {"branch_from": str(undisturbed), "steps": 14}
        regularised.training.update(**branch)
        with pytest.raises(UserError, match=r"entropy_regulariser=0\.5: should be 0 as in"):
            train(regularised, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        config = tiny_config(data_dir)
        config.training.entropy_regulariser = 0.5
        train(config, tmp_path / "with")
        config.training.update(branch_from=str(tmp_path / "with"), steps=14)
        config.training.entropy_regulariser = 0.0
        with pytest.raises(UserError, match="entropy_regulariser=0: should be above 0 as in"):
            train(config, tmp_path / "without")
