"""Position: rotations of q and k (RoPE and its extensions), or nothing.

RoPE at other frequencies is in `frequencies`, at other distances in `distances`; biases on the
logits are in `bias`.

Rotation angles are kept as fixed-point phases, uint32 in units of 2**-32 turns, because products
of whole positions wrap around there without loss: the angle between two tokens depends on their
distance alone, to |distance| * 2**-33 turns, also at a million tokens, where a float32 product of
position and frequency is off by hundredths of a radian.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from lenext.attention.axes.method import Piece, Position, Rows, option
from lenext.attention.axes.method import rotate as rotate

Frequencies = np.ndarray  # [H/2] float64, radians a position


def phase(positions: Int[Array, "B T"], frequencies: Frequencies) -> UInt32[Array, "B T P"]:
    """Angles of `positions` in units of 2**-32 turns, modulo one turn."""
    steps = np.round(frequencies / (2 * math.pi) * 2**32).astype(np.uint64) % 2**32
    return positions.astype(jnp.uint32)[:, :, None] * jnp.asarray(steps, jnp.uint32)[None, None, :]


@dataclasses.dataclass(frozen=True)
class NoPosition(Position):
    """NoPE: positions enter nowhere but through the causal mask (arXiv 2305.19466)."""

    trained_kind: ClassVar[str] = "nope"


@dataclasses.dataclass(frozen=True)
class Rope(Position):
    """RoPE (arXiv 2104.09864): pair p turns by position * base^(-2p/H).

    `pairing` says which dimensions form pair p: (2p, 2p+1) "interleaved", or (p, p + H/2) "halves".
    `trained` is the rotation that the weights were trained with, where that is scaled: its
    frequencies and its gain are those that this one starts from, in place of plain RoPE's.
    """

    base: float = option(10000.0, float, at_least=1.0)
    pairing: str = option("interleaved", str, choices=("interleaved", "halves"))
    rotary: bool = True  # False: `position="none"`, rotation off with gain and bias in place
    trained: "Rope | None" = None

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
        return self.trained_frequencies(rows)

    def trained_frequencies(self, rows: Rows) -> Frequencies:
        """The frequencies that weights were trained at: base^(-2p/H), unless they were scaled."""
        if self.trained is not None:
            return dataclasses.replace(self.trained, base=self.base).frequencies(rows)
        return plain_frequencies(rows.head_dim, self.base)

    def gain(self, rows):  # noqa: D102
        return None if self.trained is None else self.trained.gain(rows)

    def scaled(self) -> "Rope | None":
        """What another rotation that replaces this one starts from; None for plain RoPE."""
        return self.trained

    def pieces(self, rows):  # noqa: D102
        if not self.rotary:
            return [Piece()]
        frequencies = self.frequencies(rows)
        return [Piece(phase(rows.q_positions, frequencies), phase(rows.kv_positions, frequencies))]


def plain_frequencies(head_dim: int, base: float) -> Frequencies:
    """base^(-2p/H) for each pair p."""
    return base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


@dataclasses.dataclass(frozen=True)
class PartialRope(Rope):
    """p-RoPE (arXiv 2410.06205): the fastest `fraction` of the pairs turns, the others do not."""

    fraction: float = option(0.75, float, at_least=0.0, at_most=1.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"{super().kind}, {self.fraction:g} of the pairs" if self.rotary else "nope"

    def frequencies(self, rows):  # noqa: D102
        trained = self.trained_frequencies(rows)
        turning = np.arange(len(trained)) < int(self.fraction * len(trained))
        return np.where(turning, trained, 0.0)
