"""What a model is trained and judged by."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lenext.attention import RowStatistics
from lenext.models.gau import GAUEncoder


class TokenSums(NamedTuple):
    """Sums over each sequence's predicted tokens, and the probed attention rows."""

    loss: Float[Array, " B"]
    correct: Float[Array, " B"]
    count: Float[Array, " B"]
    rows: RowStatistics | None


def masked_lm(
    model: GAUEncoder,
    batch: dict[str, Array],
    *,
    dropout_key: Array | None = None,
    probe: Int[Array, " R"] | None = None,
) -> TokenSums:
    """Cross-entropy (nats) and hits of a masked language model at the masked positions.

    The head sees those positions only, so logits take [B, K, V] whatever the length.

    Args:
      model: the encoder.
      batch: tokens [B, T] with their masks, positions [B, K] of what is predicted, targets [B, K]
        and weights [B, K] (0 for none).
      dropout_key: turns dropout on.
      probe: positions of attention rows to look at.
    """
    hidden, rows = model.encode(batch["tokens"], dropout_key=dropout_key, probe=probe)
    chosen = jnp.take_along_axis(hidden, batch["positions"][:, :, None], axis=1)
    logits = model.logits(chosen)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    hits = jnp.argmax(logits, axis=-1) == batch["targets"]
    weights = batch["weights"]
    return TokenSums(
        loss=jnp.sum(losses * weights, axis=-1),
        correct=jnp.sum(jnp.where(hits, weights, 0.0), axis=-1),
        count=jnp.sum(weights, axis=-1),
        rows=rows,
    )
