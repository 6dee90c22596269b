"""Position: RoPE at other frequencies, for keys beyond the length trained at."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from lenext.attention.method import option
from lenext.attention.position import Frequencies, Rope, plain_frequencies


@dataclasses.dataclass(frozen=True)
class ScaledRope(Rope):
    """RoPE that follows the extension factor s: `scale`, or max(1, S / L) where it is not set."""

    scale: float | None = option(None, float, at_least=1.0)

    def pin(self, key_length: int, train_length: int) -> "ScaledRope":  # noqa: D102
        if self.scale is not None:
            return self
        return dataclasses.replace(self, scale=max(1.0, key_length / train_length))


def stretched_frequencies(head_dim: int, base: float, factor: float) -> Frequencies:
    """RoPE's at base * factor^(H / (H - 2)): the slowest pair slows by `factor`."""
    if head_dim == 2:  # the only pair has frequency 1 whatever the base
        return plain_frequencies(head_dim, base)
    return plain_frequencies(head_dim, base * factor ** (head_dim / (head_dim - 2)))


@dataclasses.dataclass(frozen=True)
class Interpolated(ScaledRope):
    """PI (arXiv 2306.15595): positions divided by s."""

    def frequencies(self, rows):  # noqa: D102
        return plain_frequencies(rows.head_dim, self.base) / rows.extension(self.scale)


@dataclasses.dataclass(frozen=True)
class NTK(ScaledRope):
    """NTK-aware base change: base * s^(H / (H - 2)), so the slowest pair slows by just s."""

    def frequencies(self, rows):  # noqa: D102
        return stretched_frequencies(rows.head_dim, self.base, rows.extension(self.scale))


@dataclasses.dataclass(frozen=True)
class Yarn(ScaledRope):
    """YaRN (arXiv 2309.00071): NTK-by-parts frequencies, and logits times (0.1 ln s + 1)^2.

    Pairs that turn more than 32 times within L keep their frequency, those that turn less than
    once are interpolated, with a linear ramp over the pair index between.
    """

    FAST_TURNS: ClassVar[float] = 32.0
    SLOW_TURNS: ClassVar[float] = 1.0

    def frequencies(self, rows):  # noqa: D102
        dim, plain = rows.head_dim, plain_frequencies(rows.head_dim, self.base)

        def pair_turning(turns: float) -> float:
            wavelength_ratio = rows.train_length / (2 * math.pi * turns)
            return dim * math.log(wavelength_ratio) / (2 * math.log(self.base))

        low = max(math.floor(pair_turning(self.FAST_TURNS)), 0)
        high = min(math.ceil(pair_turning(self.SLOW_TURNS)), dim - 1)
        width = max(high - low, 1e-3)  # a step where the two meet
        ramp = np.clip((np.arange(dim // 2) - low) / width, 0.0, 1.0)
        return plain / rows.extension(self.scale) * ramp + plain * (1.0 - ramp)

    def gain(self, rows):  # noqa: D102
        return (0.1 * math.log(rows.extension(self.scale)) + 1.0) ** 2


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Rope):
    """Dynamic NTK (emozilla 2023): base * (s S / L - (s - 1))^(H / (H - 2)) for S > L.

    S is the length of the key array, padding included, whatever `scale` (s, default 1) says; `pin`
    fixes it.
    """

    scale: float = option(1.0, float, at_least=1.0)
    length: int | None = None  # S, where it is fixed

    def pin(self, key_length: int, train_length: int) -> "DynamicNTK":  # noqa: D102
        del train_length
        return self if self.length is not None else dataclasses.replace(self, length=key_length)

    def frequencies(self, rows):  # noqa: D102
        length = rows.key_length if self.length is None else self.length
        extension = max(1.0, length / rows.train_length)
        factor = self.scale * extension - (self.scale - 1)
        return stretched_frequencies(rows.head_dim, self.base, factor)


@dataclasses.dataclass(frozen=True)
class Llama3(ScaledRope):
    """Llama 3.1's bands (arXiv 2407.21783): by how often a pair turns within L.

    Pairs of more than 4 turns keep their frequency, those of less than 1 are interpolated, with a
    share linear in the number of turns between.
    """

    SLOW_TURNS: ClassVar[float] = 1.0
    FAST_TURNS: ClassVar[float] = 4.0

    def frequencies(self, rows):  # noqa: D102
        plain = plain_frequencies(rows.head_dim, self.base)
        turns = rows.train_length * plain / (2 * math.pi)
        kept = np.clip((turns - self.SLOW_TURNS) / (self.FAST_TURNS - self.SLOW_TURNS), 0.0, 1.0)
        return plain * kept + plain / rows.extension(self.scale) * (1.0 - kept)


@dataclasses.dataclass(frozen=True)
class LongRope(ScaledRope):
    """LongRoPE (arXiv 2402.13753): each pair's frequency over a factor of its own.

    `factors` are searched for a model and published with it, H/2 of them; where they are not
    given, every pair has s.
    """

    factors: tuple | None = option(None, tuple, at_least=1.0)

    def frequencies(self, rows):  # noqa: D102
        plain = plain_frequencies(rows.head_dim, self.base)
        if self.factors is None:
            return plain / rows.extension(self.scale)
        if len(self.factors) != len(plain):
            raise ValueError(f"{len(self.factors)} factors: should be {len(plain)}, one a pair")
        return plain / np.asarray(self.factors, np.float64)
