"""Servers of buckets, where what they take is installed."""

import pytest

from tests.workdirs.servers import serving


@pytest.fixture(params=["gs", "s3"])
def server(request):
    return serving(request.param)
