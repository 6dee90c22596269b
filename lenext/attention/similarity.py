"""Similarity: how alike a query and a key are."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.method import Similarity, option

# Under the root, so that a zero vector (padding) has unit vector zero and finite gradients.
EPSILON = 1e-12


def dot_products(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> Float[Array, "B N T S"]:
    """q_i . k_j for grouped queries: query head h meets key head h // (N / K)."""
    (b, t, n, h), (s, kv_heads) = q.shape, k.shape[1:3]
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    out = jnp.einsum("btkgh,bskh->bkgts", grouped, k, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, n, t, s)


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """x over its Euclidean norm along the last axis; 0 for a zero vector."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)


@dataclasses.dataclass(frozen=True)
class Dot(Similarity):
    """Scaled dot product, q . k / sqrt(H) (Vaswani et al. 2017, eq. 1)."""

    trained_kind: ClassVar[str] = "dot"

    def __call__(self, q, k):  # noqa: D102
        return dot_products(q, k) / math.sqrt(q.shape[-1])


@dataclasses.dataclass(frozen=True)
class Cosine(Similarity):
    """CosScale: c times the cosine, no 1/sqrt(H) (arXiv 2501.08570)."""

    trained_kind: ClassVar[str] = "cosine"
    cos_scale: float = option(128.0, float, at_least=0.0)

    def __call__(self, q, k):  # noqa: D102
        return self.cos_scale * dot_products(unit(q), unit(k))


@dataclasses.dataclass(frozen=True)
class UnitDot(Similarity):
    """The bare cosine; its scale is the temperature's business (LSSA, arXiv 2501.13428)."""

    trained_kind: ClassVar[str] = "cosine"

    def __call__(self, q, k):  # noqa: D102
        return dot_products(unit(q), unit(k))


@dataclasses.dataclass(frozen=True)
class Gaussian(Similarity):
    """-|q - k|^2 / (2 sqrt(H)): under softmax, SOFT's Gaussian kernel (arXiv 2110.11945)."""

    trained_kind: ClassVar[str] = "gaussian"

    def __call__(self, q, k):  # noqa: D102
        # |q - k|^2 / 2 by its parts: differences would take an array [B, N, T, S, H].
        of_q = jnp.sum(q * q, axis=-1).swapaxes(1, 2)[..., None]
        of_k = jnp.sum(k * k, axis=-1).swapaxes(1, 2)[:, :, None, :]
        of_k = jnp.repeat(of_k, q.shape[2] // k.shape[2], axis=1)
        return (dot_products(q, k) - (of_q + of_k) / 2) / math.sqrt(q.shape[-1])
