"""Position: RoPE at other distances than i - j, where those grow longer than trained."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, UInt32

from lenext.attention.axes.axis import Piece, Rows, Windowed, option
from lenext.attention.axes.frequencies import lengthening
from lenext.attention.axes.position import Frequencies, Rope, phase


def constant(distance: int, frequencies: Frequencies) -> UInt32[Array, "1 1 P"]:
    """The phase of one distance, for every query alike."""
    return phase(jnp.full((1, 1), distance, jnp.int32), frequencies)


@dataclasses.dataclass(frozen=True)
class ClampedRope(Rope, Windowed):
    """Distances clamped to +-window (default L): ReRoPE (Su 2023), and LM-Infinite's.

    Su himself takes L/8.
    """

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)

        # A query turned by the clamped distance against keys that are not turned at all.
        before = [Piece(constant(self.reach, frequencies), None, rows.delta >= self.reach)]
        after = [Piece(constant(-self.reach, frequencies), None, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


LEAST_LEAK = 16.0  # Su's own, where the length asks for no more


@dataclasses.dataclass(frozen=True)
class LeakyRope(Rope, Windowed):
    """Leaky ReRoPE (Su 2023): beyond the window (default L/8) distances go on at 1 / leak.

    w + (|delta| - w) / leak in place of |delta| from w on. Where no leak is given it is 16, or as
    much more as keeps the longest distance within L, (S - w) / (L - w). A leak below 1 is Su's
    "InvLeaky ReRoPE" (2023): longer steps beyond the window in training, for plain RoPE (`softmax`)
    afterwards.
    """

    leak: float | None = option(None, float, above=0.0)

    def usual_window(self, train_length):  # noqa: D102
        return train_length // 8

    @property
    def follows_length(self):  # noqa: D102
        return self.rotary and self.leak is None

    def slowness(self, rows: Rows, lengths: int | Array) -> float | Array:
        """The leak: a float, or [B, T, 1] by traced lengths [B, T]."""
        if self.leak is not None:
            return float(self.leak)
        within = max(1, rows.train_length - self.reach)
        if isinstance(lengths, int):
            return max(LEAST_LEAK, (lengths - self.reach) / within)
        beyond = (lengths - self.reach).astype(jnp.float32)[:, :, None]
        return jnp.maximum(beyond / within, LEAST_LEAK)

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)
        slow = [1 / self.slowness(rows, lengths) for lengths in (rows.q_lengths, rows.kv_lengths)]
        q = phase(rows.q_positions, frequencies, slow[0])
        k = phase(rows.kv_positions, frequencies, slow[1])
        window = jnp.full((1, 1), self.reach, jnp.int32)
        ahead = phase(window, frequencies) - phase(window, frequencies, slow[0])  # w - w / leak
        before = [Piece(q + ahead, k, rows.delta >= self.reach)]
        after = [Piece(q - ahead, k, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class SelfExtend(Rope, Windowed):
    """Self-Extend (arXiv 2401.01325): beyond the window (default L/4), positions in groups.

    floor(i / g) - floor(j / g) + w - floor(w / g) in place of i - j from w on, g = `group`; i and
    j count from their document's start. Mirrored for keys after the query. Where no group is given
    it is the smallest that keeps the longest distance within L.
    """

    group: int | None = option(None, int, at_least=1)

    def usual_window(self, train_length):  # noqa: D102
        return train_length // 4

    @property
    def follows_length(self):  # noqa: D102
        return self.rotary and self.group is None

    def grouping(self, rows: Rows, lengths: int | Array) -> int | Array:
        """g: a number, or [B, T] by traced lengths [B, T]."""
        if self.group is not None:
            return int(self.group)
        within = max(1, rows.train_length - self.reach)
        groups = -((self.reach - lengths) // within)  # rounded up
        return max(1, groups) if isinstance(lengths, int) else jnp.maximum(groups, 1)

    def pieces(self, rows):  # noqa: D102
        inside = super().pieces(rows)
        if not self.rotary:
            return inside
        frequencies = self.frequencies(rows)
        group = self.grouping(rows, rows.q_lengths)
        q = phase((rows.q_positions - rows.start[:, 0, :, 0]) // group, frequencies)
        k = phase(rows.kv_ordinals // self.grouping(rows, rows.kv_lengths), frequencies)
        distance = jnp.asarray(self.reach - self.reach // group, jnp.int32)
        ahead = phase(distance if distance.ndim else distance[None, None], frequencies)
        before = [Piece(q + ahead, k, rows.delta >= self.reach)]
        after = [Piece(q - ahead, k, rows.delta <= -self.reach)]
        return [*inside, *before, *([] if rows.causal else after)]


@dataclasses.dataclass(frozen=True)
class CacheRope(Rope, Windowed):
    """Positions inside StreamingLLM's cache of sinks and window (arXiv 2309.17453, section 3.2).

    The window is L - `sinks` by default, so that the cache holds L. Sink j, where the document has
    outgrown the cache, stands at distance sinks + window - 1 - j: min(|delta|, that), with delta's
    sign.
    """

    sinks: int = option(4, int, at_least=0)

    def usual_window(self, train_length):  # noqa: D102
        return train_length - self.sinks

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


@dataclasses.dataclass(frozen=True)
class DualChunk(Rope):
    """Dual chunk attention (arXiv 2402.17463): distances within chunks, and to those before.

    Chunks are of c = `chunk` - `window` tokens of a document (by default 3L/4 - L/8), and a key
    stands at its place in its own, j mod c. Its query stands at i mod c for keys of its own chunk;
    for those of the chunk before at min(i mod c + c, `chunk`), so that the last `window` keys are
    at their own distances; and at `chunk` for all earlier ones. No distance exceeds `chunk`. With
    `mscale`, as in the authors' code, logits are times (0.05 ln s + 1)^2 in documents longer than
    L. Causal only.
    """

    chunk: int | None = option(None, int, at_least=2)
    window: int | None = option(None, int, at_least=1)
    mscale: bool = option(False, bool)
    causal_only: ClassVar[bool] = True

    def resolve(self, train_length):  # noqa: D102
        chunk = self.chunk or max(2, 3 * train_length // 4)
        window = self.window or max(1, min(train_length // 8, chunk - 1))
        if window >= chunk:
            raise ValueError(f"option window={window}: should be below chunk={chunk}")
        return dataclasses.replace(self, chunk=chunk, window=window)

    @property
    def follows_length(self):  # noqa: D102
        return self.mscale

    @property
    def piece_chunk(self):  # noqa: D102
        return None if self.chunk is None or self.window is None else self.chunk - self.window

    def gain(self, rows):  # noqa: D102
        before = super().gain(rows)
        if not self.mscale:
            return before
        extension = lengthening(rows.q_lengths, rows.train_length)
        log = math.log(extension) if isinstance(extension, float) else jnp.log(extension)[:, None]
        gain = (0.05 * log + 1) ** 2
        return gain if before is None else before * gain

    def pieces(self, rows):  # noqa: D102
        if not self.rotary:
            return super().pieces(rows)
        if self.chunk is None or self.window is None:
            raise ValueError("chunk is not set: build methods with make_method")
        frequencies, size = self.frequencies(rows), self.chunk - self.window
        places = rows.q_positions - rows.start[:, 0, :, 0]
        within, last = places % size, jnp.int32(self.chunk)
        k = phase(rows.kv_ordinals % size, frequencies)
        behind = (places // size)[:, None, :, None] - (rows.kv_ordinals // size)[:, None, None, :]
        return [
            Piece(phase(within, frequencies), k),
            Piece(phase(jnp.minimum(within + size, last), frequencies), k, behind == 1),
            Piece(constant(self.chunk, frequencies), k, behind > 1),
        ]
