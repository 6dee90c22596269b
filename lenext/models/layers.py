"""Layers that models share: the attention seam, RMS normalisation, dropout."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import Method, RowStatistics, attend, init_params, row_statistics


def rms_norm(x: Float[Array, "*B D"], epsilon: float = 1e-12) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) along the last axis, in float32, without gain."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def dense(linear: nnx.Linear, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
    """`linear` on every token.

    Over one axis of tokens: XLA's CPU backend is four times slower at the weights' gradient when
    it contracts two.
    """
    batch, length, width = x.shape
    return linear(x.reshape(batch * length, width)).reshape(batch, length, -1)


class Attention(nnx.Module):
    """The seam between a model and `lenext.attention`: a method as data, and its learned parts."""

    def __init__(self, method: Method, *, num_heads: int, head_dim: int, causal: bool):
        self.num_heads, self.head_dim, self.causal = num_heads, head_dim, causal
        self.implementation = "auto"
        self.set_method(method)

    def set_method(self, method: Method) -> None:
        """Takes another method; learned parts that it does not share start at initial values."""
        old = getattr(self, "method", None)
        parts: dict[str, Any] = init_params(method, self.num_heads, self.head_dim)
        self.method = method
        self.learned = nnx.data(
            {
                axis: self.learned[axis]
                if old is not None and getattr(old, axis) == getattr(method, axis)
                else jax.tree.map(nnx.Param, values)
                for axis, values in parts.items()
            }
        )

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K V"],
        *,
        mask: Bool[Array, "B T"] | None,
        probe: Int[Array, " R"] | None,
    ) -> tuple[Float[Array, "B T N V"], RowStatistics | None]:
        """Attention, and the statistics of the rows at positions `probe` if there are any."""
        params = jax.tree.map(lambda p: p[...], self.learned, is_leaf=_is_param)
        shared: dict[str, Any] = {"causal": self.causal, "kv_mask": mask, "params": params}
        out = attend(q, k, v, self.method, implementation=self.implementation, **shared)
        if probe is None:
            return out, None
        figures = row_statistics(q[:, probe], k, self.method, q_positions=probe, **shared)
        return out, figures


def _is_param(x: Any) -> bool:
    return isinstance(x, nnx.Param)


def run_layers(
    layers: Sequence[nnx.Module],
    x: Float[Array, "B T D"],
    keys: Array | None,
    apply: Callable[[Any, Any, Any], tuple[Array, Any]],
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs x through layers by a scan, so that depth costs no compilation.

    Layers keep parameters of their own, which are stacked here: a copy of the weights, nothing
    beside the products they enter. The scan's body is the shortest pattern of layers that repeats
    (one layer where all have the same method); layers that repeat nothing run one by one.

    Args:
      layers: of one structure but for their attention methods.
      x: what enters the first.
      keys: one random key a layer, or None.
      apply: (layer, x, key) to the next x and figures to collect (a pytree, or None).

    Returns:
      What leaves the last layer, and the figures with the layers as a new first axis.
    """
    graphdefs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    depth = len(layers)
    period = next(
        p
        for p in range(1, depth + 1)
        if depth % p == 0 and all(graphdefs[i] == graphdefs[i % p] for i in range(depth))
    )

    def stack(*trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def body(x, group):
        figures = []
        for graphdef, (state, key) in zip(graphdefs[:period], group, strict=True):
            x, seen = apply(nnx.merge(graphdef, state), x, key)
            figures.append(seen)
        return x, stack(*figures)

    slots = [
        (stack(*states[slot::period]), None if keys is None else keys[slot::period])
        for slot in range(period)
    ]
    x, figures = jax.lax.scan(body, x, slots)
    return x, jax.tree.map(lambda f: f.reshape(depth, *f.shape[2:]), figures)
