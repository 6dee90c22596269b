"""Training where JAX's default types are 64 bits wide is training as it was."""

import jax
import numpy as np
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model, kinds_of
from lenext.training import train
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state, make_train_step
from tests.attention.test_x64 import wide_arrays
from tests.training.common import read_metrics


def test_a_run_is_the_same(undisturbed, config, tmp_path):
    """Its data, initial values, steps and validations.

    Not to the bit: Optax computes learning rates in float64 there, before they are rounded.
    """
    with jax.enable_x64(True):
        train(config, tmp_path)
    ours, theirs = read_metrics(tmp_path), read_metrics(undisturbed)
    assert len(ours) == len(theirs) == config.training.steps
    for record, expected in zip(ours, theirs, strict=True):
        assert record == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_steps_hold_no_wide_arrays(name):
    """With all that a step may have besides: micro-batches, z-loss, and averaged parameters."""
    config = base_config()
    config.model.update(hidden_size=8, intermediate_size=12, key_size=4, num_layers=2)
    config.optimizer.name = name
    model = build_model(config.model, read_methods("softmax", 7), 11, seed=3)
    schedule = make_schedule(config.optimizer, 100)
    optimizer = make_optimizer(config.optimizer, schedule, kinds_of(model))
    step = make_train_step(
        nnx.graphdef(model), optimizer, seed=0, dropout=False, accumulate=2, z_loss=1e-4,
        ema_decay=0.9,
    )  # fmt: skip
    state = init_state(model, optimizer, average=True)
    tokens, places = np.ones((4, 7), np.int32), np.ones((4, 2), np.int32)
    batch = {"tokens": tokens, "predicted": places, "targets": places}
    batch |= {"weights": np.ones((4, 2), np.float32)}
    assert wide_arrays(step, state, batch, np.int32(1)) == []
