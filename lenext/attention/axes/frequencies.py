"""Position: RoPE at other frequencies, for keys beyond the length trained at."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lenext.attention.axes.axis import Rows, option
from lenext.attention.axes.position import Ratio, Rope, plain_frequencies


def lengthening(lengths: int | Array, over: int) -> float | Array:
    """max(1, lengths / over): a float, or [B, T, 1] beside the pairs of traced lengths [B, T]."""
    if isinstance(lengths, int):
        return max(1.0, lengths / over)
    return jnp.maximum(lengths.astype(jnp.float32) / over, 1.0)[:, :, None]


@dataclasses.dataclass(frozen=True)
class ScaledRope(Rope):
    """RoPE that follows the extension factor s: `scale`, or max(1, length / L) where it is unset.

    The length is that of each token's document, in tokens, see `attend`.
    """

    scale: float | None = option(None, float, at_least=1.0)

    @property
    def follows_length(self):  # noqa: D102
        return self.rotary and self.scale is None

    def extension(self, rows: Rows, lengths: int | Array) -> float | Array:
        """s: a float, or [B, T, 1] for traced lengths [B, T]."""
        return lengthening(lengths, rows.train_length) if self.scale is None else float(self.scale)

    def scaled(self) -> Rope | None:  # noqa: D102
        return self.trained if self.scale is None else self


def by_pair(values: np.ndarray, extension: float | Array) -> np.ndarray:
    """Values [H/2] in the shape that broadcasts with an extension factor."""
    return values if isinstance(extension, float) else values[None, None].astype(np.float32)


def stretch(pairs: int, factor: float | Array) -> Ratio:
    """What the base times factor^(H / (H - 2)) makes of RoPE's: the slowest pair slows by it."""
    last = max(pairs - 1, 1)  # the only pair of two dimensions stays as it is
    return factor ** by_pair(-np.arange(pairs) / last, factor)


def partly(extension: float | Array, slowed: np.ndarray) -> Ratio:
    """1 / s for pairs of which `slowed` [H/2] is 1, 1 where it is 0, and between in proportion."""
    slow, fast = by_pair(slowed, extension), by_pair(1.0 - slowed, extension)
    return slow / extension + fast


@dataclasses.dataclass(frozen=True)
class Interpolated(ScaledRope):
    """PI (arXiv 2306.15595): positions divided by s."""

    def ratio(self, rows, lengths):  # noqa: D102
        return 1 / self.extension(rows, lengths)


