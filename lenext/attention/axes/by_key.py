"""Weightings whose rows can be summed up key by key, in one stage or two."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lenext.attention.axes.axis import Params, Rows, Weighting
from lenext.attention.checked import checked


class KeyByKey(Weighting):
    """Weights value(logit, shift) / total, total = `rest` + the sum of the values, or 1.

    Such a row can be summed up key by key, without ever being complete.

    The shift is a number a row that keeps values from over- and underflowing: a function of the
    row's largest logit such that value(logit, shift) = e^-shift value(logit, 0). Totals taken with
    one shift can so be carried over to another.
    """

    unshifted_within: ClassVar[float] = 0.0
    """Where no logit exceeds this, above 0 or below, the shift may be 0 throughout."""

    @property
    def normalised(self) -> bool:
        """Whether weights are over their row's total."""
        return True

    @property
    def rises(self) -> bool:
        """Whether values never fall as the logit grows, which a second stage asks."""
        return True

    def shift(self, largest: Float[Array, "B N T 1"], params: Params) -> Float[Array, "B N T 1"]:
        """The shift for rows of these largest logits, finite ones; never falls as they grow."""
        del params
        return jnp.zeros_like(largest)

    def values(
        self,
        logits: Float[Array, "B N T S"],
        shift: Float[Array, "B N T 1"],
        rows: Rows,
        params: Params,
    ) -> Float[Array, "B N T S"]:
        """What each visible key counts, not below 0."""
        raise TypeError(f"{type(self).__name__} defines no values")

    def rest(self, shift: Float[Array, "B N T 1"], params: Params) -> Float[Array, "B N T 1"]:
        """What the total counts besides the keys."""
        del params
        return jnp.zeros_like(shift)

    def shift_at(self, largest: Float[Array, "B N T 1"], params: Params) -> Float[Array, "B N T 1"]:
        """The shift, 0 in rows of no finite logit; weights do not follow it, so no gradient."""
        largest, params = jax.lax.stop_gradient((largest, params))
        shift = self.shift(jnp.where(jnp.isfinite(largest), largest, 0.0), params)
        return checked(shift, self, "shift", "B N T 1", _sizes(largest))

    def rest_at(self, shift: Float[Array, "B N T 1"], params: Params) -> Float[Array, "B N T 1"]:
        """`rest`, checked."""
        return checked(self.rest(shift, params), self, "rest", "B N T 1", _sizes(shift))

    def visible_values(
        self,
        logits: Float[Array, "B N T S"],
        mask: Bool[Array, "#B #N #T S"] | None,
        shift: Float[Array, "B N T 1"],
        rows: Rows,
        params: Params,
    ) -> Float[Array, "B N T S"]:
        """The values, 0 where `mask` is False (None hides nothing).

        Hidden logits are replaced before they meet any exp, so no gradient turns NaN there.
        """
        visible = logits if mask is None else jnp.where(mask, logits, shift)
        values = self.values(visible, shift, rows, params)
        values = checked(values, self, "values", "B N T S", _sizes(logits))
        return values if mask is None else jnp.where(mask, values, 0.0)

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        largest = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
        shift = self.shift_at(largest, params)
        values = self.visible_values(logits, mask, shift, rows, params)
        if not self.normalised:
            return values
        total = self.rest_at(shift, params) + jnp.sum(values, axis=-1, keepdims=True)
        return values / jnp.where(total > 0, total, 1.0)


def _sizes(rows: Array) -> dict[str, int]:
    return dict(zip("BNTS", rows.shape, strict=True))


class TwoStage(KeyByKey):
    """Weights a, made key by key, and then second(a) over its sum.

    Values may here follow the logit and the row, but nothing else of the key: what a row's largest
    logit gives is asked for without one. Where they do not rise with the logit (`rises`), rows are
    made complete.
    """

    def second(
        self, weights: Float[Array, "B N T S"], largest: Float[Array, "B N T 1"], rows: Rows
    ) -> Float[Array, "B N T S"]:
        """What each key counts in the end, not below 0, never falling as its weight grows.

        `largest` is the row's largest weight: for a factor on the whole row that keeps values from
        over- and underflowing. The outcome does not follow it, so it has no gradient. In flat rows
        it is 1, and what is returned for them goes unused.
        """
        raise TypeError(f"{type(self).__name__} defines no second stage")

    def is_flat(self, largest: Float[Array, "B N T 1"], rows: Rows) -> Bool[Array, "B N T 1"]:
        """Whether rows of these largest weights keep all weights; rows of zeros do anyway."""
        del rows
        return jnp.zeros_like(largest, dtype=bool)

    def flat_at(self, largest: Float[Array, "B N T 1"], rows: Rows) -> Bool[Array, "B N T 1"]:
        """`is_flat`, checked, or a row of zeros."""
        flat = self.is_flat(largest, rows)
        flat = checked(flat, self, "is_flat", "B N T 1", _sizes(largest), jnp.bool_)
        return flat | (largest <= 0)

    def last_values(
        self, weights: Float[Array, "B N T S"], largest: Float[Array, "B N T 1"], rows: Rows
    ) -> Float[Array, "B N T S"]:
        """What each key counts: over its sum, or in flat rows, where it is a, over 1."""
        flat = self.flat_at(largest, rows)
        second = self.second(weights, jnp.where(flat, 1.0, largest), rows)
        second = checked(second, self, "second", "B N T S", _sizes(weights))
        return jnp.where(flat, weights, second)

    def __call__(self, logits, mask, rows, params):  # noqa: D102
        first = super().__call__(logits, mask, rows, params)
        largest = jax.lax.stop_gradient(jnp.max(first, axis=-1, keepdims=True))
        last = jnp.where(mask, self.last_values(first, largest, rows), 0.0)
        total = jnp.sum(last, axis=-1, keepdims=True)
        # Rows that are not flat have a sum, unless all of it has underflowed.
        usable = (total > 0) & ~self.flat_at(largest, rows)
        return last / jnp.where(usable, total, 1.0)
