"""Weighting: complete rows of logits to weights."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lenext.attention.method import Weighting, option

# An excess over LSSAR's offset below this is float32 noise on equal weights, not a preference.
NO_EXCESS = 1e-5


def softmax(
    logits: Float[Array, "B N T S"], mask: Bool[Array, "#B 1 T S"]
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys; a row that sees nothing, or only -inf, gives zeros.

    Masked entries are replaced before they meet exp, so no gradient can turn NaN there.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    exps = jnp.where(mask, jnp.exp(jnp.where(mask, logits - largest, 0.0)), 0.0)
    total = jnp.sum(exps, axis=-1, keepdims=True)
    return exps / jnp.where(total > 0, total, 1.0)


def log_softplus(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """ln softplus(x), without underflow: softplus(x) tends to e^x (1 - e^x / 2) far below 0."""
    low = x < -10.0
    direct = jnp.log(jax.nn.softplus(jnp.where(low, 0.0, x)))
    # No entry may overflow in the branch it does not take, or its gradient is NaN.
    return jnp.where(low, x - 0.5 * jnp.exp(jnp.minimum(x, 0.0)), direct)


def reweight(
    weights: Float[Array, "B N T S"], n: Float[Array, "#B 1 T 1"], power: float, offset: float
) -> Float[Array, "B N T S"]:
    """LSSAR's second stage: relu(a_ij n_i - o_i)^p over its row sum (arXiv 2501.13428).

    o_i is `offset`, or 0 in rows of three keys or fewer. Each row is divided by its maximum before
    the power, which the row sum undoes exactly: n^15 would overflow. A row in which nothing
    exceeds the offset (all weights equal) keeps its first-stage weights.
    """
    excess = jax.nn.relu(weights * n - jnp.where(n <= 3, 0.0, offset))
    largest = jax.lax.stop_gradient(jnp.max(excess, axis=-1, keepdims=True))
    flat = largest < NO_EXCESS
    sharp = (excess / jnp.where(flat, 1.0, largest)) ** power
    total = jnp.sum(sharp, axis=-1, keepdims=True)
    return jnp.where(flat, weights, sharp / jnp.where(flat, 1.0, total))


@dataclasses.dataclass(frozen=True)
class Softmax(Weighting):
    """exp(logit) over its sum."""

    trained_kind: ClassVar[str] = "softmax"

    def __call__(self, logits, mask, rows):  # noqa: D102
        del rows
        return softmax(logits, mask)


PHIS = ("exp", "softplus", "relu", "relu2", "sigmoid", "gelu_shifted")
GELU_LEAST = -0.16997120747990369  # min of x Phi(x): taken off, so that weights are not negative


def activate(
    logits: Float[Array, "B N T S"],
    mask: Bool[Array, "#B 1 T S"],
    n: Float[Array, "#B 1 T 1"],
    phi: str,
    norm: str,
) -> Float[Array, "B N T S"]:
    """phi(logit) over its row sum (norm "l1") or over the row's number of keys ("none")."""
    logarithms = {
        "exp": lambda x: x,
        "softplus": log_softplus,
        "sigmoid": jax.nn.log_sigmoid,
    }
    if norm == "l1" and phi in logarithms:  # by softmax's shift: nothing over- or underflows
        return softmax(logarithms[phi](logits), mask)
    values = {
        "softplus": jax.nn.softplus,
        "sigmoid": jax.nn.sigmoid,
        "relu": jax.nn.relu,
        "relu2": lambda x: jax.nn.relu(x) ** 2,
        "gelu_shifted": lambda x: jax.nn.gelu(x, approximate=False) - GELU_LEAST,
    }
    weights = jnp.where(mask, values[phi](logits), 0.0)
    total = n if norm == "none" else jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


@dataclasses.dataclass(frozen=True)
class Activated(Weighting):
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

    def __call__(self, logits, mask, rows):  # noqa: D102
        return activate(logits, mask, rows.n, self.phi, self.norm)


