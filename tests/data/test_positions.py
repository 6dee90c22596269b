import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import Pose, RandomPositions


@st.composite
def laws(draw):
    """(length, law) of any sizes that fit."""
    length = draw(st.integers(2, 40))
    return length, Pose(draw(st.integers(length + 1, 300)), draw(st.integers(2, length)))


@given(laws(), st.integers(0, 2**32 - 1))
def test_positions_are_chunks_that_skip_ahead(sizes, seed):
    length, law = sizes
    law.check(length)
    positions = law(length, np.random.default_rng(seed))
    assert (positions.shape, positions.dtype) == ((length,), np.int32)
    assert positions[0] == 0
    assert positions[-1] < law.target_length
    steps = np.diff(positions)
    assert np.all(steps >= 1)
    # Where u_i = u_(i-1) two chunks join, so there may be fewer borders than chunks.
    assert np.count_nonzero(steps > 1) <= law.chunks - 1
    np.testing.assert_array_equal(positions, law(length, np.random.default_rng(seed)))


@pytest.mark.parametrize(("length", "target", "chunks"), [(5, 23, 2), (6, 40, 3), (4, 13, 4)])
def test_every_distance_below_the_target_occurs_and_every_position(length, target, chunks):
    rng = np.random.default_rng(0)
    law = Pose(target, chunks)
    rows = np.stack([law(length, rng) for _ in range(4000)])
    assert set(rows.ravel()) == set(range(target))
    distances = (rows[:, :, None] - rows[:, None, :]).ravel()
    assert set(distances[distances > 0]) == set(range(1, target))


def expected(length, target, chunks):
    """Probability of each row of positions: u_i and st_i as in the paper, all cuts alike."""
    cuts = list(itertools.combinations(range(1, length), chunks - 1))
    found = Counter()

    def draw(cut, skips, share):
        if len(skips) == chunks:
            ends = (*cut, length)
            row = [
                u + place
                for u, start, end in zip(skips, (0, *cut), ends, strict=True)
                for place in range(start, end)
            ]
            found[tuple(row)] += share
            return
        choices = range(skips[-1], target - length + 1)
        for u in choices:
            draw(cut, (*skips, u), share / len(choices))

    for cut in cuts:
        draw(cut, (0,), 1 / len(cuts))
    return found


def test_two_chunks_by_hand():
    # Cuts after 1 or 2 of 3 tokens, u_1 of 0, 1 or 2, six pairs in all; without a skip the cut
    # does not show.
    assert expected(3, 5, 2) == pytest.approx(
        {(0, 1, 2): 1 / 3, (0, 2, 3): 1 / 6, (0, 3, 4): 1 / 6, (0, 1, 3): 1 / 6, (0, 1, 4): 1 / 6}
    )


@pytest.mark.parametrize(("length", "target", "chunks"), [(3, 5, 2), (4, 6, 3), (3, 5, 3)])
def test_rows_are_as_likely_as_the_paper_has_them(length, target, chunks):
    rng, draws = np.random.default_rng(0), 20_000
    law = Pose(target, chunks)
    found = Counter(tuple(map(int, law(length, rng))) for _ in range(draws))
    shares = expected(length, target, chunks)
    assert found.keys() == shares.keys()
    for row, share in shares.items():
        # Within five standard deviations of a count.
        deviation = (share * (1 - share) / draws) ** 0.5
        assert found[row] / draws == pytest.approx(share, abs=5 * deviation), row


def test_a_chunk_a_token_will_do():
    law = Pose(1000, chunks=5)
    law.check(5)
    assert np.all(np.diff(law(5, np.random.default_rng(1))) > 1)


@given(st.integers(2, 40), st.integers(1, 260), st.integers(0, 2**32 - 1))
def test_random_positions_rise_below_the_target(length, more, seed):
    law = RandomPositions(length + more)
    law.check(length)
    positions = law(length, np.random.default_rng(seed))
    assert (positions.shape, positions.dtype) == ((length,), np.int32)
    assert np.all(np.diff(positions) >= 1)
    assert positions[0] >= 0
    assert positions[-1] < law.target_length


def test_all_sets_of_random_positions_are_as_likely():
    rng, draws = np.random.default_rng(0), 20_000
    law = RandomPositions(5)
    found = Counter(tuple(map(int, law(3, rng))) for _ in range(draws))
    assert found.keys() == set(itertools.combinations(range(5), 3))
    deviation = (0.1 * 0.9 / draws) ** 0.5
    for row, count in found.items():
        assert count / draws == pytest.approx(0.1, abs=5 * deviation), row


def test_random_positions_of_a_long_target_take_no_memory():
    positions = RandomPositions(2**31 - 1)(64, np.random.default_rng(0))
    assert positions.max() > 2**30


@pytest.mark.parametrize("target", [5, 2**31])
def test_a_target_that_does_not_fit(target):
    for law in (Pose(target), RandomPositions(target)):
        with pytest.raises(ValueError, match=f"target length {target}: should be above 5"):
            law.check(5)
