"""Position: rotations of q and k (RoPE and its extensions), or nothing.

Biases on the logits are in `bias`.

Rotation angles are kept as fixed-point phases, uint32 in units of 2**-32 turns, because products
of whole positions wrap around there without loss: the angle between two tokens depends on their
distance alone, to |distance| * 2**-33 turns, also at a million tokens, where a float32 product of
position and frequency is off by hundredths of a radian.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from lenext.attention.method import Piece, Position, Rows, Windowed, option

Frequencies = np.ndarray  # [H/2] float64, radians a position


def phase(positions: Int[Array, "B T"], frequencies: Frequencies) -> UInt32[Array, "B T P"]:
    """Angles of `positions` in units of 2**-32 turns, modulo one turn."""
    steps = np.round(frequencies / (2 * math.pi) * 2**32).astype(np.uint64) % 2**32
    return positions.astype(jnp.uint32)[:, :, None] * jnp.asarray(steps, jnp.uint32)[None, None, :]


def rotate(
    x: Float[Array, "B T N H"], phase: UInt32[Array, "#B #T P"] | None
) -> Float[Array, "B T N H"]:
    """Turns the pair (p, p + H/2) of x by the angle of `phase`; None turns nothing."""
    if phase is None:
        return x
    angle = phase.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * math.pi / 2**32)
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


@dataclasses.dataclass(frozen=True)
class NoPosition(Position):
    """NoPE: positions enter nowhere but through the causal mask (arXiv 2305.19466)."""

    trained_kind: ClassVar[str] = "nope"


@dataclasses.dataclass(frozen=True)
class Rope(Position):
    """RoPE (arXiv 2104.09864): pair p turns by position * base^(-2p/H).

    `pairing` says which dimensions form pair p: (2p, 2p+1) "interleaved", or (p, p + H/2) "halves".
    """

    base: float = option(10000.0, float, at_least=1.0)
    pairing: str = option("interleaved", str, choices=("interleaved", "halves"))
    rotary: bool = True  # False: `position="none"`, rotation off with gain and bias in place

    @property
    def kind(self) -> str:  # noqa: D102
        return f"rope, {self.pairing}" if self.rotary else "nope"

    def arrange(self, x):  # noqa: D102
        if not self.rotary:
            return x
        if x.shape[-1] % 2:
            raise ValueError(f"head_dim {x.shape[-1]} is odd: rotation needs pairs of dimensions")
        if self.pairing == "halves":
            return x
        return jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)

    def frequencies(self, rows: Rows) -> Frequencies:
        """Radians a position for each pair of dimensions."""
        return plain_frequencies(rows.head_dim, self.base)

    def pieces(self, rows):  # noqa: D102
        if not self.rotary:
            return [Piece()]
        frequencies = self.frequencies(rows)
        return [Piece(phase(rows.q_positions, frequencies), phase(rows.kv_positions, frequencies))]


def plain_frequencies(head_dim: int, base: float) -> Frequencies:
    """base^(-2p/H) for each pair p."""
    return base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


@dataclasses.dataclass(frozen=True)
class Interpolated(Rope):
    """PI (arXiv 2306.15595): positions divided by s."""

    scale: float | None = option(None, float, at_least=1.0)

    def frequencies(self, rows):  # noqa: D102
        return plain_frequencies(rows.head_dim, self.base) / rows.extension(self.scale)


@dataclasses.dataclass(frozen=True)
class NTK(Rope):
    """NTK-aware base change: base * s^(H / (H - 2)), so the slowest pair slows by just s."""

    scale: float | None = option(None, float, at_least=1.0)

    def frequencies(self, rows):  # noqa: D102
        dim = rows.head_dim
        if dim == 2:  # the only pair has frequency 1 whatever the base
            return plain_frequencies(dim, self.base)
        return plain_frequencies(dim, self.base * rows.extension(self.scale) ** (dim / (dim - 2)))


@dataclasses.dataclass(frozen=True)
class Yarn(Rope):
    """YaRN (arXiv 2309.00071): NTK-by-parts frequencies, and logits times (0.1 ln s + 1)^2.

    Pairs that turn more than 32 times within L keep their frequency, those that turn less than
    once are interpolated, with a linear ramp over the pair index between.
    """

    scale: float | None = option(None, float, at_least=1.0)
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
class ClampedRope(Rope, Windowed):
    """Distances clamped to +-window (default L): ReRoPE (Su 2023), and LM-Infinite's."""

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)

        def at_distance(distance: int) -> Any:
            return phase(jnp.full((1, 1), distance, jnp.int32), frequencies)

        # A query turned by the clamped distance against keys that are not turned at all.
        before = [Piece(at_distance(self.reach), None, rows.delta >= self.reach)]
        after = [Piece(at_distance(-self.reach), None, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class PartialRope(Rope):
    """p-RoPE (arXiv 2410.06205): the fastest `fraction` of the pairs turns, the others do not."""

    fraction: float = option(0.75, float, at_least=0.0, at_most=1.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"{super().kind}, {self.fraction:g} of the pairs" if self.rotary else "nope"

    def frequencies(self, rows):  # noqa: D102
        plain = plain_frequencies(rows.head_dim, self.base)
        return np.where(np.arange(len(plain)) < int(self.fraction * len(plain)), plain, 0.0)
