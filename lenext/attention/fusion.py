"""Which methods a library's fused kernel can compute: a rule over the axes, not a list."""

from typing import Any

import jax
import jax.numpy as jnp

from lenext.attention.method import Method, init_params
from lenext.attention.places import Places, located, rows_at
from lenext.attention.similarity import Cosine, Dot, UnitDot
from lenext.attention.visibility import Full, Window
from lenext.attention.weighting import Softmax


def why_not_fused(method: Method, num_heads: int, head_dim: int) -> str | None:
    """Why a fused kernel cannot compute the method, or None where one can.

    Such a kernel gives softmax(scale * q . k) over full, causal, padded or windowed rows, in memory
    linear in the length. A factor on whole rows (the temperature, a constant gain) goes into q, and
    a cosine is the dot product of unit vectors. A bias is declined: kernels take it as an array of
    all queries by all keys, and linear memory is what they are for.

    Args:
      method: the method.
      num_heads: N, query heads.
      head_dim: H, dimensions a head.

    Returns:
      Half a sentence that may follow "because", or None.
    """
    if type(method.weighting) is not Softmax:
        return "its weights are not a plain softmax of the logits"
    if type(method.similarity) not in (Dot, Cosine, UnitDot):
        return "its similarity is neither a scaled dot product nor a cosine"
    if type(method.visibility) not in (Full, Window):
        return "its rows see something other than all keys or a window"
    wheres, gain, bias = _position_shapes(method, num_heads, head_dim)
    if wheres != [None]:
        return "it rotates near and far keys differently, which takes a score matrix each"
    if gain is not None and gain.shape and gain.shape[-1] != 1:
        return "its gain on the logits follows the distance"
    if bias is not None:
        return "its bias on the logits is an array of all queries by all keys"
    return None


def _position_shapes(method: Method, num_heads: int, head_dim: int) -> tuple[list, Any, Any]:
    """Each piece's `where`, the gain and the bias, as shapes or None: traced, not computed.

    On three queries and three keys, none of them hidden: where causal, there are no more pieces.
    """

    def traced():
        places = located(Places(jnp.arange(3)[None, :], jnp.arange(3)[None, :]))
        n = jnp.full((1, 1, 3, 1), 3)
        rows = rows_at(
            method, places, n, causal=False, key_length=3, num_heads=num_heads, head_dim=head_dim
        )
        params = init_params(method, num_heads, head_dim).get("position", {})
        position = method.position
        wheres = [piece.where for piece in position.pieces(rows)]
        return wheres, position.gain(rows), position.bias(rows, params)

    return jax.eval_shape(traced)
