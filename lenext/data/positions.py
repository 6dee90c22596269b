"""Positions of training sequences that stand for longer ones."""

import dataclasses

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
        if not length < self.target_length < 2**31:
            raise ValueError(
                f"target length {self.target_length}: should be above {length}, the length, and "
                "below 2^31"
            )

    def __call__(self, length: int, rng: np.random.Generator) -> Int32[np.ndarray, " n"]:
        """Positions of n = `length` tokens, strictly rising from 0, below the target length."""
        starts = 1 + np.sort(rng.choice(length - 1, self.chunks - 1, replace=False, shuffle=False))
        positions = np.arange(length, dtype=np.int32)
        skip = 0  # u_i
        for start in starts:
            skip = int(rng.integers(skip, self.target_length - length, endpoint=True))
            positions[start:] = np.arange(start + skip, length + skip)
        return positions