@dataclasses.dataclass(frozen=True)
class NTK(ScaledRope):
    """NTK-aware base change: base * s^(H / (H - 2)), so the slowest pair slows by just s."""

    def ratio(self, rows, lengths):  # noqa: D102
        return stretch(self.turned(rows.head_dim) // 2, self.extension(rows, lengths))


@dataclasses.dataclass(frozen=True)
class BandedRope(ScaledRope):
    """A `ScaledRope` that leaves alone pairs that turn often within L, and slows those that do not.

    Where `fast_turns` and `slow_turns` are the same, that is a step, as in Llama 4 and Kimi K2. For
    weights that were themselves trained so, `original_length` is the length before, in place
    of L.
    """

    fast_turns: float = option(32.0, float, above=0.0)
    slow_turns: float = option(1.0, float, above=0.0)
    original_length: int | None = option(None, int, at_least=2)

    def __post_init__(self):
        super().__post_init__()
        if self.fast_turns < self.slow_turns:
            raise ValueError(
                f"option fast_turns={self.fast_turns!r}: should be at least slow_turns="
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

    def ratio(self, rows, lengths):  # noqa: D102
        dim, trained = self.turned(rows.head_dim), self.trained_frequencies(rows)
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
        return partly(self.extension(rows, lengths), ramp)

    def magnitude(self, rows, lengths):  # noqa: D102
        if self.attention_factor is not None:
            factor: float | Array = float(self.attention_factor)
        else:
            extension = self.extension(rows, lengths)
            log = math.log(extension) if isinstance(extension, float) else jnp.log(extension)
            factor = 0.1 * log + 1.0
        before = super().magnitude(rows, lengths)
        return factor if before is None else before * factor


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Rope):
    """Dynamic NTK (emozilla 2023): base * (s n / L - (s - 1))^(H / (H - 2)) for n > L.

    n is the length of each token's document, in tokens, whatever `scale` (s, default 1) says.
    `original_length` stands in place of L, where that is not what weights follow.
    """

    scale: float = option(1.0, float, at_least=1.0)
    original_length: int | None = option(None, int, at_least=2)

    @property
    def follows_length(self):  # noqa: D102
        return self.rotary

    def ratio(self, rows, lengths):  # noqa: D102
        extension = lengthening(lengths, self.original_length or rows.train_length)
        return stretch(self.turned(rows.head_dim) // 2, self.scale * extension - (self.scale - 1))


@dataclasses.dataclass(frozen=True)
class Llama3(BandedRope):
    """Llama 3.1's bands (arXiv 2407.21783): by how often a pair turns within L.

    Pairs of more than `fast_turns` keep their frequency, those of less than `slow_turns` are
    interpolated, with a share linear in the number of turns between.
    """

    fast_turns: float = option(4.0, float, above=0.0)

    def ratio(self, rows, lengths):  # noqa: D102
        trained = self.trained_frequencies(rows)
        turns = (self.original_length or rows.train_length) * trained / (2 * math.pi)
        width = max(self.fast_turns - self.slow_turns, 1e-9)  # a step where the two meet
        kept = np.clip((turns - self.slow_turns) / width, 0.0, 1.0)
        return partly(self.extension(rows, lengths), 1.0 - kept)


def over(factors: tuple) -> np.ndarray:
    """1 / factors, [P]."""
    return 1 / np.asarray(factors, np.float64)


@dataclasses.dataclass(frozen=True)
class LongRope(ScaledRope):
    """LongRoPE (arXiv 2402.13753): each pair's frequency over a factor of its own.

    `factors` are searched for a model and published with it, one a pair that turns, and some a
    little below 1; where they are not given, every pair has s. `short_factors` are in their place
    for documents of at most L. Where `scale` is given, q and k are each multiplied by
    sqrt(1 + ln s / ln L), at every length, or by `attention_factor` in place of that.
    `original_length` stands in place of L, where weights were themselves trained on beyond it.
    """

    factors: tuple | None = option(None, tuple, above=0.0)
    short_factors: tuple | None = option(None, tuple, above=0.0)
    attention_factor: float | None = option(None, float, above=0.0)
    original_length: int | None = option(None, int, at_least=2)

    @property
    def follows_length(self):  # noqa: D102
        if self.factors is None and self.scale is None:
            return self.rotary
        return self.rotary and self.short_factors is not None

    def turned(self, head_dim):  # noqa: D102
        turned = super().turned(head_dim)
        pairs = turned // 2
        for factors in (self.factors, self.short_factors):
            if factors is not None and len(factors) != pairs:
                raise ValueError(f"{len(factors)} factors: should be {pairs}, one a pair")
        return turned

    def extension(self, rows, lengths):  # noqa: D102
        if self.scale is None:
            return lengthening(lengths, self.original_length or rows.train_length)
        return float(self.scale)

    def ratio(self, rows, lengths):  # noqa: D102
        slowed = 1 / self.extension(rows, lengths) if self.factors is None else over(self.factors)
        if self.short_factors is None:
            return slowed
        short, length = over(self.short_factors), self.original_length
        length = length or rows.train_length
        if isinstance(lengths, int):
            return slowed if lengths > length else short
        return jnp.where((lengths > length)[:, :, None], slowed, short).astype(jnp.float32)

    def magnitude(self, rows, lengths):  # noqa: D102
        before, factor = super().magnitude(rows, lengths), self.attention_factor
        if factor is None and self.scale is not None:
            length = self.original_length or rows.train_length
            factor = math.sqrt(1 + math.log(self.scale) / math.log(length))
        if factor is None:
            return before
        return float(factor) if before is None else before * factor

    def scaled(self):  # noqa: D102
        return super().scaled() if self.factors is None else self
