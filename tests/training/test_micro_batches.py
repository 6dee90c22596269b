"""What a step adds to the loss and how it may be cut: micro-batches, the z-loss, the average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model
from lenext.training.step import average_parameters, init_state, make_train_step

VOCABULARY = 11


@pytest.fixture(scope="module")
def model():
    settings = base_config().model
    settings.update(hidden_size=8, intermediate_size=12, key_size=4, num_layers=2)
    return build_model(settings, read_methods("softmax", 7), VOCABULARY, seed=3)


@pytest.fixture(scope="module")
def batch():
    """Packed rows, one of them nearly empty: micro-batches weigh 1 to 10 tokens."""
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(VOCABULARY, size=(8, 7)).astype(np.int32),
        "segment_ids": np.sort(rng.integers(3, size=(8, 7)), axis=1).astype(np.int32),
        "predicted": np.stack([rng.permutation(7)[:3] for _ in range(8)]).astype(np.int32),
        "targets": rng.integers(VOCABULARY, size=(8, 3)).astype(np.int32),
        "weights": (np.arange(3) < np.array([3, 0, 1, 2, 3, 1, 0, 3])[:, None]).astype(np.float32),
    }


def take_step(model, batch, *, dropout=False, **options):
    """(gradient, metrics) of a step, the gradient as what gradient descent at rate 1 takes off."""
    optimizer = optax.sgd(1.0)
    step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=dropout, **options)
    state = init_state(model, optimizer)
    # A copy: steps donate their state, and the model is others' too.
    after, metrics = step(jax.tree.map(jnp.copy, state), batch, np.int32(1))
    gradient = jax.tree.map(jnp.subtract, state["params"], after["params"])
    return gradient, {name: float(x) for name, x in metrics.items()}


def assert_close(ours, theirs, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), ours, theirs)


def expected_objective(model, batch, z_loss):
    """Its value and gradient, from all logits of all rows at once."""
    graphdef, _ = nnx.split(model)

    def objective(params):
        rebuilt = nnx.merge(graphdef, params)
        hidden, _ = rebuilt.encode(
            jnp.asarray(batch["tokens"]), segment_ids=jnp.asarray(batch["segment_ids"])
        )
        rows = np.arange(8)[:, None]
        logits = rebuilt.logits(hidden)[rows, batch["predicted"]]
        log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
        chosen = jnp.take_along_axis(logits, batch["targets"][:, :, None], axis=-1)[:, :, 0]
        terms = log_z - chosen + z_loss * log_z**2
        return jnp.sum(batch["weights"] * terms) / np.sum(batch["weights"])

    return jax.jit(jax.value_and_grad(objective))(nnx.to_pure_dict(nnx.state(model)))


@pytest.mark.parametrize(("accumulate", "z_loss"), [(2, 0.3), (8, 0.0)])
def test_micro_batches_make_up_the_batch(model, batch, accumulate, z_loss):
    whole_gradient, whole = take_step(model, batch, z_loss=z_loss)
    gradient, metrics = take_step(model, batch, accumulate=accumulate, z_loss=z_loss)
    assert metrics == pytest.approx(whole, abs=1e-6)
    assert_close(gradient, whole_gradient, atol=1e-6)
    value, expected = expected_objective(model, batch, z_loss)
    total = metrics["loss"] + z_loss * metrics.get("z_loss", 0.0)
    assert total == pytest.approx(float(value), abs=2e-6)
    assert_close(gradient, expected, atol=1e-6)


def test_micro_batches_without_targets_do_no_harm(model, batch):
    empty = batch | {"weights": np.zeros((8, 3), np.float32)}
    gradient, metrics = take_step(model, empty, accumulate=4, z_loss=0.5)
    assert {x for name, x in metrics.items() if name != "param_norm"} == {0.0}
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_z_loss_by_hand(model, batch):
    _, metrics = take_step(model, batch, z_loss=0.3)
    hidden, _ = model.encode(
        jnp.asarray(batch["tokens"]), segment_ids=jnp.asarray(batch["segment_ids"])
    )
    table = np.asarray(model.word_embedding.embedding[...], np.float64)
    logits = np.asarray(hidden, np.float64) @ table.T
    squares = np.log(np.exp(logits).sum(-1))[np.arange(8)[:, None], batch["predicted"]] ** 2
    expected = (squares * batch["weights"]).sum() / batch["weights"].sum()
    assert metrics["z_loss"] == pytest.approx(expected, rel=1e-6)
    # The loss stays the plain cross-entropy, and says nothing of what is off.
    plain = take_step(model, batch)[1]
    assert metrics["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert plain.keys() == {"loss", "accuracy", "grad_norm", "param_norm"}


def test_dropout_differs_between_micro_batches(batch):
    """Two rows alike, one in either micro-batch: under one mask they would have one loss."""
    settings = base_config().model
    settings.update(hidden_size=8, intermediate_size=12, key_size=4, num_layers=1, dropout=0.5)
    model = build_model(settings, read_methods("softmax", 7), VOCABULARY, seed=3)
    alike = {name: np.repeat(x[:1], 2, axis=0) for name, x in batch.items()}
    losses = set()
    for weights in ([1, 0], [0, 1]):
        chosen = alike | {"weights": np.float32(weights)[:, None] * np.ones((2, 3), np.float32)}
        losses.add(take_step(model, chosen, accumulate=2, dropout=True)[1]["loss"])
    assert len(losses) == 2


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_average_by_hand(decay):
    """Against the sum that defines it, in float64; the initial value has no part in it."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(6, 2, 3))
    average = {"kernel": jnp.full((2, 3), 1e3)}
    for step, x in enumerate(seen, 1):
        params = {"kernel": jnp.asarray(x, jnp.float32)}
        average = average_parameters(average, params, decay, jnp.int32(step))
        weights = decay ** np.arange(step - 1, -1, -1.0)
        expected = np.tensordot(weights / weights.sum(), seen[:step], axes=1)
        # The first share is 1 but for rounding, which 1e3 shows.
        np.testing.assert_allclose(average["kernel"], expected, atol=3e-4)


def test_the_state_averages_what_the_step_leaves(model, batch):
    optimizer = optax.sgd(0.5)
    step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=False, ema_decay=0.8)
    state = jax.tree.map(jnp.copy, init_state(model, optimizer, average=True))
    mean, total = 0.0, 0.0
    for number in range(1, 5):
        state, _ = step(state, batch, np.int32(number))
        kernel = np.asarray(state["params"]["layers"]["i_dense"]["kernel"], np.float64)
        mean, total = 0.8 * mean + kernel, 0.8 * total + 1
        ours = state["ema"]["layers"]["i_dense"]["kernel"]
        np.testing.assert_allclose(ours, mean / total, atol=1e-6)
