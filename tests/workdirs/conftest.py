"""Servers of buckets, for all that ask them: what was led to one goes on to ask there."""

import pytest

from tests.workdirs.servers import serving


@pytest.fixture(scope="session", params=["gs", "s3"])
def server(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server
