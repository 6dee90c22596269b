"""One prepared dataset and one compilation cache for all runs of these tests."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lenext.training import train
from tests.training.common import tiny_config


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    # Not mktemp: tests in other folders find what the first of them prepared.
    return tmp_path_factory.getbasetemp() / "tfds"


@pytest.fixture(autouse=True, scope="package")
def compile_once(tmp_path_factory):
    """A run is a second of work and four of compilation, mostly of the very same step."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir)


@pytest.fixture(scope="package")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir of a run of `config` that was left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data_dir), workdir)
    return workdir
