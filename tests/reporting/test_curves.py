"""What is told apart, shortened and moved, before anything is drawn."""

import numpy as np
import pytest

from lenext.reporting.curves import Curve, apart, coinciding, shortened


def test_what_coincides():
    a, b, c = (Curve(str(y), [1, 2], [y, 2 * y]) for y in (1.0, 1.004, 1.1))
    other_x = Curve("other", [1, 3], [1.0, 2.0])

    def groups(*found, **how):
        return [[x.name for x in group] for group in coinciding(found, **how)]

    assert groups(a, c, b, other_x, span=2) == [["1.0", "1.004"], ["1.1"], ["other"]]
    assert groups(a, c, b, span=0.1) == [["1.0"], ["1.1"], ["1.004"]]
    assert groups(a, c, b, span=np.log(3), log=True) == [["1.0", "1.004"], ["1.1"]]
    assert groups(a, a._replace(name="x"), span=0.0) == [["1.0", "x"]]


def test_shortened_names():
    assert shortened(["abc", "rerope(window=32)"]) == {
        "abc": "abc", "rerope(window=32)": "rerope(window=32)"
    }  # fmt: skip
    assert shortened(["rerope(window=32,leak='x')"], 14) == {
        "rerope(window=32,leak='x')": "rerope(32,x)"
    }
    # What would be another's is not taken.
    assert shortened(["rerope(window=32)", "rerope(32)"], 12)["rerope(window=32)"] == "rerope(…)"
    alike = [f"{'x' * 30}{i}{'y' * 30}" for i in range(30)]
    short = shortened(alike, 12)
    assert len(set(short.values())) == 30
    assert max(map(len, short.values())) <= 12


@pytest.mark.parametrize(
    ("centres", "heights", "expected"),
    [
        ([10.0, 50.0, 90.0], [10.0] * 3, [10, 50, 90]),
        ([50.0, 50.0], [10.0, 10.0], [45, 55]),
        ([52.0, 48.0, 50.0], [10.0] * 3, [60, 40, 50]),
        ([0.0, 100.0], [10.0, 20.0], [5, 90]),
        ([50.0, 52.0, 90.0], [10.0, 30.0, 10.0], [41, 61, 90]),
        ([0.0, 1.0, 99.0], [40.0, 40.0, 40.0], [0, 40, 80]),  # no room: the lowest goes below
    ],
)
def test_names_are_moved_as_little_as_may_be(centres, heights, expected):
    found = apart(np.array(centres), np.array(heights), 0.0, 100.0)
    np.testing.assert_allclose(found, expected)
