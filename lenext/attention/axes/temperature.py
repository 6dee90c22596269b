"""Temperature: a factor on the similarity that follows each row's number of visible keys n."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params, Rows, Temperature, option
from lenext.attention.axes.gates import of_rows

SOFTMAX_PLUS_LENGTH = 512  # the length GAU-alpha was pre-trained at, part of the method's name


@dataclasses.dataclass(frozen=True)
class Constant(Temperature):
    """1 whatever the length."""


def info_scale(n: Float[Array, "*B"], length: int, dim: int) -> Float[Array, "*B"]:
    """sqrt((1 - n^(-2/H)) / (1 - L^(-2/H))) for keys spread over the unit sphere in H dimensions.

    Holding the entropy of attention fixed keeps the attended cap at sin(theta) = n^(-1/H); this is
    its cosine at n relative to its cosine at L.
    """

    def cosine_squared(x):
        return -jnp.expm1(-2.0 / dim * jnp.log(x))

    return jnp.sqrt(cosine_squared(n) / cosine_squared(jnp.full_like(n, length)))


@dataclasses.dataclass(frozen=True)
class InfoScale(Temperature):
    """sqrt((1 - n^(-2/H)) / (1 - L^(-2/H))): InfoScale (arXiv 2501.08570). Exactly 1 at n = L.

    Keeps the entropy of a row as n grows. `clamp` (default) leaves rows shorter than L as they were
    trained; models trained with the law on every row turn it off. `all_heads` takes N * H for the
    dimension, and `scales_bias` multiplies a bias on the logits as well, as the authors' T5 and
    DNABERT-2 ports do (the latter unclamped).
    """

    clamp: bool = option(True, bool)
    all_heads: bool = option(False, bool)
    scales_bias: bool = option(False, bool)

    def factor(self, rows: Rows) -> Float[Array, "#B 1 T 1"]:
        """The law, at the rows' n."""
        dim = rows.head_dim * (rows.num_heads if self.all_heads else 1)
        factor = info_scale(rows.n, rows.train_length, dim)
        return jnp.maximum(factor, 1.0) if self.clamp else factor

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        return self.factor(rows)

    def of_bias(self, rows):  # noqa: D102
        return self.factor(rows) if self.scales_bias else None


@dataclasses.dataclass(frozen=True)
class LogLength(Temperature):
    """ln n / ln L, at least 1 unless `clamp` is off (Su 2021, "entropy invariance"; Qwen)."""

    clamp: bool = option(True, bool)

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        factor = jnp.log(rows.n) / math.log(rows.train_length)
        return jnp.maximum(factor, 1.0) if self.clamp else factor


@dataclasses.dataclass(frozen=True)
class EntropyMatched(Temperature):
    """sqrt(1 + sum of slope * ln n beyond L): holds each head at its own entropy as n grows. Ours.

    A row of n normal logits of variance v under softmax at a factor f has an entropy of about
    ln n - f^2 v / 2. What holds it at H0, its value at n = L, is sqrt((ln n - H0) / (ln L - H0)):
    a square that grows linearly in ln n, by 1 / (ln L - H0). The logits of a trained head are not
    normal, so that slope is measured (`lenext.evaluate --calibrate`), per layer and head, and once
    for each piece of lengths: from L to 2 L, to 8 L, to 32 L, and from there on. Uncalibrated, H0
    is ln L / 2 and the slope 2 / ln L throughout.

    Exactly 1 at n = L, and below unless `clamp` is off, where the first slope goes on. A square is
    never below 1/16, or 0 in rows shorter than L.
    """

    calibrated: ClassVar[bool] = True
    pieces: ClassVar[tuple[int, ...]] = (1, 2, 8, 32)  # where each begins, in L
    clamp: bool = option(True, bool)

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del head_dim
        shape = (num_heads, len(self.pieces))
        return {"slopes": jnp.full(shape, 2 / math.log(train_length), jnp.float32)}

    def __call__(self, rows, q, params):  # noqa: D102
        del q
        beyond = jnp.log(rows.n / rows.train_length)
        square = jnp.ones_like(beyond)
        starts = [math.log(start) for start in self.pieces]
        for piece, (start, stop) in enumerate(zip(starts, [*starts[1:], math.inf], strict=True)):
            lowest = start if piece or self.clamp else -math.inf
            inside = jnp.clip(beyond, lowest, stop) - start
            square = square + params["slopes"][None, :, None, None, piece] * inside
        square = jnp.maximum(square, jnp.where(beyond > 0, jnp.float32(1 / 16), 0.0))
        # The square root has no gradient at 0.
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@dataclasses.dataclass(frozen=True)
class SoftmaxPlus(Temperature):
    """ln n / ln 512, unclamped: GAU-alpha's own pre-training (softmax_plus)."""

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        return jnp.log(rows.n) / math.log(SOFTMAX_PLUS_LENGTH)


