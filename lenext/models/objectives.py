"""What a model is trained and judged by."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention import RowStatistics
from lenext.models.cross_entropy import cross_entropy


class TokenFigures(NamedTuple):
    """Figures of each predicted token, float32, and the probed attention rows.

    Attributes:
      loss: cross-entropy, in nats.
      correct: 1 where the likeliest token is the right one.
      log_z: log of the sum of the exponentiated logits, which a z-loss holds near 0.
      weights: 0 for what is not to count.
      rows: [layers, B, heads, R], where rows were asked for.
    """

    loss: Float[Array, "B P"]
    correct: Float[Array, "B P"]
    log_z: Float[Array, "B P"]
    weights: Float[Array, "B P"]
    rows: RowStatistics | None


def token_figures(
    model: Any,
    batch: dict[str, Array],
    *,
    dropout_key: Array | None = None,
    unroll: bool = False,
    probe: Int[Array, " R"] | None = None,
    in_parts: bool = False,
) -> TokenFigures:
    """Figures of a batch under the model's own objective, `model.objective`.

    Args:
      model: a model of `lenext.models`.
      batch: tokens [B, T]; targets and weights [B, P]; predicted [B, P], the places of these in a
        masked language model; mask [B, T], False where a token is padding; segment_ids [B, T]
        where rows are packs of documents; and token_positions [B, T] where tokens stand elsewhere
        than at 0..T-1.
      dropout_key: turns dropout on.
      unroll: as in the model's `encode`.
      probe: positions of attention rows to look at.
      in_parts: as in the model's `encode`.
    """
    hidden, rows = model.encode(
        batch["tokens"],
        mask=batch.get("mask"),
        positions=batch.get("token_positions"),
        segment_ids=batch.get("segment_ids"),
        dropout_key=dropout_key,
        unroll=unroll,
        probe=probe,
        in_parts=in_parts,
    )
    hidden = OBJECTIVES[model.objective](hidden, batch)
    seen = cross_entropy(hidden, model.head_weights(), batch["targets"])
    return TokenFigures(*seen, weights=batch["weights"], rows=rows)


def masked_lm(hidden: Float[Array, "B T D"], batch: dict[str, Array]) -> Float[Array, "B P D"]:
    """The masked positions: the head sees no others, so its work is that of P tokens whatever T."""
    return jnp.take_along_axis(hidden, batch["predicted"][:, :, None], axis=1)


def causal_lm(hidden: Float[Array, "B T D"], batch: dict[str, Array]) -> Float[Array, "B T D"]:
    """Every position predicts the token after it."""
    del batch
    return hidden


OBJECTIVES = {"masked_lm": masked_lm, "causal_lm": causal_lm}
"""Name to the hidden states that predict."""
