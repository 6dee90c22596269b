"""What tests of integrations share."""

import os

# Nothing is looked for elsewhere; the packages read this when they are imported.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from lenext.importing import import_checkpoint
from tests.cli.conftest import call, fails, untrained_run
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


@pytest.fixture(scope="package")
def decoder(data_dir, tmp_path_factory):
    """A decoder of bytes, which have neither a start nor an end."""
    return untrained_run(tiny_decoder_config(data_dir), tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="package")
def encoder(data_dir, tmp_path_factory):
    """A masked language model."""
    return untrained_run(tiny_config(data_dir), tmp_path_factory.mktemp("encoder"))
