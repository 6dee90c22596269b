"""Position: RoPE at other distances than i - j, where those grow longer than trained."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, UInt32

from lenext.attention.axes.method import Piece, Windowed, option
from lenext.attention.axes.position import Frequencies, Rope, phase


def constant(distance: int, frequencies: Frequencies) -> UInt32[Array, "1 1 P"]:
    """The phase of one distance, for every query alike."""
    return phase(jnp.full((1, 1), distance, jnp.int32), frequencies)


@dataclasses.dataclass(frozen=True)
class ClampedRope(Rope, Windowed):
    """Distances clamped to +-window (default L): ReRoPE (Su 2023), and LM-Infinite's."""

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)

        # A query turned by the clamped distance against keys that are not turned at all.
        before = [Piece(constant(self.reach, frequencies), None, rows.delta >= self.reach)]
        after = [Piece(constant(-self.reach, frequencies), None, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class LeakyRope(Rope, Windowed):
    """Leaky ReRoPE (Su 2023): beyond the window distances go on at 1 / leak.

    w + (|delta| - w) / leak in place of |delta| from w on. A leak below 1 is Su's "InvLeaky ReRoPE"
    (2023): longer steps beyond the window in training, for plain RoPE (`softmax`) afterwards.
    """

    leak: float = option(8, float, above=0.0)

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        slow = self.frequencies(rows) / self.leak
        q, k = phase(rows.q_positions, slow), phase(rows.kv_positions, slow)
        ahead = constant(1, slow * (self.leak - 1) * self.reach)  # w - w / leak
        before = [Piece(q + ahead, k, rows.delta >= self.reach)]
        after = [Piece(q - ahead, k, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class SelfExtend(Rope, Windowed):
    """Self-Extend (arXiv 2401.01325): beyond the window, positions in groups.

    floor(i / g) - floor(j / g) + w - floor(w / g) in place of i - j from w on, g = `group`; i and
    j count from their document's start. Mirrored for keys after the query.
    """

    group: int = option(8, int, at_least=1)

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)
        q = phase((rows.q_positions - rows.start[:, 0, :, 0]) // self.group, frequencies)
        k = phase(rows.kv_ordinals // self.group, frequencies)
        ahead = constant(self.reach - self.reach // self.group, frequencies)
        before = [Piece(q + ahead, k, rows.delta >= self.reach)]
        after = [Piece(q - ahead, k, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class CacheRope(Rope, Windowed):
    """Positions inside StreamingLLM's cache of sinks and window (arXiv 2309.17453, section 3.2).

    Sink j, where the document has outgrown the cache, stands at distance sinks + window - 1 - j:
    min(|delta|, that), with delta's sign.
    """

    sinks: int = option(4, int, at_least=0)

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)
        last = self.sinks + self.reach - 1  # the query's place in a full cache
        ordinal = rows.kv_ordinals[:, None, None, :]
        sink = (ordinal >= 0) & (ordinal < self.sinks)
        at_last, place = constant(last, frequencies), phase(rows.kv_ordinals, frequencies)
        before = [Piece(at_last, place, sink & (rows.delta > last - ordinal))]
        # A window shorter than the sinks lets one stand further off ahead of its query.
        after = [Piece(-at_last, -place, sink & (-rows.delta > last - ordinal))]
        return [*inside, *before, *([] if rows.causal else after)]
