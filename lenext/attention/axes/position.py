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

from lenext.attention.axes.axis import Piece, Position, Rows, option

Frequencies = np.ndarray  # [P] float64, radians a position; P is H/2, or half of `rotary_dim`


Ratio = float | np.ndarray | Array
"""Of frequencies to those trained at: a number, [H/2], or traced and [B, T, H/2 or 1]."""


def phase(
    positions: Int[Array, "#B #T"], frequencies: Frequencies, ratio: Ratio = 1.0
) -> UInt32[Array, "#B #T P"]:
    """Angles of `positions` at ratio * frequencies, in units of 2**-32 turns, modulo one turn.

    A ratio that is known beforehand counts in float64; one that is traced, in float32, so that
    frequencies are off by 1e-7 of what it takes off them, and not at all where it is 1.
    """
    known = not isinstance(ratio, Array)
    turns = (frequencies * ratio if known else frequencies) / (2 * math.pi)
    steps = jnp.asarray((np.round(turns * 2**32) % 2**32).astype(np.uint32))
    steps = steps[None, None, :]
    if not known:
        less = jnp.round(steps.astype(jnp.float32) * (1 - ratio))
        steps = steps - less.astype(jnp.int32).astype(jnp.uint32)
    return positions.astype(jnp.uint32)[:, :, None] * steps


@dataclasses.dataclass(frozen=True)
class NoPosition(Position):
    """NoPE: positions enter nowhere but through the causal mask (arXiv 2305.19466)."""

    trained_kind: ClassVar[str] = "nope"


OF_WEIGHTS = ("base", "pairing", "rotary_dim")
"""Options of a rotation that are of the weights, and so of one that replaces it."""


@dataclasses.dataclass(frozen=True)
class Rope(Position):
    """RoPE (arXiv 2104.09864): pair p turns by position * base^(-2p/H).

    `pairing` says which dimensions form pair p: (2p, 2p+1) "interleaved", or (p, p + H/2) "halves".
    With `rotary_dim` only so many dimensions turn, the first of each head, as if they were all of
    it: GPT-J's and GPT-NeoX's partial rotation. A gain is then on these alone.
    `trained` is the rotation that the weights were trained with, where that is scaled: its
    frequencies and its gain are those that this one starts from, in place of plain RoPE's.
    """

    base: float = option(10000.0, float, at_least=1.0)
    pairing: str = option("interleaved", str, choices=("interleaved", "halves"))
    rotary_dim: int | None = option(None, int, at_least=2)
    rotary: bool = True  # False: `position="none"`, rotation off with gain and bias in place
    trained: "Rope | None" = None

    def __post_init__(self):
        super().__post_init__()
        if self.rotary_dim is not None and self.rotary_dim % 2:
            raise ValueError(f"option rotary_dim={self.rotary_dim!r}: should be even, for pairs")

    @property
    def kind(self) -> str:  # noqa: D102
        some = "" if self.rotary_dim is None else f", {self.rotary_dim} dimensions"
        return f"rope, {self.pairing}{some}" if self.rotary else "nope"

    def turned(self, head_dim):  # noqa: D102
        if self.rotary_dim is None:
            return head_dim
        if self.rotary_dim > head_dim:
            raise ValueError(
                f"option rotary_dim={self.rotary_dim}: should be at most head_dim, {head_dim}"
            )
        return int(self.rotary_dim)

    def arrange(self, x):  # noqa: D102
        if not self.rotary:
            return x
        turned = self.turned(x.shape[-1])
        if turned % 2:
            raise ValueError(f"head_dim {turned} is odd: rotation needs pairs of dimensions")
        if self.pairing == "halves":
            return x
        still = [x[..., turned:]] if turned < x.shape[-1] else []
        return jnp.concatenate([x[..., 0:turned:2], x[..., 1:turned:2], *still], axis=-1)

    def ratio(self, rows: Rows, lengths: int | Array) -> Ratio:
        """Of each pair's frequency to that trained at, in documents of `lengths` tokens."""
        del rows, lengths
        return 1.0

    def frequencies(self, rows: Rows) -> Frequencies:
        """Radians a position for each pair of dimensions, where they follow no length."""
        return self.trained_frequencies(rows) * self.ratio(rows, rows.train_length)

    def trained_frequencies(self, rows: Rows) -> Frequencies:
        """The frequencies that weights were trained at: base^(-2p/H), unless they were scaled."""
        if self.trained is not None:
            was = dataclasses.replace(self.trained, base=self.base, rotary_dim=self.rotary_dim)
            return was.frequencies(rows)
        return plain_frequencies(self.turned(rows.head_dim), self.base)

    def magnitude(self, rows: Rows, lengths: int | Array) -> float | Array | None:
        """What q and k are each multiplied by: a number, [B, T, 1] by traced lengths, or None."""
        return None if self.trained is None else self.trained.magnitude(rows, lengths)

    def gain(self, rows):  # noqa: D102
        magnitude = self.magnitude(rows, rows.q_lengths)
        if magnitude is None or self.turned(rows.head_dim) < rows.head_dim:
            return None
        return magnitude**2 if isinstance(magnitude, float | int) else (magnitude**2)[:, None]

    def amplify(self, x, rows, lengths):  # noqa: D102
        magnitude, turned = self.magnitude(rows, lengths), self.turned(rows.head_dim)
        if magnitude is None or turned == rows.head_dim:
            return x
        factor = magnitude if isinstance(magnitude, float | int) else magnitude[..., None]
        return jnp.concatenate([factor * x[..., :turned], x[..., turned:]], axis=-1)

    def scaled(self) -> "Rope | None":
        """What another rotation that replaces this one starts from; None for plain RoPE."""
        return self.trained

    def pieces(self, rows):  # noqa: D102
        if not self.rotary:
            return [Piece()]
        trained = self.trained_frequencies(rows)
        q, k = (
            phase(positions, trained, self.ratio(rows, lengths))
            for positions, lengths in (
                (rows.q_positions, rows.q_lengths),
                (rows.kv_positions, rows.kv_lengths),
            )
        )
        return [Piece(q, k)]


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

    def ratio(self, rows, lengths):  # noqa: D102
        del lengths
        pairs = self.turned(rows.head_dim) // 2
        return np.where(np.arange(pairs) < int(self.fraction * pairs), 1.0, 0.0)
