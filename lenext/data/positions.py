"""Positions of training sequences that stand for longer ones."""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True)
class Pose:
    """PoSE, positional skip-wise training (arXiv 2309.10400, section 3.2).

    A sequence of L tokens is cut into N chunks, and chunk i stands u_i further on than it would:
    at st_i + u_i, …, where st_i is the number of tokens before it (equation 4). u_0 = 0, and u_i
    is uniform in {u_(i-1), …, t - L} (t the target length), so that positions never fall, stay
    below t, and leave no distance below t out. Tokens are a text's, end to end (v_i = 0 in
    equation 5; the paper's appendix A finds little difference to skipping text too).

    The paper leaves open how lengths are drawn; here all ways to cut L tokens into N chunks are
    equally likely. The authors' code has two chunks, the first of uniform length 1 to ceil(L / 2):
    mirrored positions have the same distances, so these are all but as likely in either.

    Attributes:
      target_length: t, in tokens.
      chunks: N, at least 2; the paper's choice is 2.
    """

    target_length: int
    chunks: int = 2

    def check(self, length: int) -> None:
        """Checks that sequences of `length` tokens can be cut so, and stretched.

        Raises:
          ValueError: saying what cannot.
        """
        if not 2 <= self.chunks <= length:
            raise ValueError(f"{self.chunks} chunks: should be from 2 to {length}, the length")
        _check_target(self.target_length, length)

    def __call__(self, length: int, rng: np.random.Generator) -> Int32[np.ndarray, " n"]:
        """Positions of n = `length` tokens, strictly rising from 0, below the target length."""
        starts = 1 + np.sort(rng.choice(length - 1, self.chunks - 1, replace=False, shuffle=False))
        positions = np.arange(length, dtype=np.int32)
        skip = 0  # u_i
        for start in starts:
            skip = int(rng.integers(skip, self.target_length - length, endpoint=True))
            positions[start:] = np.arange(start + skip, length + skip)
        return positions


@dataclasses.dataclass(frozen=True)
class RandomPositions:
    """Positions drawn without replacement from those below the target length, in their order.

    Randomised positional encodings (arXiv 2305.16843, section 3): all sets of L are equally likely.
    The paper draws them in evaluation too; here only trained tokens stand so.

    Attributes:
      target_length: in tokens.
    """

    target_length: int

    def check(self, length: int) -> None:  # noqa: D102
        _check_target(self.target_length, length)

    def __call__(self, length: int, rng: np.random.Generator) -> Int32[np.ndarray, " n"]:
        """Positions of n = `length` tokens, strictly rising, below the target length."""
        drawn = rng.choice(self.target_length, length, replace=False, shuffle=False)
        return np.sort(drawn).astype(np.int32)


PositionLaw: TypeAlias = Pose | RandomPositions
"""What positions of a sequence's tokens are drawn by."""


def _check_target(target_length: int, length: int) -> None:
    if not length < target_length < 2**31:
        raise ValueError(
            f"target length {target_length}: should be above {length}, the length, and below 2^31"
        )
