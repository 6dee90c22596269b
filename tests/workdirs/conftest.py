"""One prepared dataset for all runs of these tests."""

import pytest

from tests.training.common import tiny_config


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    # Not mktemp: tests in other folders find what the first of them prepared.
    return tmp_path_factory.getbasetemp() / "tfds"


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir)
