"""What rows of attention look like: entropy, dilution and their kin."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.method import Method
from lenext.attention.compute.naive import Scores, weights

SINKS = 4  # first keys of a document that count as sinks


class RowStatistics(NamedTuple):
    """Per row and head, float32. Weights are taken over their row's sum; empty rows give 0.

    Attributes:
      entropy: -sum w ln w, in nats.
      dilution: 1 less the weight on keys nearer than the training length.
      gap_scale: the gap-accumulation scale Lambda = sup_t ln N(t) / t, N(t) the number of keys
        whose logit lies within t of the row's largest (arXiv 2605.12697). Logits here include
        their temperature, so 1 is the critical value: far below, weights collapse onto the top;
        far above, they cannot separate it. Infinite where several keys share the top.
      max_logit: the largest visible logit.
      sink_weight: weight on the document's first four keys.
      keys: how many the row sees.
    """

    entropy: Float[Array, "B N T"]
    dilution: Float[Array, "B N T"]
    gap_scale: Float[Array, "B N T"]
    max_logit: Float[Array, "B N T"]
    sink_weight: Float[Array, "B N T"]
    keys: Float[Array, "B N T"]


def statistics(scored: Scores, method: Method) -> RowStatistics:
    """Statistics of complete rows."""
    logits, mask, rows, _ = scored
    w = weights(scored, method)
    total = jnp.sum(w, axis=-1, keepdims=True)
    w = w / jnp.where(total > 0, total, 1.0)
    seen = jnp.any(mask, axis=-1)

    def weight_on(keys):
        return jnp.sum(jnp.where(keys, w, 0.0), axis=-1)

    entropy = -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1.0)), 0.0), axis=-1)
    # Not 1 less the rest, which rounding would take below 0.
    dilution = weight_on(jnp.abs(rows.delta) >= rows.train_length)
    largest = jnp.max(jnp.where(mask, logits, -jnp.inf), axis=-1)
    return RowStatistics(
        entropy=entropy,
        dilution=dilution,
        gap_scale=_gap_scale(jnp.where(mask, logits, -jnp.inf)),
        max_logit=jnp.where(seen, largest, 0.0),
        sink_weight=weight_on(rows.kv_ordinals[:, None, None, :] < SINKS),
        keys=jnp.broadcast_to(jnp.sum(mask, axis=-1, dtype=jnp.float32), entropy.shape),
    )


def _gap_scale(logits: Float[Array, "B N T S"]) -> Float[Array, "B N T"]:
    """sup_t ln N(t) / t: N jumps at each key's gap to the top, so the sup is over those gaps."""
    ordered = -jnp.sort(-logits, axis=-1)
    largest = ordered[..., :1]
    gaps = jnp.where(jnp.isfinite(largest), largest, 0.0) - ordered
    count = jnp.arange(1, logits.shape[-1] + 1, dtype=jnp.float32)[None, None, None, :]
    # ln 1 / 0 at the top itself is no gap; a masked key stands at an infinite one.
    scale = jnp.where(count > 1, jnp.log(count) / gaps, 0.0)
    return jnp.max(scale, axis=-1)
