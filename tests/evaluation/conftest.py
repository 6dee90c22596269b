"""Runs of a few steps to evaluate."""

import pytest

from lenext.training import train
from tests.training.common import tiny_config


@pytest.fixture(scope="package")
def trained(data_dir, tmp_path_factory):
    """Returns a maker of workdirs, one a method, each trained once."""
    workdirs = {}

    def make(method="softmax"):
        if method not in workdirs:
            config = tiny_config(data_dir)
            config.model.method = method
            config.optimizer.learning_rate = 2e-2  # methods differ once weights have moved
            config.training.update(steps=8, eval_every=8, checkpoint_every=8)
            workdirs[method] = tmp_path_factory.mktemp("trained")
            train(config, workdirs[method])
        return workdirs[method]

    return make