@dataclasses.dataclass(frozen=True)
class LengthScaled(Temperature):
    """ln H * ln n, on cosines (LSSA, arXiv 2501.13428)."""

    trained_kind: ClassVar[str] = "length-scaled"

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        return math.log(rows.head_dim) * jnp.log(rows.n)

    def largest(self, keys, head_dim):  # noqa: D102
        return math.log(head_dim) * math.log(keys)


@dataclasses.dataclass(frozen=True)
class ScalableSoftmax(Temperature):
    """s_h * ln n, s learned per head, starting at 1 / ln L (SSMax, arXiv 2501.19399)."""

    trained_kind: ClassVar[str] = "ssmax"

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del head_dim
        return {"slope": jnp.full((num_heads,), 1.0 / math.log(train_length), jnp.float32)}

    def __call__(self, rows, q, params):  # noqa: D102
        del q
        return params["slope"][None, :, None, None] * jnp.log(rows.n)


def places_in_document(rows: Rows) -> Float[Array, "#B 1 T 1"]:
    """Each query's place in its own document, from 0; padding before the document stands at 0."""
    places = rows.q_positions[:, None, :, None] - rows.start
    return jnp.maximum(places, 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class FlooredLog(Temperature):
    """1 + beta * ln(1 + floor((i + 1) / floor)), i the place in the document.

    Llama 4's temperature tuning (its attn_scale and floor_scale). A step function: nothing changes
    before `floor` tokens.
    """

    beta: float = option(0.1, float, at_least=0.0)
    floor: int = option(8192, int, at_least=1)

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        steps = jnp.floor((places_in_document(rows) + 1) / self.floor)
        return 1 + self.beta * jnp.log1p(steps)


@dataclasses.dataclass(frozen=True)
class TrainedFlooredLog(Temperature):
    """1 + beta * ln(1 + floor(i / L)), i the place in the document (Ministral 3)."""

    beta: float = option(0.1, float, at_least=0.0)

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        steps = jnp.floor(places_in_document(rows) / rows.train_length)
        return 1 + self.beta * jnp.log1p(steps)


@dataclasses.dataclass(frozen=True)
class Selective(Temperature):
    """1 + e^(-e^beta) * ln n + tanh(w_h . q), q before rotation (SSA, arXiv 2411.12892).

    The second term follows the position, the third the token. beta is one number a layer, as in the
    authors' code, and starts at 2, w at 0, which is all but a factor of 1.
    """

    trained_kind: ClassVar[str] = "ssa"

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del train_length
        return {
            "beta": jnp.full((), 2.0, jnp.float32),
            "query": jnp.zeros((num_heads, head_dim), jnp.float32),
        }

    def __call__(self, rows, q, params):  # noqa: D102
        by_position = jnp.exp(-jnp.exp(params["beta"])) * jnp.log(rows.n)
        token = jnp.einsum("btnh,nh->bnt", q, params["query"], precision=jax.lax.Precision.HIGHEST)
        return 1 + by_position + jnp.tanh(token)[..., None]


@dataclasses.dataclass(frozen=True)
class InputLog(Temperature):
    """delta + beta (ln(n + 1))^gamma: ASEntmax's (arXiv 2506.16640).

    beta = softplus(w_h . x) and gamma = 2 tanh(u_h . x) follow the layer's input x, with w and u
    learned per head from 0.
    """

    trained_kind: ClassVar[str] = "asentmax"
    delta: float = option(1.0, float, at_least=0.0)

    def init_gates(self, num_heads: int, width: int) -> Params:  # noqa: D102
        zeros = jnp.zeros((width, num_heads), jnp.float32)
        return {"beta": zeros, "gamma": zeros}

    def gates(self, params, x, before):  # noqa: D102
        del before
        beta, gamma = (
            jnp.einsum("btd,dn->btn", x, params[name], precision=jax.lax.Precision.HIGHEST)
            for name in ("beta", "gamma")
        )
        return {"beta": jax.nn.softplus(beta), "gamma": 2 * jnp.tanh(gamma)}, {}

    def __call__(self, rows, q, params):  # noqa: D102
        del q, params
        beta, gamma = (of_rows(rows.q_gates["temperature"][x]) for x in ("beta", "gamma"))
        return self.delta + beta * jnp.log(rows.n + 1) ** gamma
