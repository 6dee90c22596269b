import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.errors import UserError
from lenext.models import build_model, kinds_of
from lenext.training import validate
from lenext.training.optimizer import DECAY_MASKS, OPTIMIZERS, make_optimizer, make_schedule


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


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 4), (2, 100), (5, 0), (1, 0)])
def test_schedule_of_short_runs(settings, steps, warmup, schedule):
    settings.update(warmup_steps=warmup, schedule=schedule)
    taken = make_schedule(settings, steps=steps)
    rates = [float(taken(step)) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(0.8)
    assert min(rates[:-1]) > 0
    assert rates[-1] == pytest.approx(0.0, abs=1e-7)


def test_adamw_by_hand(settings):
    settings.update(weight_decay=0.1, clip_norm=2.0, b1=0.9, b2=0.98)
    rates = [0.5, 0.25, 0.125]
    optimizer = make_optimizer(settings, lambda step: jnp.asarray(rates)[step], KINDS)
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
    optimizer = make_optimizer(settings, make_schedule(settings, steps=12), KINDS)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "gain": jnp.ones(())}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.2 * 0.1 * np.ones((2, 3)), rtol=1e-6)
    assert not np.any(updates["bias"])
    assert not np.any(updates["gain"])


def test_clipping_is_by_the_norm_of_all_gradients_together(settings):
    settings.clip_norm = 0.5
    optimizer = make_optimizer(settings, make_schedule(settings, steps=12), KINDS)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    # 0.1 of the gradient, which is scaled from norm 50 to 0.5.
    np.testing.assert_allclose(first_moment["a"], [0.03], rtol=1e-6)
    np.testing.assert_allclose(first_moment["b"], [0.04], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "decay", "rates"),
    [
        ("linear", 7, {0: 0.2, 1: 0.35, 3: 0.65, 4: 0.8, 5: 0.7, 8: 0.4, 11: 0.1, 12: 0.0}),
        ("wsd", 4, {0: 0.2, 1: 0.35, 4: 0.8, 6: 0.8, 8: 0.8, 9: 0.6, 11: 0.2, 12: 0.0}),
        ("wsd", 8, {0: 0.2, 4: 0.8, 5: 0.7, 11: 0.1, 12: 0.0}),
        ("wsd", 0, {0: 0.2, 4: 0.8, 11: 0.8, 12: 0.8, 99: 0.8}),
    ],
)
def test_linear_schedules_by_hand(settings, schedule, decay, rates):
    settings.update(schedule=schedule, decay_steps=decay)
    ours = make_schedule(settings, steps=12)
    for step, rate in rates.items():
        assert float(ours(step)) == pytest.approx(rate, abs=1e-6), step


def test_runs_of_other_lengths_share_what_is_before_their_decay(settings):
    settings.update(schedule="wsd", decay_steps=0)
    stable = make_schedule(settings, steps=90)
    settings.decay_steps = 5
    ours = make_schedule(settings, steps=30)
    assert [float(ours(step)) for step in range(26)] == [float(stable(step)) for step in range(26)]
    assert float(ours(26)) < float(stable(26))


