"""A quarter of a minute of `make soak`."""

import random

from tests.soak import soak


def test_a_quarter_of_a_minute_of_faults_loses_nothing(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    faults, steps, trouble = soak(tmp_path, 0.25, seed)
    assert not trouble, f"seed {seed}: {trouble}"
    assert sum(faults.values()) >= 1  # a busy machine has hardly started both in that time
    assert steps > 0
