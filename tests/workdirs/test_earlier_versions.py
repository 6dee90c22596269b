"""Checkpoints as lenext 0.1 wrote them, with each layer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from lenext.config import read_methods
from lenext.data import ByteTokenizer
from lenext.errors import UserError
from lenext.models import build_model, kinds_of, named_parameters
from lenext.training import train
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state
from lenext.workdirs.checkpoints import Checkpoints
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.workdir import write_run_config
from tests.training.common import tiny_decoder_config


def as_it_was(model):
    """{"layers": {0: {…}, 1: {…}}, …}."""
    return traverse_util.unflatten_dict(
        {
            tuple(int(part) if part.isdecimal() else part for part in name.split(".")): x
            for name, x in named_parameters(model).items()
        }
    )


@pytest.fixture
def config(data_dir):
    config = tiny_decoder_config(data_dir)
    config.model.update(method="lssar|kerple_log|ssmax", num_layers=11)
    config.training.update(ema_decay=0.5, steps=4, eval_every=2, checkpoint_every=2)
    return config


@pytest.fixture
def written(config, tmp_path):
    """(model, workdir of its parameters, and of twice these as their average)."""
    methods = read_methods(config.model.method, config.data.train_length)
    model = build_model(config.model, methods, ByteTokenizer().vocab_size, seed=0)
    for i in range(11):
        name = "log_p" if i % 3 == 1 else "slope"
        if i % 3:
            axis = "position" if i % 3 == 1 else "temperature"
            model.layers.attention.set_learned(i, axis, name, jnp.full(2, float(i)))
    params = as_it_was(model)
    optimizer = make_optimizer(
        config.optimizer, make_schedule(config.optimizer, 2), kinds_of(model)
    )
    state = {
        "params": jax.tree.map(jnp.asarray, params),
        "optimizer": init_state(model, optimizer)["optimizer"],
        "ema": jax.tree.map(lambda x: jnp.asarray(2 * x), params),
    }
    write_run_config(tmp_path, config)
    with Checkpoints(tmp_path, best_metric=config.training.best_metric) as checkpoints:
        checkpoints.save(2, state, {}, {})
    return model, tmp_path


@pytest.mark.parametrize(("weights", "times"), [("params", 1), ("ema", 2)])
def test_are_read(written, weights, times):
    model, workdir = written
    read = load_run(workdir, weights=weights).model
    ours, theirs = named_parameters(read), named_parameters(model)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], times * x, err_msg=name)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(read))} == {jnp.dtype("float32")}


def test_of_another_shape_are_named(written):
    _, workdir = written
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 32', '"intermediate_size": 40'))
    with pytest.raises(UserError, match=r"parameter layers\.0\.mlp\.down_proj\.kernel is \[32, 16"):
        load_run(workdir)


def test_are_not_gone_on_with(written, config):
    _, workdir = written
    with pytest.raises(UserError, match=r"checkpoints/2: written by lenext 0\.1, each layer by it"):
        train(config, workdir)
