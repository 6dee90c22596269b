"""Weighting: rows of logits to weights.

Most weights are a value of each logit over the row's sum of values, or over nothing. Such a row can
be summed up key by key (`KeyByKey`), without ever being complete, also where a second stage follows
(`TwoStage`); others take the complete row.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params, Rows, Weighting, option
from lenext.attention.axes.by_key import KeyByKey, TwoStage

# An excess over LSSAR's offset below this is float32 noise on equal weights, not a preference.
NO_EXCESS = 1e-5


@dataclasses.dataclass(frozen=True)
class Softmax(KeyByKey):
    """exp(logit) over its sum."""

    trained_kind: ClassVar[str] = "softmax"

    @property
    def is_softmax(self):  # noqa: D102
        return type(self) is Softmax  # whoever derives from it changes something

    def shift(self, largest, params):  # noqa: D102
        del params
        return largest

    def values(self, logits, shift, rows, params):  # noqa: D102
        del rows, params
        return jnp.exp(logits - shift)


@dataclasses.dataclass(frozen=True)
class SoftmaxPlusOne(Softmax):
    """exp(logit) over 1 + the sum: a row may attend to nothing (Miller 2023, softmax1)."""

    trained_kind: ClassVar[str] = "softmax1"

    def shift(self, largest, params):  # noqa: D102
        del params
        return jnp.maximum(largest, 0.0)  # the one in the denominator is a key of logit 0

    def rest(self, shift, params):  # noqa: D102
        del params
        return jnp.exp(-shift)


@dataclasses.dataclass(frozen=True)
class SoftmaxSink(Softmax):
    """exp(logit) over e^s_h + the sum, s learned per head, from 0: gpt-oss (OpenAI 2025).

    As if every row saw one key more, of logit s_h and value 0. `softmax1` is s_h = 0.
    """

    trained_kind: ClassVar[str] = "softmax_sink"

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del head_dim, train_length
        return {"sink": jnp.zeros((num_heads,), jnp.float32)}

    def shift(self, largest, params):  # noqa: D102
        return jnp.maximum(largest, params["sink"][None, :, None, None])

    def rest(self, shift, params):  # noqa: D102
        return jnp.exp(params["sink"][None, :, None, None] - shift)


PHIS = ("exp", "softplus", "relu", "relu2", "sigmoid", "gelu_shifted")
GELU_LEAST = -0.16997120747990369  # min of x Phi(x): taken off, so that weights are not negative
LOW = -10.0  # below, softplus(x) is e^x (1 - e^x / 2) and sigmoid(x) is e^x (1 - e^x), in float32
ROUNDED_LOW = -8.0  # below, both are e^x within 4e-4 of it
WIDE = 80.0  # e^-80 and its reciprocal are normal numbers of float32


def log1p_of_unit(x: Float[Array, "*B"], first: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """ln(1 + x) for x in [0, 1], within 2e-6 of its value: half the time of log1p on a CPU.

    Where x < 0.03, times `first` / x.
    """
    series = first * (1 - x * (1 / 2 - x * (1 / 3 - x / 4)))
    return jnp.where(x < 0.03, series, jnp.log(1 + x))


@jax.custom_jvp
def softplus_over(
    x: Float[Array, "B N T S"], scale: Float[Array, "B N T 1"]
) -> Float[Array, "B N T S"]:
    """ln(1 + scale e^x) / scale, for scales of 1, or below 1 in rows of no x above LOW.

    The latter's scale e^x is small enough for the series, whose first factor then is e^x.
    """
    small = jnp.exp(-jnp.abs(x))
    return jnp.maximum(x, 0.0) + log1p_of_unit(small * scale, small)


@softplus_over.defjvp
def _softplus_over_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Its slope in a few operations, where the series' own takes twenty; none along the scale.

    That is made of the shift, which weights do not follow.
    """
    x, scale = primals
    small = jnp.exp(-jnp.abs(x))
    slope = jnp.where(x < 0, small, 1.0) / (1 + small * scale)
    return softplus_over(x, scale), slope * tangents[0]


