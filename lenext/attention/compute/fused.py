"""Methods on fused kernels: cuDNN's or our own on GPUs, splash attention or our own on TPUs.

Which methods they can compute is a rule over what the axes say of themselves, not a list; a call
that they cannot honour in full is declined with the reason. The libraries' two take what is shaped
as softmax; what ours take: `lenext.attention.compute.kernels`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params
from lenext.attention.axes.method import Method
from lenext.attention.compute import kernels, naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, rows_at
from lenext.attention.compute.plan import plan_of, visible_keys
from lenext.attention.compute.tpu import TpuKernel
from lenext.attention.compute.triton import TritonKernel


def why_not_fused(method: Method, num_heads: int, head_dim: int) -> str | None:
    """Why a library's fused kernel cannot compute the method, or None where one can.

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
    wheres, gain, bias = naive.position_shapes(method, num_heads, head_dim)
    if wheres != [None]:
        return "it rotates near and far keys differently, which takes a score matrix each"
    if gain is not None and gain.shape and gain.shape[-1] != 1:
        return "its gain on the logits follows the distance"
    if bias is not None:
        return "its bias on the logits is an array of all queries by all keys"
    return None


TILE = 1024  # queries and keys at a time, where what rows see is to be counted
LANES = 128  # splash's blocks are multiples of it
BACKENDS = ("gpu", "tpu")
CUDNN, SPLASH = "cuDNN's kernel", "splash attention"
OWN, TRITON = "our own kernel", "our own kernel in Triton"
KINDS = {OWN: TpuKernel, TRITON: TritonKernel}
UNTRIED = (TRITON,)  # compiled, never run: taken where one asks for "fused" alone


def kernel_for(call: Call, backend: str) -> tuple[str | None, str]:
    """The fused kernel that takes a call, and why; or None, and why none can.

    Args:
      call: what is known of it.
      backend: as `jax.default_backend()` names it.

    Returns:
      One of `CUDNN`, `SPLASH`, `OWN`, `TRITON`, or None; and half a sentence that may follow
      "because".
    """
    if backend not in BACKENDS:
        return None, f"a fused kernel is at hand on GPUs and TPUs, not on the {backend}"
    why = _why_none(call)
    if why is not None:
        return None, why
    if backend == "gpu":
        why = _why_not_library(call) or _why_not_cudnn(call)
        if why is None:
            return CUDNN, "it takes the method"
        why_not_own = kernels.why_not(call, TritonKernel)
        if why_not_own is not None:
            return None, why
        return TRITON, f"{why}; {TRITON} takes it where asked for, and has never run on a GPU"
    why_not_splash = _why_not_library(call) or _why_not_splash(call)
    if why_not_splash is None:
        return SPLASH, "it takes the method"
    why = kernels.why_not(call, TpuKernel)
    if why is None:
        return OWN, f"it takes the method, and splash attention does not: {why_not_splash}"
    return None, why


def _why_none(call: Call) -> str | None:
    """Why no kernel takes a call, wherever it runs."""
    if call.masked:
        # Rows that see nothing are zeros here, and the mean of v there.
        return "padding and packs take a mask of all queries by all keys"
    if not call.ordered or call.part:
        return "the kernels know the default positions only"
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        return "the kernels cannot be split over a mesh by the compiler"
    return None


def _why_not_library(call: Call) -> str | None:
    if call.dtype not in ("bfloat16", "float16"):
        return f"the kernels take 16-bit floats, not {call.dtype}"
    return why_not_fused(call.method, call.num_heads, call.head_dim)


def _why_not_splash(call: Call) -> str | None:
    if call.queries % LANES or call.keys % LANES:
        return f"splash attention takes lengths that are multiples of {LANES}"
    return None


def _why_not_cudnn(call: Call) -> str | None:
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
    kernel: str,
    interpret: Any = False,
) -> Float[Array, "B T N V"]:
    """Attention by a kernel, for calls that it takes; see `kernel_for`.

    What the method makes of queries and keys, temperature and 1 / sqrt(H) included, goes in as
    their two sides, rounded to q's type; the kernel's own scale is 1.

    Args:
      q: queries.
      k: keys.
      v: values.
      call: theirs.
      params: the method's learned parts.
      places: the default positions, `located`.
      kernel: of `kernel_for`.
      interpret: run a kernel in Pallas' interpreter, for tests.
    """
    method, causal = call.method, call.causal
    n = visible_keys(plan_of(call, TILE), places)
    rows = rows_at(
        method, places, n, causal=causal, length=call.length, num_heads=call.num_heads,
        head_dim=call.head_dim,
    )  # fmt: skip
    q_sides = naive.query_sides(q, method, params, rows)
    k_sides = naive.key_sides(k, method, rows)
    gain = method.position.gain(rows)  # of whole rows
    if gain is not None:
        sizes = dict(zip("BNT", q_sides[0].shape, strict=False))
        gain = naive.gain_of(method.position, gain, "B? N? T? 1", sizes)
        q_sides = tuple(gain * side for side in q_sides)
    if kernel in KINDS:
        dtype = jnp.result_type(q, k, v)
        values = v.astype(dtype).swapaxes(1, 2)
        out = kernels.attend_by_kernels(
            q_sides, k_sides, values, call, n, KINDS[kernel], interpret=interpret
        )
        return out.swapaxes(1, 2)
    q_side, k_side = (sides[0].astype(q.dtype) for sides in (q_sides, k_sides))
    window = method.visibility.plain_window()
    reach = None if window is None else window - 1
    if kernel == SPLASH:
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
    # By the schedules of experiments/benchmarks/kernels.py, 512 takes 1.1 to 1.4 times 1024's time.
    size = next(size for size in (1024, 512, 256, LANES) if not any(x % size for x in shape))
    blocks = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    sizes = dict.fromkeys(blocks, size)
    sizes |= dict.fromkeys(("block_kv_compute", "block_kv_dkv_compute"), min(size, 512))
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )
    out: Any = jax.vmap(kernel)(q, k, v.swapaxes(1, 2))
    return out.swapaxes(1, 2).astype(q.dtype)
