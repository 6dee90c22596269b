"""Softmax-shaped methods on the libraries' fused kernels: cuDNN's on GPUs, splash on TPUs.

Which methods they can compute is a rule over what the axes say of themselves, not a list; a call
that they cannot honour in full is declined with the reason.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.method import Method, Params, init_params
from lenext.attention.compute import naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, located, rows_at
from lenext.attention.compute.plan import plan_of, visible_keys


def why_not_fused(method: Method, num_heads: int, head_dim: int) -> str | None:
    """Why a fused kernel cannot compute the method, or None where one can.

    Such a kernel gives softmax(scale * q . k) over full, causal, padded or windowed rows, in memory
    linear in the length. A factor on whole rows (the temperature, a constant gain) goes into q, and
    a similarity into both, where its sides are as wide as the heads. A bias is declined: kernels
    take it as an array of all queries by all keys, and linear memory is what they are for.

    Args:
      method: the method.
      num_heads: N, query heads.
      head_dim: H, dimensions a head.

    Returns:
      Half a sentence that may follow "because", or None.
    """
    if method.gated:
        return "it follows the layer's input"
    if not method.weighting.is_softmax:
        return "its weights are not a plain softmax of the logits"
    inner_size = naive.inner_size(method.similarity, head_dim)
    if inner_size != head_dim:
        return f"its similarity multiplies vectors of {inner_size} dimensions, not of {head_dim}"
    if method.similarity.bounds:
        return "its similarity bounds the logits"
    if not method.visibility.sees_all and method.visibility.plain_window() is None:
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

    On three queries and three keys, none of them masked: where causal, there are no more pieces.
    """

    def traced():
        three = jnp.arange(3, dtype=jnp.int32)[None, :]
        places, n = located(Places(three, three)), jnp.full((1, 1, 3, 1), 3, jnp.int32)
        rows = rows_at(
            method, places, n, causal=False, length=3, num_heads=num_heads, head_dim=head_dim
        )
        params = init_params(method, num_heads, head_dim).get("position", {})
        position = method.position
        wheres = [piece.where for piece in position.pieces(rows)]
        return wheres, position.gain(rows), position.bias(rows, params)

    return jax.eval_shape(traced)


TILE = 1024  # queries and keys at a time, where what rows see is to be counted
LANES = 128  # splash's blocks are multiples of it
KERNELS = {"gpu": "cuDNN's", "tpu": "splash attention"}


def why_declined(call: Call, backend: str) -> str | None:
    """Why the fused kernel of a backend (of `jax.default_backend()`) cannot take a call.

    Returns:
      Half a sentence that may follow "because", or None where the kernel can.
    """
    if backend not in KERNELS:
        return f"a fused kernel is at hand on GPUs and TPUs, not on the {backend}"
    if call.dtype not in ("bfloat16", "float16"):
        return f"the kernels take 16-bit floats, not {call.dtype}"
    why = why_not_fused(call.method, call.num_heads, call.head_dim)
    if why is not None:
        return why
    if call.masked:
        # Rows that see nothing are zeros here, and the mean of v there.
        return "padding and packs take a mask of all queries by all keys"
    if not call.ordered:
        return "the kernels know the default positions only"
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        return "the kernels cannot be split over a mesh by the compiler"
    if backend == "tpu":
        if call.queries % LANES or call.keys % LANES:
            return f"splash attention takes lengths that are multiples of {LANES}"
        return None
    window = call.method.visibility.plain_window() is not None
    if (call.causal or window) and call.queries != call.keys:
        return "cuDNN's causal mask wants as many queries as keys"
    if window and not call.causal:
        return "cuDNN's window is causal"
    if call.head_dim != call.v_shape[3]:
        return "cuDNN's kernel wants values of the keys' size"
    if call.head_dim % 8 or call.head_dim > 128:
        return "cuDNN's kernel takes heads of up to 128 dimensions, a multiple of 8"
    return None


def attend_fused(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    call: Call,
    params: Params,
    places: Places,
    *,
    backend: str,
    interpret: bool = False,
) -> Float[Array, "B T N V"]:
    """Attention by the backend's kernel, for calls that `why_declined` lets pass.

    What the method makes of queries and keys, temperature and 1 / sqrt(H) included, goes in as
    their two sides, rounded to q's type; the kernel's own scale is 1.

    Args:
      q: queries, 16-bit.
      k: keys.
      v: values.
      call: theirs.
      params: the method's learned parts.
      places: the default positions, `located`.
      backend: "gpu" or "tpu".
      interpret: run the TPU's kernel in Pallas' interpreter, for tests.
    """
    method, causal = call.method, call.causal
    rows = rows_at(
        method, places, visible_keys(plan_of(call, TILE), places), causal=causal,
        length=call.length, num_heads=call.num_heads, head_dim=call.head_dim,
    )  # fmt: skip
    (q_side,) = naive.query_sides(q, method, params, rows)
    (k_side,) = naive.key_sides(k, method, rows)
    gain = method.position.gain(rows)  # of whole rows
    if gain is not None:
        sizes = dict(zip("BNT", q_side.shape, strict=False))
        q_side = naive.gain_of(method.position, gain, "B? N? T? 1", sizes) * q_side
    q_side, k_side = q_side.astype(q.dtype), k_side.astype(q.dtype)
    window = method.visibility.plain_window()
    reach = None if window is None else window - 1
    if backend == "tpu":
        return _splash(q_side, k_side, v, causal=causal, reach=reach, interpret=interpret)
    return jax.nn.dot_product_attention(
        q_side.swapaxes(1, 2), k_side.swapaxes(1, 2), v, scale=1.0, is_causal=causal,
        local_window_size=None if reach is None else (reach, 0), implementation="cudnn",
    )  # fmt: skip


def _splash(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B S K V"],
    *,
    causal: bool,
    reach: int | None,
    interpret: bool,
) -> Float[Array, "B T N V"]:
    # Imported here: Pallas for TPUs is no light import, and of use on TPUs only.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (q.shape[2], k.shape[2])
    offset = shape[1] - shape[0]
    if reach is not None:
        mask = splash.LocalMask(shape, (reach, 0 if causal else reach), offset)
    else:
        mask = splash.CausalMask(shape, offset) if causal else splash.FullMask(shape)
    size = next(size for size in (512, 256, LANES) if not any(x % size for x in shape))
    names = ("block_q", "block_kv", "block_kv_compute")
    backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=splash.BlockSizes(**dict.fromkeys((*names, *backward), size)),
        interpret=interpret,
    )
    out: Any = jax.vmap(kernel)(q, k, v.swapaxes(1, 2))
    return out.swapaxes(1, 2).astype(q.dtype)