@dataclasses.dataclass(frozen=True)
class Reweighted(Activated):
    """Weights a of phi(logit), sharpened: relu(a n - offset)^power over its sum.

    LSSAR's second stage, after softplus (arXiv 2501.13428). No offset in rows of n <= 3 keys; a row
    in which nothing exceeds it keeps a.
    """

    power: float = option(15, float, at_least=1.0)
    offset: float = option(1.0, float, at_least=0.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"{super().kind}, re-weighted"

    def __call__(self, logits, mask, rows):  # noqa: D102
        first = super().__call__(logits, mask, rows)
        return reweight(first, rows.n, self.power, self.offset)


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

    def __call__(self, logits, mask, rows):  # noqa: D102
        del rows
        first = softmax(logits, mask)
        seen = first > 0
        terms = jnp.where(seen, first * jnp.log(jnp.where(seen, first, 1.0)), 0.0)
        entropy = -jnp.sum(terms, axis=-1, keepdims=True)
        fit = jnp.polyval(jnp.asarray(SHARPENING, jnp.float32), entropy)
        factor = jnp.where(entropy > DILUTED, jnp.maximum(fit, 1.0), 1.0)
        return softmax(logits * factor, mask)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Weighting):
    """sigmoid(logit - ln n), not normalised (arXiv 2409.04431)."""

    trained_kind: ClassVar[str] = "sigmoid"

    def __call__(self, logits, mask, rows):  # noqa: D102
        return jnp.where(mask, jax.nn.sigmoid(logits - jnp.log(rows.n)), 0.0)


@dataclasses.dataclass(frozen=True)
class Relu(Weighting):
    """relu(logit) / n, not normalised (arXiv 2309.08586)."""

    trained_kind: ClassVar[str] = "relu"

    def __call__(self, logits, mask, rows):  # noqa: D102
        return jnp.where(mask, jax.nn.relu(logits) / rows.n, 0.0)


@dataclasses.dataclass(frozen=True)
class SquaredRelu(Weighting):
    """relu(logit)^2 / n, not normalised (arXiv 2309.08586 with a square).

    `gau` takes the original GAU's relu(q . k / n)^2 (arXiv 2202.10447), without 1 / sqrt(H).
    """

    trained_kind: ClassVar[str] = "relu2"
    gau: bool = option(False, bool)

    @property
    def kind(self) -> str:  # noqa: D102
        return "relu2, gau" if self.gau else "relu2"

    def __call__(self, logits, mask, rows):  # noqa: D102
        if self.gau:
            values = jax.nn.relu(logits * math.sqrt(rows.head_dim) / rows.n) ** 2
        else:
            values = jax.nn.relu(logits) ** 2 / rows.n
        return jnp.where(mask, values, 0.0)


@dataclasses.dataclass(frozen=True)
class SoftmaxPlusOne(Weighting):
    """exp(logit) over 1 + the sum: a row may attend to nothing (Miller 2023, softmax1)."""

    trained_kind: ClassVar[str] = "softmax1"

    def __call__(self, logits, mask, rows):  # noqa: D102
        del rows
        # The one in the denominator is a key of logit 0.
        largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=0.0)
        largest = jax.lax.stop_gradient(largest)
        exps = jnp.where(mask, jnp.exp(jnp.where(mask, logits - largest, 0.0)), 0.0)
        return exps / (jnp.exp(-largest) + jnp.sum(exps, axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Sparsemax(Weighting):
    """The row's nearest point of the probability simplex (arXiv 1602.02068).

    relu(logit - tau), tau such that the row sums to 1: found from the sorted row as the last one
    at which 1 + k z_k is above the sum of the first k.
    """

    trained_kind: ClassVar[str] = "sparsemax"

    def __call__(self, logits, mask, rows):  # noqa: D102
        del rows
        largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
        largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
        # tau lies within 1 of the top. What is further down cannot be in the support, nor spoil
        # the sums.
        z = jnp.where(mask, jnp.maximum(logits - largest, -1.0), -1.0)
        ordered = -jnp.sort(-jax.lax.stop_gradient(z), axis=-1)
        count = jnp.arange(1, z.shape[-1] + 1, dtype=jnp.float32)[None, None, None, :]
        sums = jnp.cumsum(ordered, axis=-1)
        size = jnp.sum(1 + count * ordered > sums, axis=-1, keepdims=True)
        last = jnp.take_along_axis(ordered, jnp.maximum(size - 1, 0), axis=-1)
        # tau once more from the row itself, for its gradient.
        support = mask & (z >= last) & (z > -1.0)
        members = jnp.maximum(jnp.sum(support, axis=-1, keepdims=True), 1)
        tau = (jnp.sum(jnp.where(support, z, 0.0), axis=-1, keepdims=True) - 1) / members
        return jnp.where(support, jax.nn.relu(z - tau), 0.0)
