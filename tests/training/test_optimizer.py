import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lenext.config import base_config
from lenext.training.optimizer import make_optimizer, make_schedule


@pytest.fixture
def settings():
    settings = base_config().optimizer
    settings.update(learning_rate=0.8, warmup_steps=4, weight_decay=0.0, clip_norm=1.0)
    return settings


def test_schedule_by_hand(settings):
    schedule = make_schedule(settings, steps=12)
    # Warm-up from a quarter of the peak, in equal parts, then half a cosine over eight steps.
    rates = {0: 0.2, 1: 0.35, 2: 0.5, 4: 0.8, 6: 0.4 + 0.4 * np.sqrt(0.5), 8: 0.4, 12: 0.0}
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step


def test_schedule_never_rises_after_the_warm_up(settings):
    rates = [float(make_schedule(settings, steps=12)(step)) for step in range(13)]
    assert np.all(np.diff(rates[:5]) > 0)
    assert np.all(np.diff(rates[4:]) < 0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 4), (2, 100), (5, 0), (1, 0)])
def test_schedule_of_short_runs(settings, steps, warmup):
    settings.warmup_steps = warmup
    schedule = make_schedule(settings, steps=steps)
    rates = [float(schedule(step)) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(0.8)
    assert min(rates[:-1]) > 0
    assert rates[-1] == pytest.approx(0.0, abs=1e-7)


def test_adamw_by_hand(settings):
    settings.update(weight_decay=0.1, clip_norm=2.0, b1=0.9, b2=0.98)
    rates = [0.5, 0.25, 0.125]
    optimizer = make_optimizer(settings, lambda step: jnp.asarray(rates)[step])
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)), "scale": rng.normal(size=4)}
    ours = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    state = optimizer.init(ours)
    first = {name: np.zeros_like(x) for name, x in params.items()}
    second = {name: np.zeros_like(x) for name, x in params.items()}
    for step, size in enumerate([10.0, 0.01, 1.0]):  # above the norm that is clipped, and below
        grads = {name: size * rng.normal(size=x.shape) for name, x in params.items()}
        given = {name: jnp.asarray(x, jnp.float32) for name, x in grads.items()}
        updates, state = optimizer.update(given, state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        for name, x in params.items():
            g = grads[name] * min(1.0, 2.0 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * g**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            square = second[name] / (1 - 0.98 ** (step + 1))
            decay = 0.1 * x if name == "kernel" else 0.0  # matrices only
            params[name] = x - rates[step] * (mean / (np.sqrt(square) + 1e-8) + decay)
        for name in params:
            np.testing.assert_allclose(ours[name], params[name], rtol=2e-5, atol=2e-5)


def test_weight_decay_hits_matrices_only(settings):
    settings.weight_decay = 0.1
    optimizer = make_optimizer(settings, make_schedule(settings, steps=12))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "gain": jnp.ones(())}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.2 * 0.1 * np.ones((2, 3)), rtol=1e-6)
    assert not np.any(updates["bias"])
    assert not np.any(updates["gain"])


def test_clipping_is_by_the_norm_of_all_gradients_together(settings):
    settings.clip_norm = 0.5
    optimizer = make_optimizer(settings, make_schedule(settings, steps=12))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    # 0.1 of the gradient, which is scaled from norm 50 to 0.5.
    np.testing.assert_allclose(first_moment["a"], [0.03], rtol=1e-6)
    np.testing.assert_allclose(first_moment["b"], [0.04], rtol=1e-6)