def _power(x: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    """e^x."""
    return jnp.exp2(x * math.log2(math.e))


@jax.custom_jvp
def rounded_softplus(x: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    """ln(1 + e^x) for x up to WIDE, within 4e-4 of it: a third of what `softplus_over` takes."""
    power = _power(x)
    return jnp.where(x < ROUNDED_LOW, power, jnp.log(1 + power))


@rounded_softplus.defjvp
def _rounded_softplus_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,) = primals
    return rounded_softplus(x), rounded_sigmoid(x) * tangents[0]


@jax.custom_jvp
def rounded_sigmoid(x: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    """1 / (1 + e^-x) within 4e-4 of it, without the division."""
    return jnp.where(x < ROUNDED_LOW, _power(x), 0.5 + 0.5 * jnp.tanh(0.5 * x))


@rounded_sigmoid.defjvp
def _rounded_sigmoid_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    out = rounded_sigmoid(*primals)
    return out, out * (1 - out) * tangents[0]


@dataclasses.dataclass(frozen=True)
class Activated(KeyByKey):
    """phi(logit) over its sum: LSSA's with softplus (arXiv 2501.13428), and its ablation's.

    Not normalised (`norm="none"`), a row is over its number n of keys, as ReLU attention's.
    """

    phi: str = option("softplus", str, choices=PHIS)
    norm: str = option("l1", str, choices=("l1", "none"))

    def __post_init__(self):
        super().__post_init__()
        if self.phi == "exp" and self.norm == "none":
            raise ValueError("option norm='none': should be 'l1' with phi='exp', which overflows")

    @property
    def kind(self) -> str:  # noqa: D102
        return self.phi if self.norm == "l1" else f"{self.phi}, not normalised"

    @property
    def normalised(self):  # noqa: D102
        return self.norm == "l1"

    @property
    def rises(self):  # noqa: D102
        return self.phi != "gelu_shifted"  # which falls before it rises

    @property
    def unshifted_within(self):  # noqa: D102
        if self.phi == "exp":
            return 0.0
        wide = self.phi == "softplus" or (self.phi == "sigmoid" and self.normalised)
        return WIDE if wide else math.inf

    def shift(self, largest, params):  # noqa: D102
        del params
        if self.phi == "exp":
            return largest
        if self.normalised and self.phi in ("softplus", "sigmoid"):
            # Only rows that lie all below LOW, where both are as good as exp, could underflow.
            return jnp.minimum(largest - LOW, 0.0)
        return jnp.zeros_like(largest)

    def values(self, logits, shift, rows, params):  # noqa: D102
        del params
        values = self._activated(logits, shift, rounded=rows.rounded)
        return values if self.normalised else values / rows.n

    def _activated(self, x, shift, *, rounded):
        match self.phi:
            case "exp":
                return jnp.exp(x - shift)
            case "relu":
                return jax.nn.relu(x)
            case "relu2":
                return jax.nn.relu(x) ** 2
            case "gelu_shifted":
                return jax.nn.gelu(x, approximate=False) - GELU_LEAST
        if rounded:
            return (rounded_sigmoid if self.phi == "sigmoid" else rounded_softplus)(x)
        scale = jnp.exp(shift)
        if self.phi == "sigmoid":
            low = shift < 0
            small = jnp.exp(jnp.where(low, x - shift, 0.0))
            return jnp.where(low, small * (1 - small * scale), jax.nn.sigmoid(x))
        return softplus_over(x - shift, scale)


@dataclasses.dataclass(frozen=True)
class Reweighted(TwoStage, Activated):
    """Weights a of phi(logit), sharpened: relu(a n - offset)^power over its sum.

    LSSAR's second stage, after softplus (arXiv 2501.13428). No offset in rows of n <= 3 keys; a row
    in which nothing exceeds it keeps a.
    """

    power: float = option(15, float, at_least=1.0)
    offset: float = option(1.0, float, at_least=0.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"{super().kind}, re-weighted"

    def excess(
        self,
        weights: Float[Array, "B N T S"],
        rows: Rows,
        factor: Float[Array, "B N T 1"] | float = 1.0,
    ) -> Float[Array, "B N T S"]:
        """relu(a n - offset) times a factor; no offset in rows of three keys or fewer."""
        offset = jnp.where(rows.n <= 3, 0.0, np.float32(self.offset))
        return jax.nn.relu(weights * (rows.n * factor) - offset * factor)

    def is_flat(self, largest, rows):  # noqa: D102
        return self.excess(largest, rows) < NO_EXCESS

    def second(self, weights, largest, rows):
        """(excess / the row's largest)^power: n^15 would overflow."""
        largest = self.excess(largest, rows)
        # In flat rows anything that has no infinite gradient.
        largest = jnp.where(largest < NO_EXCESS, 1.0, largest)
        # By one division a row; a whole power by multiplications, of which 15 takes five.
        excess = self.excess(weights, rows, 1 / largest)
        power = int(self.power) if self.power == int(self.power) else self.power
        return (excess**3) ** 5 if power == 15 else excess**power


# The authors' fit, from h^4 down: the factor that makes up for a row's entropy h.
SHARPENING = (-0.037, 0.481, -2.3, 4.917, -1.791)
DILUTED = 0.5  # nats; rows of less entropy are left alone


@dataclasses.dataclass(frozen=True)
class AdaptiveSoftmax(Weighting):
    """Softmax at a temperature read off its own entropy (arXiv 2410.01104).

    In rows of entropy h > 0.5, logits times max(1, -0.037 h^4 + 0.481 h^3 - 2.3 h^2 + 4.917 h
    - 1.791). The fit was made on short rows: from h of about 5.9 on it is below 1, and a row so
    diluted stays as it is.
    """

    trained_kind: ClassVar[str] = "softmax"

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        first = Softmax()(logits, mask, rows, params)
        seen = first > 0
        terms = jnp.where(seen, first * jnp.log(jnp.where(seen, first, 1.0)), 0.0)
        entropy = -jnp.sum(terms, axis=-1, keepdims=True)
        fit = jnp.polyval(jnp.asarray(SHARPENING, jnp.float32), entropy)
        factor = jnp.where(entropy > DILUTED, jnp.maximum(fit, 1.0), 1.0)
        return Softmax()(logits * factor, mask, rows, params)


class NotNormalised(KeyByKey):
    """Weights that are their values: rows need not sum to 1."""

    unshifted_within: ClassVar[float] = math.inf

    @property
    def normalised(self):  # noqa: D102
        return False


@dataclasses.dataclass(frozen=True)
class Sigmoid(NotNormalised):
    """sigmoid(logit - ln L), not normalised (arXiv 2409.04431).

    The authors' bias is one number. `bias="row"` takes ln n of each row in place of ln L.
    """

    trained_kind: ClassVar[str] = "sigmoid"
    bias: str = option("length", str, choices=("length", "row"))

    def values(self, logits, shift, rows, params):  # noqa: D102
        del shift, params
        by_row = self.bias == "row"
        x = logits - (jnp.log(rows.n) if by_row else math.log(rows.train_length))
        return rounded_sigmoid(x) if rows.rounded else jax.nn.sigmoid(x)


@dataclasses.dataclass(frozen=True)
class Relu(NotNormalised):
    """relu(logit) / n, not normalised (arXiv 2309.08586)."""

    trained_kind: ClassVar[str] = "relu"

    def values(self, logits, shift, rows, params):  # noqa: D102
        del shift, params
        return jax.nn.relu(logits) / rows.n


@dataclasses.dataclass(frozen=True)
class SquaredRelu(NotNormalised):
    """relu(logit)^2 / n, not normalised (arXiv 2309.08586 with a square).

    `gau` takes the original GAU's relu(q . k / n)^2 (arXiv 2202.10447), without 1 / sqrt(H).
    """

    trained_kind: ClassVar[str] = "relu2"
    gau: bool = option(False, bool)

    @property
    def kind(self) -> str:  # noqa: D102
        return "relu2, gau" if self.gau else "relu2"

    def values(self, logits, shift, rows, params):  # noqa: D102
        del shift, params
        if self.gau:
            return jax.nn.relu(logits * math.sqrt(rows.head_dim) / rows.n) ** 2
        return jax.nn.relu(logits) ** 2 / rows.n


@dataclasses.dataclass(frozen=True)
class Sparsemax(Weighting):
    """The row's nearest point of the probability simplex (arXiv 1602.02068).

    relu(logit - tau), tau such that the row sums to 1: found from the sorted row as the last one
    at which 1 + k z_k is above the sum of the first k.
    """

    trained_kind: ClassVar[str] = "sparsemax"

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        del rows, params
        largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
        largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
        # tau lies within 1 of the top. What is further down cannot be in the support, nor spoil
        # the sums.
        z = jnp.where(mask, jnp.maximum(logits - largest, -1.0), -1.0)
        ordered = -jnp.sort(-jax.lax.stop_gradient(z), axis=-1)
        count = jnp.arange(1, z.shape[-1] + 1, dtype=jnp.float32)[None, None, None, :]
        sums = jnp.cumsum(ordered, axis=-1)
        size = jnp.sum(1 + count * ordered > sums, axis=-1, keepdims=True, dtype=jnp.int32)
        last = jnp.take_along_axis(ordered, jnp.maximum(size - 1, 0), axis=-1)
        # tau once more from the row itself, for its gradient.
        support = mask & (z >= last) & (z > -1.0)
        members = jnp.maximum(jnp.sum(support, axis=-1, keepdims=True, dtype=jnp.int32), 1)
        tau = (jnp.sum(jnp.where(support, z, 0.0), axis=-1, keepdims=True) - 1) / members
        return jnp.where(support, jax.nn.relu(z - tau), 0.0)


@dataclasses.dataclass(frozen=True)
class Entmax(Weighting):
    """alpha-entmax (arXiv 1905.05702): relu((alpha - 1) logit - tau)^(1 / (alpha - 1)).

    tau is such that the row sums to 1. alpha = 1 is softmax, 2 sparsemax; above 1 far keys get 0.
    """

    trained_kind: ClassVar[str] = "entmax"
    alpha: float = option(1.5, float, at_least=1.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"entmax, alpha {self.alpha:g}"

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        if self.alpha == 1:
            return Softmax()(logits, mask, rows, params)
        largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
        largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
        # What is 1 below the top cannot be in the support: tau lies within 1 of it.
        x = jnp.maximum((self.alpha - 1) * (logits - largest), -1.0)
        return jnp.where(mask, entmax(float(self.alpha), jnp.where(mask, x, -1.0)), 0.0)


HALVINGS = 40  # of an interval of 1, below float32's resolution


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def entmax(alpha: float, x: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    """relu(x - tau)^(1 / (alpha - 1)), tau such that rows sum to 1; rows' largest x is 0."""

    def values(tau: Array) -> Array:
        return jax.nn.relu(x - tau) ** (1 / (alpha - 1))

    def halved(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        heavy = jnp.sum(values(middle), axis=-1, keepdims=True) >= 1
        return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

    top = jnp.zeros((*x.shape[:-1], 1), x.dtype)
    low, _ = jax.lax.fori_loop(0, HALVINGS, halved, (top - 1, top))
    weights = values(low)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


@entmax.defjvp
def _entmax_jvp(alpha: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """By the implicit function theorem: nothing goes through the halvings."""
    weights = entmax(alpha, *primals)
    slope = jnp.where(weights > 0, jnp.where(weights > 0, weights, 1.0) ** (2 - alpha), 0.0)
    (dx,) = tangents
    mean = jnp.sum(slope * dx, axis=-1, keepdims=True) / jnp.sum(slope, axis=-1, keepdims=True)
    return weights, slope * (dx - mean) / (alpha - 1)


@dataclasses.dataclass(frozen=True)
class StickBreaking(Weighting):
    """sigmoid(z_ij) times 1 - sigmoid(z_ik) of all keys k between j and i (arXiv 2410.17980).

    Each key breaks off its share of what nearer ones have left of the row; what is left after the
    first is nobody's, so rows sum to at most 1. A row does not see itself: strictly causal. Keys
    stand in the order of their positions, whatever their places in an array. Causal only.
    """

    trained_kind: ClassVar[str] = "stick_breaking"
    causal_only: ClassVar[bool] = True

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        del params
        mask = jnp.broadcast_to(mask & (rows.delta > 0), logits.shape)
        logits = jnp.where(mask, logits, 0.0)
        left = jnp.where(mask, -jax.nn.softplus(logits), 0.0)  # ln(1 - sigmoid)
        order = rows.kv_positions

        def nearer(left: Array) -> Array:
            """The sum over all keys that come later."""
            return jax.lax.cumsum(left, axis=3, reverse=True) - left

        def sorted_first(left: Array) -> Array:
            places = jax.lax.broadcasted_iota(jnp.int32, order.shape, 1)
            _, at = jax.lax.sort((order, places), num_keys=1)
            _, back = jax.lax.sort((at, places), num_keys=1)
            ranked = jnp.take_along_axis(left, at[:, None, None, :], axis=-1)
            return jnp.take_along_axis(nearer(ranked), back[:, None, None, :], axis=-1)

        # Keys stand out of order in caches that go round, and in packs.
        ascending = jnp.all(order[:, 1:] >= order[:, :-1])
        taken = jax.lax.cond(ascending, nearer, sorted_first, left)
        log = -jax.nn.softplus(-logits) + taken
        return jnp.where(mask, jnp.exp(jnp.where(mask, log, 0.0)), 0.0)
