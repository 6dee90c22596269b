"""What tests of integrations share."""

import os

# Nothing is looked for elsewhere; the packages read this when they are imported.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from flax import nnx

from lenext.config import read_methods
from lenext.importing import import_checkpoint
from lenext.models import build_model
from lenext.workdirs.checkpoints import Checkpoints
from lenext.workdirs.workdir import write_run_config
from tests.cli.conftest import call, fails
from tests.integrations.common import save_llama
from tests.training.common import tiny_config, tiny_decoder_config

__all__ = ["call", "fails"]


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Of a Llama, as transformers saves one."""
    folder = tmp_path_factory.mktemp("llama") / "theirs"
    save_llama(folder)
    return folder


@pytest.fixture(scope="package")
def workdir(folder):
    """The same, imported; not to be written to."""
    import_checkpoint(folder, folder.parent / "run")
    return folder.parent / "run"


def stored(config, workdir):
    """A workdir with a model as it is initialised."""
    methods = read_methods(config.model.method, config.data.train_length)
    model = build_model(config.model, methods, 258, seed=0)
    write_run_config(workdir, config)
    with Checkpoints(workdir, best_metric=config.training.best_metric) as checkpoints:
        checkpoints.save(0, {"params": nnx.to_pure_dict(nnx.state(model))}, {}, {})
    return workdir


@pytest.fixture(scope="package")
def decoder(data_dir, tmp_path_factory):
    """A decoder of bytes, which have neither a start nor an end."""
    return stored(tiny_decoder_config(data_dir), tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="package")
def encoder(data_dir, tmp_path_factory):
    """A masked language model."""
    return stored(tiny_config(data_dir), tmp_path_factory.mktemp("encoder"))
