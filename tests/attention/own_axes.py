"""Choices of one's own on every axis, as a reader of the README may write them, and in plain NumPy.

None of them is like one of lenext's: that implementations take them shows that these ask the axes
and know no names.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lenext.attention import (
    Entry,
    KeyByKey,
    Piece,
    Position,
    Similarity,
    Temperature,
    TwoStage,
    Visibility,
    Weighting,
    option,
)
from lenext.attention.axes.position import phase, plain_frequencies
from tests.attention.stand_ins import stand_in


@dataclasses.dataclass(frozen=True)
class Contrast(TwoStage):
    """a = s(logit) over its sum, then (a n)^2 / (1 + a n); rows in which no a n is 1.2 keep a.

    s is a step from 0 to 1 with long tails, 1 / (2 + 2 |x|) off the one or the other.
    """

    trained_kind: ClassVar[str] = "contrast"
    unshifted_within: ClassVar[float] = math.inf

    def values(self, logits, shift, rows, params):
        del shift, rows, params
        tail = 1 / (2 + 2 * jnp.abs(logits))
        return jnp.where(logits < 0, tail, 1 - tail)

    def second(self, weights, largest, rows):
        scaled = weights * rows.n
        return scaled**2 / (1 + scaled) / largest

    def is_flat(self, largest, rows):
        return largest * rows.n < 1.2


@dataclasses.dataclass(frozen=True)
class Cauchy(KeyByKey):
    """1 / (1 + (logit - 1)^2) over 1 + the sum: values that rise and fall."""

    trained_kind: ClassVar[str] = "cauchy"
    unshifted_within: ClassVar[float] = math.inf

    def values(self, logits, shift, rows, params):
        del shift, rows, params
        return 1 / (1 + (logits - 1) ** 2)

    def rest(self, shift, params):
        del params
        return jnp.ones_like(shift)


@dataclasses.dataclass(frozen=True)
class AboveMean(Weighting):
    """relu(logit - the row's mean + 1) over its sum: wants complete rows."""

    trained_kind: ClassVar[str] = "above mean"

    def __call__(self, logits, mask, rows, params):
        del params
        mean = jnp.sum(jnp.where(mask, logits, 0.0), axis=-1, keepdims=True) / rows.n
        above = jnp.where(mask, jax.nn.relu(logits - mean + 1), 0.0)
        total = jnp.sum(above, axis=-1, keepdims=True)
        return above / jnp.where(total > 0, total, 1.0)


@dataclasses.dataclass(frozen=True)
class Norms(Similarity):
    """q . k / sqrt(H) - (|q| |k| / H)^2 / 2, on one dimension more than the heads have."""

    trained_kind: ClassVar[str] = "norms"

    def of_queries(self, q):
        square = jnp.sum(q * q, axis=-1, keepdims=True) / q.shape[-1]
        return jnp.concatenate([q / math.sqrt(q.shape[-1]), -square / 2], axis=-1)

    def of_keys(self, k):
        square = jnp.sum(k * k, axis=-1, keepdims=True) / k.shape[-1]
        return jnp.concatenate([k, square], axis=-1)


@dataclasses.dataclass(frozen=True)
class Bounded(Similarity):
    """4 q . k, of vectors drawn into the unit sphere: x / sqrt(1 + |x|^2)."""

    trained_kind: ClassVar[str] = "bounded"

    def of_queries(self, q):
        return 4 * q / jnp.sqrt(1 + jnp.sum(q * q, axis=-1, keepdims=True))

    def of_keys(self, k):
        return k / jnp.sqrt(1 + jnp.sum(k * k, axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class TwoSpeeds(Position):
    """RoPE on halves, at half the speed from `near` on; a gain and a learned slope by distance."""

    trained_kind: ClassVar[str] = "two speeds"
    near: int = option(11, int, at_least=1)

    def init_params(self, num_heads, head_dim, train_length):
        del head_dim, train_length
        return {"slope": jnp.full((num_heads,), 0.05, jnp.float32)}

    def pieces(self, rows):
        def at(speed, where):
            turning = speed * plain_frequencies(rows.head_dim, 1000.0)
            return Piece(phase(rows.q_positions, turning), phase(rows.kv_positions, turning), where)

        return [at(1.0, None), at(0.5, jnp.abs(rows.delta) >= self.near)]

    def gain(self, rows):
        return 1 + jnp.log1p(jnp.abs(rows.delta).astype(jnp.float32)) / 10

    def bias(self, rows, params):
        distance = jnp.abs(rows.delta).astype(jnp.float32)
        return -params["slope"][None, :, None, None] * distance


@dataclasses.dataclass(frozen=True)
class Marked(Position):
    """NoPE with a bias 2 m_i m_j of marks that the layer's input gives tokens."""

    trained_kind: ClassVar[str] = "marked"

    def init_gates(self, num_heads, width):
        return {"kernel": jnp.ones((width, num_heads), jnp.float32)}

    def gates(self, params, x, before):
        del before
        mark = {"mark": jnp.tanh(jnp.einsum("btd,dn->btn", x, params["kernel"]))}
        return mark, mark

    def bias(self, rows, params):
        q, k = (x["position"]["mark"].swapaxes(1, 2) for x in (rows.q_gates, rows.kv_gates))
        return 2 * q[..., None] * k[:, :, None]


@dataclasses.dataclass(frozen=True)
class Slope(Temperature):
    """1 + slope ln(n / L), the slope learned per head."""

    def init_params(self, num_heads, head_dim, train_length):
        del head_dim, train_length
        return {"slope": jnp.full((num_heads,), 0.15, jnp.float32)}

    def __call__(self, rows, q, params):
        del q
        return 1 + params["slope"][None, :, None, None] * jnp.log(rows.n / rows.train_length)


@dataclasses.dataclass(frozen=True)
class Chunks(Visibility):
    """A document in chunks that do not see each other."""

    size: int = option(12, int, at_least=1)

    def __call__(self, delta, ordinal):
        return (ordinal + delta) // self.size == ordinal // self.size

    def keeps(self):
        return 0, self.size


@dataclasses.dataclass(frozen=True)
class Dilated(Visibility):
    """The nearest keys, and every third of the others; it says nothing of what it keeps."""

    def __call__(self, delta, ordinal):
        del ordinal
        return (jnp.abs(delta) < 4) | (delta % 3 == 0)


ENTRIES = {
    "own_two_stage": Entry(weighting=Contrast()),
    "own_by_key": Entry(weighting=Cauchy()),
    "own_rows": Entry(weighting=AboveMean()),
    "own_similarity": Entry(similarity=Norms()),
    "own_bounded": Entry(similarity=Bounded()),
    "own_position": Entry(position=TwoSpeeds()),
    "own_gates": Entry(position=Marked()),
    "own_temperature": Entry(temperature=Slope()),
    "own_chunks": Entry(visibility=Chunks()),
    "own_dilated": Entry(visibility=Dilated()),
}


def _over(values):
    total = values.sum(axis=-1, keepdims=True)
    return values / np.where(total > 0, total, 1)


def _softmax(logits, mask, n):
    del n
    return _over(mask * np.exp(np.where(mask, logits, -np.inf).clip(-700, 700)))


def _contrast(logits, mask, n):
    tail = 1 / (2 + 2 * np.abs(logits))
    first = _over(mask * np.where(logits < 0, tail, 1 - tail))
    scaled = first * n
    flat = scaled.max(axis=-1, keepdims=True) < 1.2
    return np.where(flat, first, _over(scaled**2 / (1 + scaled)))


def _cauchy(logits, mask, n):
    del n
    values = mask / (1 + (logits - 1) ** 2)
    return values / (1 + values.sum(axis=-1, keepdims=True))


def _above_mean(logits, mask, n):
    mean = (mask * logits).sum(axis=-1, keepdims=True) / n
    return _over(mask * np.maximum(logits - mean + 1, 0))


def _norms(q, k):
    squares = np.sum(q**2, axis=-1)[:, None] * np.sum(k**2, axis=-1) / q.shape[-1] ** 2
    return q @ k.T / math.sqrt(q.shape[-1]) - squares / 2


def _bounded(q, k):
    q, k = (x / np.sqrt(1 + np.sum(x**2, axis=-1, keepdims=True)) for x in (q, k))
    return 4 * q @ k.T


def _rotated(x, positions, base, speed, pairs):
    """Pairs as complex numbers, turned: [T, H], real parts first."""
    half = x.shape[-1] // 2
    first, second = (x[:, :half], x[:, half:]) if pairs == "halves" else (x[:, 0::2], x[:, 1::2])
    angles = positions[:, None] * speed * base ** (-np.arange(half) / half)
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _rope(similarity, q, k, places, head, params):
    del head, params
    return similarity(*(_rotated(x, at, 1e4, 1, "") for x, at in zip((q, k), places, strict=True)))


def _two_speeds(similarity, q, k, places, head, params):
    fast, slow = (
        similarity(
            *(_rotated(x, at, 1e3, s, "halves") for x, at in zip((q, k), places, strict=True))
        )
        for s in (1, 0.5)
    )
    distance = np.abs(places[0][:, None] - places[1])
    gain = 1 + np.log1p(distance) / 10
    return np.where(distance < 11, fast, slow), gain, -params["position"]["slope"][head] * distance


def _marked(similarity, q, k, places, head, params):
    del places, head, params
    q_mark, k_mark = (stand_in("mark", x[None, :, None], 1)[0, :, 0] for x in (q, k))
    return similarity(q, k), 1, 2 * q_mark[:, None] * k_mark


PLAIN: dict[str, dict[str, Callable[..., Any]]] = {
    "softmax": {
        "position": _rope,
        "similarity": lambda q, k: q @ k.T / math.sqrt(q.shape[-1]),
        "temperature": lambda n, length, head, params: 1,
        "weighting": _softmax,
        "visibility": lambda delta, ordinal: np.full(delta.shape, True),
    },
    "own_two_stage": {"weighting": _contrast},
    "own_by_key": {"weighting": _cauchy},
    "own_rows": {"weighting": _above_mean},
    "own_similarity": {"similarity": _norms},
    "own_bounded": {"similarity": _bounded},
    "own_position": {"position": _two_speeds},
    "own_gates": {"position": _marked},
    "own_temperature": {
        "temperature": lambda n, length, head, params: (
            1 + params["temperature"]["slope"][head] * np.log(n / length)
        )
    },
    "own_chunks": {"visibility": lambda delta, ordinal: (ordinal + delta) // 12 == ordinal // 12},
    "own_dilated": {"visibility": lambda delta, ordinal: (abs(delta) < 4) | (delta % 3 == 0)},
}


def plain_attend(
    q, k, v, params, name, length, *, causal,
    kv_mask=None, q_segment_ids=None, kv_segment_ids=None,
):  # fmt: skip
    """What the choices of a sum of names give, [B, T, N, V] in float64, at default positions."""
    chosen = dict(PLAIN["softmax"])
    for part in name.split("+"):
        chosen |= PLAIN[part]
    (batch, queries, heads, _), (keys, kv_heads) = q.shape, k.shape[1:3]
    kv_mask = np.ones((batch, keys), bool) if kv_mask is None else kv_mask
    kv_segment_ids = np.zeros((batch, keys)) if kv_segment_ids is None else kv_segment_ids
    q_segment_ids = np.zeros((batch, queries)) if q_segment_ids is None else q_segment_ids
    places = np.arange(keys - queries, keys), np.arange(keys)
    delta = places[0][:, None] - places[1]
    out = np.zeros((batch, queries, heads, v.shape[-1]))
    for b in range(batch):
        mask = kv_mask[b] & (q_segment_ids[b][:, None] == kv_segment_ids[b])
        real = [np.flatnonzero(kv_mask[b] & (kv_segment_ids[b] == x)) for x in kv_segment_ids[b]]
        start = np.array([where[0] if where.size else 0 for where in real])
        mask = mask & chosen["visibility"](delta, (places[1] - start)[None, :])
        mask = mask & (delta >= 0) if causal else mask
        n = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
        for h in range(heads):
            group = h // (heads // kv_heads)
            made = chosen["position"](
                chosen["similarity"], q[b, :, h], k[b, :, group], places, h, params
            )
            similarity, gain, bias = made if isinstance(made, tuple) else (made, 1, 0)
            temperature = chosen["temperature"](n, length, h, params)
            logits = gain * temperature * similarity + bias
            out[b, :, h] = chosen["weighting"](logits, mask, n) @ v[b, :, group]
    return out
