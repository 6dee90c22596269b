"""Attention maps: the weights that a model's layers give their values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import attention_weights
from lenext.models.build import Model

Ar = Array | np.ndarray


def attention_maps(
    model: Model,
    tokens: Int[Ar, "B T"],
    *,
    rows: Int[Ar, " R"] | None = None,
    mask: Bool[Ar, "B T"] | None = None,
    positions: Int[Ar, "..."] | None = None,
    segment_ids: Int[Ar, "B T"] | None = None,
) -> Float[Array, "layers B N R T"]:
    """The weights of every layer and head in one forward pass, float32.

    Takes layers x B x N x R x T numbers: long sequences want a few rows only.

    Args:
      model: under the methods to look at, see `lenext.models.with_method`.
      tokens: token ids.
      rows: indices of the queries to look at; default all.
      mask: False marks padding.
      positions: [B, T] or [T], in tokens; default 0..T-1.
      segment_ids: documents of a pack, which do not see each other.
    """
    rows = np.arange(tokens.shape[1]) if rows is None else rows
    given: dict[str, Any] = {"mask": mask, "positions": positions, "segment_ids": segment_ids}
    _, maps = model.encode(
        jnp.asarray(tokens),
        **jax.tree.map(jnp.asarray, given),
        probe=jnp.asarray(rows),
        look=attention_weights,
    )
    return maps
