"""Gates where there is no layer's input: numbers that follow a token's own query, or key.

So permutations, padding and packs move them with their tokens, and gradients go through them.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lenext.attention import Gates
from lenext.attention.axes.gates import gates_form


def stand_in(name: str, x: Any, heads: int, xp: Any = np) -> Any:
    """A number between 0 and 2 for each token and query head, [B, T, heads], of x [B, T, K, H]."""
    direction = np.cos(len(name) * np.arange(x.shape[-1])) / np.sqrt(x.shape[-1])
    x = xp.repeat(x, heads // x.shape[2], axis=2)
    return 1 + xp.tanh(xp.sum(x * direction.astype(x.dtype)[None, None, None], axis=-1))


def gates_for(method: Any, q: Any, k: Any, kv_mask: Any = None) -> Gates | None:
    """A method's gates, of what stands there; None where it has none."""
    if not method.gated:
        return None
    heads = q.shape[2]
    q, k = (jnp.asarray(x, jnp.float32) for x in (q, k))
    if kv_mask is not None:  # padding, which may be NaN
        k = jnp.where(jnp.asarray(kv_mask)[:, :, None, None], k, 0.0)
    return Gates(
        *(
            {
                axis: {name: stand_in(name, x, heads, jnp) for name in own}
                for axis, own in form.items()
            }
            for form, x in zip(gates_form(method, heads), (q, k), strict=True)
        )
    )
