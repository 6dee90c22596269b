"""What attention methods learn: where it starts, that it learns, and that it may be frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.attention import init_gates, init_params, make_method, method_names
from lenext.config import base_config, read_methods
from lenext.errors import UserError
from lenext.models import Place, build_model, kinds_of, named_parameters, places_of
from lenext.training import train
from lenext.training.optimizer import frozen_parameters, make_optimizer
from lenext.training.step import init_state, make_train_step
from tests.models.common import by_public_name
from tests.training.runs import saved_state

VOCABULARY = 11
TRAIN_LENGTH = 8
LENGTH = 13  # more, for laws that leave rows of up to the training length alone
LEARNED = "layers.*.attention.learned"
WIDTH = 5  # of a layer's input


def learned_by(name, train_length):
    method = make_method(name, train_length=train_length)
    of_input = init_gates(method, num_heads=3, width=WIDTH)
    gates = {f"{axis}_gates": params for axis, params in of_input.items()}
    return init_params(method, num_heads=3, head_dim=4) | gates


LEARNING = [name for name in method_names() if learned_by(name, TRAIN_LENGTH)]


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("train_length", [8, 512])
def test_starts_as_the_papers_say(name, train_length):
    log = np.log(train_length)
    # Values, or ranges that weights are drawn from. A method that learns should have its line.
    expected = {
        "ssmax": {"temperature.slope": [1 / log] * 3},
        "ssa": {"temperature.beta": 2.0, "temperature.query": np.zeros((3, 4))},
        "entropy_matched": {"temperature.slopes": np.full((3, 4), 2 / log)},
        "kerple_log": {"position.log_p": np.zeros(3), "position.log_a": np.zeros(3)},  # p = a = 1
        "softmax_sink": {"weighting.sink": np.zeros(3)},
        "t5_bias": {"position.table": np.zeros((32, 3))},
        "forgetting": {
            "position_gates.kernel": np.zeros((WIDTH, 3)), "position_gates.bias": [4.0] * 3,
        },
        "asentmax": {
            f"temperature_gates.{part}": np.zeros((WIDTH, 3)) for part in ("beta", "gamma")
        },
        "fire": {"position.c": 0.1, "position.threshold": 1.0},
    }[name]  # fmt: skip
    ranges = {"fire": {"inner": ((32,), 1), "inner_bias": ((32,), 1),
                       "outer": ((32, 3), 32**-0.5), "outer_bias": ((3,), 32**-0.5)}}  # fmt: skip
    parts = by_name(learned_by(name, train_length))
    for part, value in expected.items():
        np.testing.assert_allclose(parts.pop(part), value, rtol=1e-6)
    for part, (shape, bound) in ranges.get(name, {}).items():
        values = parts.pop(f"position.{part}")
        assert values.shape == shape
        assert 0 < np.max(np.abs(values)) < bound
    assert not parts


def test_kerple_is_drawn_as_its_authors_do():
    """p uniform from 0 to 2, a from 0 to 1, both at least 0.01; in a model each layer its own."""
    made = make_method("kerple_log", train_length=8)
    drawn = init_params(made, 20_000, 4, key=jax.random.key(0))["position"]
    for name, most in (("log_p", 2.0), ("log_a", 1.0)):
        values = np.exp(drawn[name])
        assert 0.0099 < values.min() < 0.0101
        np.testing.assert_allclose(values.mean(), most / 2, rtol=0.02)
        np.testing.assert_allclose(np.quantile(values, 0.9), 0.9 * most, rtol=0.02)
        assert most - 0.01 < values.max() < most
    assert abs(np.corrcoef(drawn["log_p"], drawn["log_a"])[0, 1]) < 0.05
    settings = base_config().model
    settings.update(family="decoder", num_layers=3, hidden_size=8, num_heads=2, key_size=4)
    methods = read_methods("kerple_log|softmax|nope/kerple_log", 8)
    first, again, other = (
        named_parameters(build_model(settings, methods, VOCABULARY, seed)) for seed in (0, 0, 1)
    )
    plain = named_parameters(build_model(settings, read_methods("softmax", 8), VOCABULARY, seed=0))
    learned = {name for name in first if ".learned." in name}
    assert len(learned) == 4
    assert len({float(np.ravel(first[name])[0]) for name in learned}) == 4
    for name, x in first.items():
        np.testing.assert_array_equal(again[name], x)
        if name in learned:
            assert np.all(other[name] != x)
        else:  # nothing else is drawn otherwise for it
            np.testing.assert_array_equal(plain[name], x)


class Stepped:
    """A model with a layer for each method, and what two steps make of it."""

    def __init__(self, family, methods, *, frozen="", **optimizer):
        settings = base_config()
        settings.model.update(
            family=family, hidden_size=8, intermediate_size=12, key_size=4, num_heads=2,
            num_layers=len(methods),
        )  # fmt: skip
        settings.optimizer.update(**optimizer)
        methods = read_methods("|".join(methods), TRAIN_LENGTH)
        model = build_model(settings.model, methods, VOCABULARY, seed=0)
        for path, kernel in nnx.to_flat_state(nnx.state(model)):
            if path[-1] == "kernel":  # or hardly a token would attend to any other
                kernel[...] = 3 * kernel[...]
        made = make_optimizer(settings.optimizer, optax.constant_schedule(0.01), kinds_of(model))
        state = init_state(model, made, average=True)
        places = places_of(model)
        mask = frozen_parameters(frozen, places)
        step = make_train_step(
            nnx.graphdef(model), made, seed=0, dropout=False, ema_decay=0.5, frozen=mask
        )
        rng = np.random.default_rng(0)
        batch = {
            "tokens": rng.integers(VOCABULARY, size=(4, LENGTH)).astype(np.int32),
            "targets": rng.integers(VOCABULARY, size=(4, LENGTH)).astype(np.int32),
            "weights": np.ones((4, LENGTH), np.float32),
        }
        if family == "gau":
            batch["predicted"] = np.tile(np.arange(LENGTH, dtype=np.int32), (4, 1))
        self.places = places
        self.frozen = {name for name, stays in by_public_name(mask, places).items() if stays}
        self.before = by_public_name(jax.tree.map(jnp.copy, state["params"]), places)
        state, metrics = step(state, batch, np.int32(1))
        self.norm = float(metrics["grad_norm"])
        self.memory = by_name(jax.tree.map(jnp.copy, state["optimizer"]))
        state, _ = step(state, batch, np.int32(2))
        self.after = by_public_name(state["params"], places)
        self.average = by_public_name(state["ema"], places)

    def momentum(self):
        """Adam's or Lion's after the first step, by parameter."""
        found = {name.split(".mu.")[1]: x for name, x in self.memory.items() if ".mu." in name}
        return {
            name: found[".".join(map(str, path))][index]
            for name, (path, index) in self.places.items()
            if ".".join(map(str, path)) in found
        }

    def moved(self):
        return {name for name, x in self.before.items() if np.any(self.after[name] != x)}


@pytest.mark.parametrize("family", ["gau", "decoder"])
def test_all_that_methods_learn_has_a_gradient_and_moves(family):
    causal_only = [name for name in LEARNING if make_method(name, train_length=8).causal_only]
    learning = [name for name in LEARNING if family != "gau" or name not in causal_only]
    run = Stepped(family, learning)
    parts = {name for name in run.before if ".learned." in name}
    assert {name.split(".")[1] for name in parts} == {str(i) for i in range(len(learning))}
    assert parts <= run.moved()
    sizes = {name: np.max(np.abs(x)) for name, x in run.momentum().items()}
    for name in parts:
        layer = name.split(".learned.")[0]
        share = sizes[name] / max(sizes[other] for other in parts if other.startswith(f"{layer}."))
        if name.endswith("outer_bias"):
            # One number for all keys of a row, which softmax does not see: no more than rounding.
            assert share < 1e-5
        else:
            assert sizes[name] > 0
            assert share > 1e-5, name


@pytest.fixture(scope="module")
def unfrozen():
    return Stepped("gau", ["ssmax"], name="lion", clip_norm=1e9)


PATTERNS = f"{LEARNED}, word_embedding, layers.0.q_scale.scale"


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_frozen_parameters_stay_and_do_not_count(unfrozen, name):
    settings = {"name": name, "weight_decay": 0.5, "decay_mask": "all", "clip_norm": 0.01}
    run = Stepped("gau", ["ssmax"], frozen=PATTERNS, **settings)
    assert run.frozen == {
        "layers.0.attention.learned.temperature.slope",
        "layers.0.q_scale.scale",
        "word_embedding.embedding",
    }
    assert run.moved() == run.before.keys() - run.frozen
    for path in run.frozen:
        np.testing.assert_array_equal(run.average[path], run.before[path])

    # Lion's momentum after a step is 0.02 of the gradient, of which nothing is clipped here.
    gradient = {path: x / 0.02 for path, x in unfrozen.momentum().items()}
    assert unfrozen.norm == pytest.approx(norm(gradient.values()), rel=1e-4)
    others = {path: x for path, x in gradient.items() if path not in run.frozen}
    assert run.norm == pytest.approx(norm(others.values()), rel=1e-4)
    assert run.norm < 0.9 * unfrozen.norm
    if name != "muon":  # which has momenta in two places
        share = {"adamw": 0.1, "lion": 0.02}[name]
        for path, x in run.momentum().items():
            expected = 0.0 if path in run.frozen else share * gradient[path] * 0.01 / run.norm
            np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-9)


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays))


def test_a_decoders_are_frozen_by_the_same_pattern():
    run = Stepped("decoder", ["kerple_log"], frozen=LEARNED)
    place = "layers.0.self_attention.attention.learned.position"
    assert run.frozen == {f"{place}.log_a", f"{place}.log_p"}
    assert run.moved() == run.before.keys() - run.frozen


STACKED = {
    "attention.learned.position.c": ("layers", "attention", "learned", 0, "position", "c"),
    "mlp.bias": ("layers", "mlp", "bias"),
    "mlp.kernel": ("layers", "mlp", "kernel"),
}
PLACES = (
    {"embedding.embedding": Place(("embedding", "embedding"), ...)}
    | {
        f"layers.{layer}.{name}": Place(path, row)
        for name, path in STACKED.items()
        for row, layer in enumerate((0, 1, 10))
    }
    | {"norm.scale": Place(("norm", "scale"), ...)}
)


@pytest.mark.parametrize(
    ("patterns", "fitting"),
    [
        ("", set()),
        ("embedding", {"embedding.embedding"}),
        ("norm.scale,", {"norm.scale"}),
        ("layers.1.mlp", {"layers.1.mlp.kernel", "layers.1.mlp.bias"}),
        ("layers.1*.mlp.bias", {"layers.1.mlp.bias", "layers.10.mlp.bias"}),
        ("*.c", {f"layers.{i}.attention.learned.position.c" for i in (0, 1, 10)}),
        (" *.1.*.c , layers.0.mlp.k*",
         {"layers.1.attention.learned.position.c", "layers.0.mlp.kernel"}),
        ("*", set(PLACES)),
        ("*,!layers", {"embedding.embedding", "norm.scale"}),
        ("*,!norm,norm.scale", set(PLACES)),
        ("!norm.scale", set()),
    ],
)  # fmt: skip
def test_patterns_fit_paths_and_their_first_parts(patterns, fitting):
    found = by_public_name(frozen_parameters(patterns, PLACES), PLACES)
    assert {name for name, stays in found.items() if stays} == fitting


@pytest.mark.parametrize("pattern", ["layers.2", "layer", "Norm", "learned", "mlp.kernel"])
def test_a_pattern_that_fits_nothing_is_named(pattern):
    with pytest.raises(UserError) as error:
        frozen_parameters(f"norm, {pattern}", PLACES)
    assert str(error.value) == (
        f"config.optimizer.frozen: {pattern!r} fits no parameter; there are embedding.embedding, "
        "layers.*.attention.learned.position.c, layers.*.mlp.bias, layers.*.mlp.kernel, norm.scale"
    )


class TestRuns:
    def test_of_patterns_that_fit_nothing_leave_nothing(self, config, tmp_path):
        config.optimizer.frozen = LEARNED  # softmax learns nothing
        with pytest.raises(UserError, match=r"learned' fits no parameter; there are layers\.\*\."):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_may_freeze_what_their_origin_learned(self, config, tmp_path):
        config.model.method = "ssmax"
        config.optimizer.schedule = "linear"
        config.training.update(steps=3, eval_every=3, checkpoint_every=3)
        train(config, tmp_path / "origin")
        config.optimizer.frozen = LEARNED
        config.training.update(
            branch_from=str(tmp_path / "origin"), steps=5, eval_every=5, checkpoint_every=5
        )
        train(config, tmp_path / "branch")
        before, after = (
            by_name(saved_state(tmp_path / name, step)[0]["params"])
            for name, step in (("origin", 3), ("branch", 5))
        )
        for path, x in before.items():
            assert np.all(after[path] == x) == (".learned." in path), path
            if ".learned." in path:
                assert np.all(x != np.float32(1 / np.log(16)))
