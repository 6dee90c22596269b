"""Servers of buckets, where what they take is installed; and a run on a disk to compare with."""

import pytest

from lenext.training import train
from tests.training.common import tiny_config
from tests.workdirs.servers import serving


@pytest.fixture(params=["gs", "s3"])
def server(request):
    return serving(request.param)


@pytest.fixture(scope="package")
def on_disk(tmp_path_factory, data_dir):
    """The workdir of a run of `config` that was left alone."""
    workdir = tmp_path_factory.mktemp("disk")
    train(tiny_config(data_dir), workdir)
    return workdir
