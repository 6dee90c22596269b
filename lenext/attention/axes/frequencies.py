"""Position: RoPE at other frequencies, for keys beyond the length trained at."""

import dataclasses
import math

import numpy as np

from lenext.attention.axes.method import option
from lenext.attention.axes.position import Frequencies, Rope, plain_frequencies


@dataclasses.dataclass(frozen=True)
class ScaledRope(Rope):
    """RoPE that follows the extension factor s: `scale`, or max(1, S / L) where it is not set."""

    scale: float | None = option(None, float, at_least=1.0)

    def pin(self, key_length: int, train_length: int) -> "ScaledRope":  # noqa: D102
        if self.scale is not None:
            return self
        return dataclasses.replace(self, scale=max(1.0, key_length / train_length))

    def scaled(self) -> Rope | None:  # noqa: D102
        return self.trained if self.scale is None else self


def stretch(frequencies: Frequencies, factor: float) -> Frequencies:
    """What RoPE's become at base * factor^(H / (H - 2)): the slowest pair slows by `factor`."""
    last = max(len(frequencies) - 1, 1)  # the only pair of two dimensions stays as it is
    return frequencies * factor ** (-np.arange(len(frequencies)) / last)


@dataclasses.dataclass(frozen=True)
class Interpolated(ScaledRope):
    """PI (arXiv 2306.15595): positions divided by s."""

    def frequencies(self, rows):  # noqa: D102
        return self.trained_frequencies(rows) / rows.extension(self.scale)


@dataclasses.dataclass(frozen=True)
class NTK(ScaledRope):
    """NTK-aware base change: base * s^(H / (H - 2)), so the slowest pair slows by just s."""

    def frequencies(self, rows):  # noqa: D102
        return stretch(self.trained_frequencies(rows), rows.extension(self.scale))


@dataclasses.dataclass(frozen=True)
class BandedRope(ScaledRope):
    """A `ScaledRope` that leaves alone pairs that turn often within L, and slows those that do not.

    For weights that were themselves trained so, `original_length` is the length before, in place
    of L.
    """

    fast_turns: float = option(32.0, float, above=0.0)
    slow_turns: float = option(1.0, float, above=0.0)
    original_length: int | None = option(None, int, at_least=2)

    def __post_init__(self):
        super().__post_init__()
        if self.fast_turns <= self.slow_turns:
            raise ValueError(
                f"option fast_turns={self.fast_turns!r}: should be above slow_turns="
                f"{self.slow_turns!r}"
            )


@dataclasses.dataclass(frozen=True)
class Yarn(BandedRope):
    """YaRN (arXiv 2309.00071): NTK-by-parts frequencies, and logits times (0.1 ln s + 1)^2.

    Pairs that turn more than `fast_turns` times within L keep their frequency, those that turn less
    than `slow_turns` times are interpolated, with a linear ramp over the pair index between.
    `attention_factor` is what q and k are each multiplied by, where it is not 0.1 ln s + 1.
    """

    attention_factor: float | None = option(None, float, above=0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.base <= 1:  # all pairs turn alike: none is slow or fast
            raise ValueError(f"option base={self.base!r}: should be above 1")

    def frequencies(self, rows):  # noqa: D102
        dim, trained = rows.head_dim, self.trained_frequencies(rows)
        length = self.original_length or rows.train_length
        step = 2 * math.log(self.base) / dim  # of the log of frequencies, from pair to pair
        pairs = np.arange(dim // 2)
        behind = np.log(plain_frequencies(dim, self.base) / trained) / step  # 0 for plain weights

        def pair_turning(turns: float) -> float:
            pair = math.log(length / (2 * math.pi * turns)) / step
            return pair - float(np.interp(pair, pairs + behind, behind))

        low = max(math.floor(pair_turning(self.fast_turns)), 0)
        high = min(math.ceil(pair_turning(self.slow_turns)), dim - 1)
        width = max(high - low, 1e-3)  # a step where the two meet
        ramp = np.clip((pairs - low) / width, 0.0, 1.0)
        return trained / rows.extension(self.scale) * ramp + trained * (1.0 - ramp)

    def gain(self, rows):  # noqa: D102
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * math.log(rows.extension(self.scale)) + 1.0
        before = super().gain(rows)
        return factor**2 if before is None else before * factor**2


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Rope):
    """Dynamic NTK (emozilla 2023): base * (s S / L - (s - 1))^(H / (H - 2)) for S > L.

    S is the length of the key array, padding included, whatever `scale` (s, default 1) says; `pin`
    fixes it. `original_length` stands in place of L, where that is not what weights follow.
    """

    scale: float = option(1.0, float, at_least=1.0)
    original_length: int | None = option(None, int, at_least=2)
    length: int | None = None  # S, where it is fixed

    def pin(self, key_length: int, train_length: int) -> "DynamicNTK":  # noqa: D102
        del train_length
        return self if self.length is not None else dataclasses.replace(self, length=key_length)

    def frequencies(self, rows):  # noqa: D102
        length = rows.key_length if self.length is None else self.length
        extension = max(1.0, length / (self.original_length or rows.train_length))
        factor = self.scale * extension - (self.scale - 1)
        return stretch(self.trained_frequencies(rows), factor)


@dataclasses.dataclass(frozen=True)
class Llama3(BandedRope):
    """Llama 3.1's bands (arXiv 2407.21783): by how often a pair turns within L.

    Pairs of more than `fast_turns` keep their frequency, those of less than `slow_turns` are
    interpolated, with a share linear in the number of turns between.
    """

    fast_turns: float = option(4.0, float, above=0.0)

    def frequencies(self, rows):  # noqa: D102
        trained = self.trained_frequencies(rows)
        turns = (self.original_length or rows.train_length) * trained / (2 * math.pi)
        kept = np.clip((turns - self.slow_turns) / (self.fast_turns - self.slow_turns), 0.0, 1.0)
        return trained * kept + trained / rows.extension(self.scale) * (1.0 - kept)


@dataclasses.dataclass(frozen=True)
class LongRope(ScaledRope):
    """LongRoPE (arXiv 2402.13753): each pair's frequency over a factor of its own.

    `factors` are searched for a model and published with it, H/2 of them; where they are not
    given, every pair has s.
    """

    factors: tuple | None = option(None, tuple, at_least=1.0)

    def frequencies(self, rows):  # noqa: D102
        trained = self.trained_frequencies(rows)
        if self.factors is None:
            return trained / rows.extension(self.scale)
        if len(self.factors) != len(trained):
            raise ValueError(f"{len(self.factors)} factors: should be {len(trained)}, one a pair")
        return trained / np.asarray(self.factors, np.float64)

    def scaled(self):  # noqa: D102
        return super().scaled() if self.factors is None else self
