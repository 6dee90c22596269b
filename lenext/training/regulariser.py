"""A training aid: heads whose attention is too sharp or too flat are drawn back (arXiv 2501.03489).

lambda times the mean of delta^2 over the heads and rows at which |delta| > gamma ln n, where delta
is a row's entropy less theta_h ln n: a share, learned per head, of what n keys can have at most.
gamma leaves heads some room. The rows are a few of each sequence, so that no array of all queries
by all keys is kept.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lenext.attention import RowStatistics
from lenext.models import Model

START = 0.5  # of theta
ROOM = 0.2  # gamma
ROWS = 32  # of a sequence


@dataclasses.dataclass(frozen=True)
class EntropyRegulariser:
    """What is minimised beside the loss.

    Attributes:
      factor: lambda.
      optimizer: of the thresholds theta, apart from the model's: neither its decay nor the norm of
        its gradients is theirs.
    """

    factor: float
    optimizer: optax.GradientTransformation

    def init(self, model: Model) -> dict[str, Any]:
        """Thresholds [layers, N] where they start, and their optimiser's state."""
        attention = model.layers.attention
        shape = (len(attention.by_layer), attention.num_heads)
        thresholds = jnp.full(shape, START, jnp.float32)
        return {"thresholds": thresholds, "optimizer": self.optimizer.init(thresholds)}

    def update(self, state: dict[str, Any], gradient: Float[Array, "layers N"]) -> dict[str, Any]:
        """The state a step on."""
        before = state["thresholds"]
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], before)
        return {"thresholds": optax.apply_updates(before, updates), "optimizer": optimizer}


def rows_looked_at(length: int) -> Int[np.ndarray, " R"]:
    """Indices of the queries, spread over a sequence; the last is its last."""
    count = min(ROWS, length)
    return ((np.arange(count) + 1) * length // count - 1).astype(np.int32)


def penalty(rows: RowStatistics, thresholds: Float[Array, "layers N"]) -> Float[Array, " B"]:
    """Of each sequence, the mean over layers, heads and rows; rows [layers, B, N, R].

    Rows of one key or none have no entropy to speak of, and count as 0.
    """
    most = jnp.log(jnp.maximum(rows.keys, 1.0))
    delta = rows.entropy - thresholds[:, None, :, None] * most
    square = jnp.where(jnp.abs(delta) > ROOM * most, jnp.square(delta), 0.0)
    return jnp.mean(square, axis=(0, 2, 3))
