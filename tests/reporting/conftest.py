"""Records of a small sweep."""

import pytest

from tests.reporting.common import record


@pytest.fixture
def records():
    """Lengths out of order, as a user may type them; one unsuited method and one pattern."""
    return [
        record(method, length, value, metric, unsuited)
        for length, factor in [(512, 0.5), (16, 1.0)]
        for method, start, unsuited in [
            ("softmax", 0.5, ()),
            ("rerope(window=16)+infoscale", 0.75, ()),
            ("cosscale", 0.25, ("similarity", "temperature")),
            ("windowed|softmax", 0.625, ()),
        ]
        for metric, value in [("accuracy", start * factor), ("loss", 1 - start * factor)]
    ]
