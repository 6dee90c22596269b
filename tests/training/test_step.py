import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model, kinds_of
from lenext.training.optimizer import make_optimizer
from lenext.training.step import init_state, make_train_step

VOCABULARY = 11
RATE = 0.1


@pytest.fixture
def settings():
    settings = base_config().model
    settings.update(hidden_size=8, intermediate_size=12, key_size=4, num_layers=2)
    return settings


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(VOCABULARY, size=(3, 7)).astype(np.int32),
        "predicted": np.array([[0, 3], [2, 6], [1, 5]], np.int32),
        "targets": rng.integers(VOCABULARY, size=(3, 2)).astype(np.int32),
        "weights": np.array([[1, 1], [1, 0], [1, 1]], np.float32),
    }


def make(settings, seed=0, rate=RATE):
    """(step, state, graphdef) of a fresh model."""
    model = build_model(settings, read_methods("softmax", 7), VOCABULARY, seed=3)
    optimizer = make_optimizer(
        base_config().optimizer, optax.constant_schedule(rate), kinds_of(model)
    )
    graphdef = nnx.graphdef(model)
    step = make_train_step(graphdef, optimizer, seed=seed, dropout=settings.dropout > 0)
    return step, init_state(model, optimizer), graphdef


def plain_loss(params, graphdef, batch):
    """Cross-entropy of the targets, from probabilities over all tokens."""
    probabilities = jax.nn.softmax(nnx.merge(graphdef, params)(jnp.asarray(batch["tokens"])))
    rows = np.arange(len(batch["tokens"]))[:, None]
    chosen = probabilities[rows, batch["predicted"], batch["targets"]]
    return -jnp.sum(batch["weights"] * jnp.log(chosen)) / np.sum(batch["weights"])


def test_a_step_is_optax_on_the_gradient_of_the_loss(settings, batch):
    step, state, graphdef = make(settings)
    params = jax.tree.map(jnp.copy, state["params"])
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            RATE, b1=0.9, b2=0.98, weight_decay=0.01,
            mask=lambda tree: jax.tree_util.tree_map_with_path(
                lambda path, _: path[-1].key in ("kernel", "embedding"), tree
            ),
        ),
    )  # fmt: skip
    memory = optimizer.init(params)
    slope = jax.jit(lambda params: jax.value_and_grad(plain_loss)(params, graphdef, batch))
    for number in (1, 2, 3):
        loss, grads = slope(params)
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        state, metrics = step(state, batch, np.int32(number))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
        updates, memory = optimizer.update(grads, memory, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params)))
        np.testing.assert_allclose(metrics["param_norm"], norm, rtol=1e-4)
        # Adam divides by the gradient's own size: where that is rounding, so is the update.
        for ours, theirs in zip(*map(jax.tree.leaves, (state["params"], params)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert jax.tree.structure(state["params"]) == jax.tree.structure(params)


def test_the_metrics_are_of_the_batch_before_the_update(settings, batch):
    step, state, graphdef = make(settings)
    params = jax.tree.map(jnp.copy, state["params"])
    _, metrics = step(state, batch, np.int32(1))
    logits = np.asarray(nnx.merge(graphdef, params)(jnp.asarray(batch["tokens"])))
    guesses = np.take_along_axis(logits.argmax(-1), batch["predicted"], axis=1)
    hits = (guesses == batch["targets"]) * batch["weights"]
    assert float(metrics["accuracy"]) == pytest.approx(hits.sum() / 5)
    assert {name: x.dtype for name, x in metrics.items()} == dict.fromkeys(
        ("loss", "accuracy", "grad_norm", "param_norm"), jnp.float32
    )


def test_tokens_of_no_weight_do_not_count(settings, batch):
    step, state, _ = make(settings)
    other = {**batch, "targets": batch["targets"].copy()}
    other["targets"][1, 1] = (other["targets"][1, 1] + 1) % VOCABULARY
    _, metrics = step(jax.tree.map(jnp.copy, state), batch, np.int32(1))
    _, others = step(state, other, np.int32(1))
    assert metrics == others


def test_a_batch_without_targets_gives_no_gradient(settings, batch):
    step, state, _ = make(settings)
    _, metrics = step(state, {**batch, "weights": np.zeros((3, 2), np.float32)}, np.int32(1))
    assert metrics.pop("param_norm") > 0
    assert set(map(float, metrics.values())) == {0.0}
    assert metrics.keys() == {"loss", "accuracy", "grad_norm"}


def test_steps_bring_the_loss_down(settings, batch):
    step, state, _ = make(settings, rate=0.02)
    losses = []
    for number in range(40):
        state, metrics = step(state, batch, np.int32(number))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.3)
    assert losses[-1] < 0.3 * losses[0]


class TestDropout:
    @pytest.fixture
    def loss(self, settings, batch):
        """Returns the loss of a fresh model at a step number."""

        def loss(step_number, *, seed=0, rate=0.5):
            settings.dropout = rate
            step, state, _ = make(settings, seed=seed)
            return float(step(state, batch, np.int32(step_number))[1]["loss"])

        return loss

    def test_follows_from_seed_and_step(self, loss):
        assert loss(5) == loss(5)
        assert loss(5) != loss(6)
        assert loss(5) != loss(5, seed=1)

    def test_is_off_at_rate_0(self, loss):
        assert loss(5, rate=0.0) == loss(6, rate=0.0, seed=1)
        assert loss(5, rate=0.0) != loss(5)


def test_bfloat16_keeps_parameters_and_metrics_in_float32(settings, batch):
    _, metrics = make(settings)[0](make(settings)[1], batch, np.int32(1))
    settings.dtype = "bfloat16"
    step, state, _ = make(settings)
    state, rough = step(state, batch, np.int32(1))
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (jnp.float32, jnp.int32)  # int32 is the optimiser's count
    for name in metrics:
        assert rough[name].dtype == jnp.float32
    assert float(rough["loss"]) != float(metrics["loss"])
    assert float(rough["loss"]) == pytest.approx(float(metrics["loss"]), rel=0.02)
