"""A run to compare with."""

import pytest

from lenext.training import train
from tests.training.common import tiny_config


@pytest.fixture(scope="package")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir of a run of `config` that was left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data_dir), workdir)
    return workdir
