"""One prepared dataset for all runs of these tests."""

import pytest

from lenext.training import train
from tests.training.common import tiny_config


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    # Not mktemp: tests in other folders find what the first of them prepared.
    return tmp_path_factory.getbasetemp() / "tfds"


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir)


@pytest.fixture(scope="package")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir of a run of `config` that was left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data_dir), workdir)
    return workdir