def some_params():
    """Parameters named as the models name them, and what attention methods may learn."""
    rng = np.random.default_rng(1)

    def values(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = {  # one of them
        "i_dense": {"kernel": values(1, 16, 40), "bias": values(1, 40)},
        "mlp": {"down_proj": {"kernel": values(1, 24, 16)}},
        "q_scale": {"scale": values(1, 8)},
        "attention": {
            "learned": {"position": {"kernel": values(1, 3, 4), "table": values(1, 2, 3, 4)}}
        },
    }
    return {
        "word_embedding": {"embedding": values(11, 16)},
        "layers": layers,
        "head": {"kernel": values(16, 11)},
        "gain": values(),
    }


KINDS = {
    "layers.i_dense.kernel": "matrix",
    "layers.mlp.down_proj.kernel": "matrix",
    "word_embedding.embedding": "embedding",
    "head.kernel": "head",
}
"""What of these says what it is; the rest are gains, biases, and what methods learn."""


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


VECTORS = {"layers.i_dense.bias", "layers.q_scale.scale", "gain"}


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize(
    ("mask", "spared"),
    [
        ("matrices", VECTORS),
        ("no_embeddings", VECTORS | {"word_embedding.embedding"}),
        ("all", set()),
    ],
)
def test_what_decays(settings, name, mask, spared):
    settings.update(name=name, decay_mask=mask, weight_decay=0.1)
    optimizer = make_optimizer(settings, lambda step: jnp.asarray([0.5, 0.25])[step], KINDS)
    params = some_params()
    memory = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for rate in (0.5, 0.25):
        updates, memory = optimizer.update(zeros, memory, params)
        for path, x in by_name(params).items():
            expected = 0.0 * x if path in spared else -rate * 0.1 * x
            np.testing.assert_allclose(by_name(updates)[path], expected, rtol=1e-6, err_msg=path)


def test_lion_by_hand(settings):
    settings.update(name="lion", weight_decay=0.1, b1=0.9, b2=0.98, clip_norm=1.0)
    rates = [0.5, 0.25, 0.125]
    optimizer = make_optimizer(settings, lambda step: jnp.asarray(rates)[step], KINDS)
    rng = np.random.default_rng(0)
    x, momentum = rng.normal(size=(3, 4)), np.zeros((3, 4))
    ours = {"kernel": jnp.asarray(x, jnp.float32)}
    state = optimizer.init(ours)
    for rate in rates:
        g = rng.normal(size=x.shape)
        updates, state = optimizer.update({"kernel": jnp.asarray(g, jnp.float32)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        g *= min(1.0, 1.0 / np.linalg.norm(g))
        x = x - rate * (np.sign(0.9 * momentum + 0.1 * g) + 0.1 * x)
        momentum = 0.98 * momentum + 0.02 * g
        np.testing.assert_allclose(ours["kernel"], x, rtol=1e-5, atol=1e-5)


class TestMuon:
    @pytest.fixture
    def updates(self, settings):
        """(gradients, first updates at a rate of 0.5) by name."""
        settings.update(name="muon", clip_norm=1e9)
        optimizer = make_optimizer(settings, optax.constant_schedule(0.5), KINDS)
        params = some_params()
        rng = np.random.default_rng(2)
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        # Far from orthogonal: its singular values fall from 10 to 0.5.
        u, _, v = np.linalg.svd(np.asarray(grads["layers"]["i_dense"]["kernel"][0]), False)
        steep = u @ np.diag(np.geomspace(10.0, 0.5, 16)) @ v
        grads["layers"]["i_dense"]["kernel"] = jnp.asarray(steep, jnp.float32)[None]
        out, _ = optimizer.update(grads, optimizer.init(params), params)
        return by_name(grads), by_name(out)

    @pytest.mark.parametrize(
        ("name", "longer"),
        [("layers.i_dense.kernel", 40), ("layers.mlp.down_proj.kernel", 24)],
    )
    def test_makes_matrices_orthogonal(self, updates, name, longer):
        grads, out = (np.asarray(trees[name])[0] for trees in updates)
        values = np.linalg.svd(out, compute_uv=False) / (0.5 * 0.2 * np.sqrt(longer))
        # Five Newton-Schulz steps bring them to about 1, not to it (Jordan 2024: 0.7 to 1.2).
        assert 0.65 < values.min() < values.max() < 1.25
        # As long as Adam's steps, whatever the shape.
        assert np.sqrt(np.mean(out**2)) == pytest.approx(0.5 * 0.2, rel=0.2)
        # Downhill, in the gradient's own directions.
        u, _, v = np.linalg.svd(grads, full_matrices=False)
        turned = u.T @ -out @ v.T
        assert np.all(np.diag(turned) > 0)
        assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-4

    def test_leaves_all_else_to_adam(self, updates):
        grads, out = updates
        muon = {"layers.i_dense.kernel", "layers.mlp.down_proj.kernel"}
        for name in out.keys() - muon:
            # Adam's first step, its bias corrected: a sign.
            np.testing.assert_allclose(out[name], -0.5 * np.sign(grads[name]), rtol=1e-4)
        assert len(out) == 9

    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            ("gau", "i_dense o_dense"),
            ("decoder", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ],
    )
    def test_takes_the_layers_matrices_of_models(self, settings, family, expected):
        model = base_config().model
        model.update(family=family, tied_head=False, qk_norm=True, num_layers=1)
        methods = read_methods("ssmax", 8)
        abstract = nnx.eval_shape(lambda: build_model(model, methods, 11, 0))
        params = nnx.to_pure_dict(nnx.state(abstract))
        settings.name = "muon"
        state = jax.eval_shape(
            make_optimizer(settings, optax.constant_schedule(0.1), kinds_of(abstract)).init, params
        )
        momenta = [name for name in by_name(state) if ".muon.inner_state.0.mu." in name]
        assert {name.split(".")[-2] for name in momenta} == set(expected.split())
        assert {name.split(".")[-1] for name in momenta} == {"kernel"}


@pytest.mark.parametrize(
    ("key", "names"),
    [("name", OPTIMIZERS), ("decay_mask", DECAY_MASKS), ("schedule", ["cosine", "linear", "wsd"])],
)
def test_a_config_may_name_what_there_is_and_nothing_else(key, names):
    config = base_config()
    for name in names:
        config.optimizer[key] = name
        validate(config)
    config.optimizer[key] = "best"
    with pytest.raises(UserError) as error:
        validate(config)
    choices = ", ".join(names)
    assert str(error.value) == f"config.optimizer.{key}='best': should be one of {choices}"
