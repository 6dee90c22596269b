"""Weighting: complete rows of logits to weights."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Softplus(Weighting):
    """softplus(logit) over its sum (LSSA, arXiv 2501.13428)."""

    trained_kind: ClassVar[str] = "softplus"

    def __call__(self, logits, mask, rows):  # noqa: D102
        del rows
        return softmax(log_softplus(logits), mask)


@dataclasses.dataclass(frozen=True)
class ReweightedSoftplus(Weighting):
    """LSSA's weights, sharpened (LSSAR, arXiv 2501.13428). See `reweight`."""

    trained_kind: ClassVar[str] = "softplus, re-weighted"
    power: float = option(15, float, at_least=1.0)
    offset: float = option(1.0, float, at_least=0.0)

    def __call__(self, logits, mask, rows):  # noqa: D102
        first = softmax(log_softplus(logits), mask)
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
