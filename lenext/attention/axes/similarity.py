"""Similarity: how alike a query and a key are, as a product of what is made of each."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Similarity, option

# Under the root, so that a zero vector (padding) has unit vector zero and finite gradients.
EPSILON = 1e-12


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """x over its Euclidean norm along the last axis; 0 for a zero vector."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)


OF_WEIGHTS = ("logit_scale", "softcap")
"""Options of a dot product that are of the weights, and so of one that replaces it."""


@dataclasses.dataclass(frozen=True)
class Dot(Similarity):
    """Scaled dot product, q . k / sqrt(H) (Vaswani et al. 2017, eq. 1).

    `logit_scale` is a factor in place of 1 / sqrt(H), and `softcap` keeps logits, temperature
    included, within +-softcap: softcap * tanh(logit / softcap), as in Gemma 2 (arXiv 2408.00118).
    Weights trained with them keep them.
    """

    trained_kind: ClassVar[str] = "dot"
    logit_scale: float | None = option(None, float, above=0.0)
    softcap: float | None = option(None, float, above=0.0)

    def of_queries(self, q):  # noqa: D102
        if self.logit_scale is None:
            return q / math.sqrt(q.shape[-1])
        return q * self.logit_scale

    @property
    def bounds(self):  # noqa: D102
        return self.softcap is not None

    def bounded(self, logits):  # noqa: D102
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


@dataclasses.dataclass(frozen=True)
class Cosine(Similarity):
    """CosScale: c times the cosine, no 1/sqrt(H) (arXiv 2501.08570)."""

    trained_kind: ClassVar[str] = "cosine"
    cos_scale: float = option(128.0, float, at_least=0.0)

    def of_queries(self, q):  # noqa: D102
        return self.cos_scale * unit(q)

    def of_keys(self, k):  # noqa: D102
        return unit(k)


@dataclasses.dataclass(frozen=True)
class UnitDot(Similarity):
    """The bare cosine; its scale is the temperature's business (LSSA, arXiv 2501.13428)."""

    trained_kind: ClassVar[str] = "cosine"

    @property
    def largest(self):  # noqa: D102
        return 1.0

    def of_queries(self, q):  # noqa: D102
        return unit(q)

    def of_keys(self, k):  # noqa: D102
        return unit(k)


@dataclasses.dataclass(frozen=True)
class Gaussian(Similarity):
    """-|q - k|^2 / (2 sqrt(H)): under softmax, SOFT's Gaussian kernel (arXiv 2110.11945).

    By its parts, q . k - |q|^2 / 2 - |k|^2 / 2, which two more dimensions carry.
    """

    trained_kind: ClassVar[str] = "gaussian"

    def of_queries(self, q):  # noqa: D102
        half = jnp.sum(q * q, axis=-1, keepdims=True) / 2
        return jnp.concatenate([q, -half, jnp.ones_like(half)], axis=-1) / math.sqrt(q.shape[-1])

    def of_keys(self, k):  # noqa: D102
        half = jnp.sum(k * k, axis=-1, keepdims=True) / 2
        return jnp.concatenate([k, jnp.ones_like(half), -half], axis=-1)
