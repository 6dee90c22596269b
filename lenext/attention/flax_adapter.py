"""Methods for Flax's own attention layers: see `flax_attention_fn`."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lenext.attention.axes.axis import Params
from lenext.attention.axes.method import Method
from lenext.attention.compute.attend import Ar, attend
from lenext.attention.compute.places import count_tokens


def flax_attention_fn(
    method: Method,
    *,
    causal: bool = False,
    params: Params | None = None,
    implementation: str = "auto",
    block_size: int | None = None,
) -> Callable[..., Array]:
    """A method as the `attention_fn` of `flax.nnx.MultiHeadAttention`, or of Linen's layer.

    Masks come from Flax as arrays, whose values cannot be looked at under `jax.jit`. So padding is
    known by its shape, [..., 1, 1, S], and causality is an option, here or as the layer's
    `is_causal`. Keys stand at 0..S-1 and as many queries beside them. One query on several keys
    stands at the last that the mask shows it: there the layer's cache is when it decodes. Methods
    that follow the length count the keys that the mask shows.

    Products are computed in float32 at the highest precision, whatever the layer's `precision`. A
    row that sees no key gives zeros, where Flax gives the mean of all values.

    Args:
      method: from `make_method`.
      causal: hide keys after the query.
      params: the method's learned parts, of the layer's N heads and H dimensions; default
        `init_params(method, N, H)`. The layer does not train them.
      implementation: as in `attend`.
      block_size: as in `attend`.

    Returns:
      A function of Flax's arguments: query [..., T, N, H], key [..., S, K, H] and value
      [..., S, K, V] to [..., T, N, V]. It raises ValueError for what it cannot honour: other masks,
      a bias, dropout on the weights, weights to be sown, and other numbers of queries than S or 1.
    """

    def attention_fn(
        query: Float[Ar, "*B T N H"],
        key: Float[Ar, "*B S K H"],
        value: Float[Ar, "*B S K V"],
        bias: Ar | None = None,
        mask: Ar | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Any = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        promote_dtype: Callable[..., Any] | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*B T N V"]:
        del broadcast_dropout, dropout_rng  # of a dropout that is not applied
        del precision  # met by any
        if bias is not None:
            raise ValueError("bias: should be None; a method brings its own, such as alibi's")
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate={dropout_rate}: should be 0, or deterministic=True; weights are not "
                "dropped (nnx.Dropout behind the layer drops outputs)"
            )
        if module is not None:
            raise ValueError(
                "sow_weights=True: should be False; attention_weights(q, k, method) gives them"
            )
        query, key, value = (jnp.asarray(x) for x in (query, key, value))
        length, key_length = query.shape[-3], key.shape[-3]
        if length not in (1, key_length):
            raise ValueError(
                f"{length} queries on {key_length} keys: should be as many, or one; attend takes "
                "others with their positions"
            )
        if promote_dtype is not None:
            query, key, value = promote_dtype((query, key, value), dtype=dtype)
        else:
            dtype = jnp.result_type(query, key, value) if dtype is None else dtype
            query, key, value = (x.astype(dtype) for x in (query, key, value))

        def one_batch_axis(x):
            return x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])

        kv_mask = _kv_mask(mask, key.shape)
        out = attend(
            one_batch_axis(query),
            one_batch_axis(key),
            one_batch_axis(value),
            method,
            causal=causal or is_causal,
            q_positions=_last_seen(kv_mask) if length == 1 and kv_mask is not None else None,
            kv_mask=kv_mask,
            length=count_tokens(kv_mask, None, key_length),
            params=params,
            implementation=implementation,
            block_size=block_size,
        )
        return out.reshape(*query.shape[:-1], value.shape[-1])

    return attention_fn


def _kv_mask(mask: Ar | None, key_shape: tuple[int, ...]) -> Array | None:
    """Flax's mask [..., 1, 1, S] as [B, S], True on keys that are no padding."""
    if mask is None:
        return None
    *batch, key_length, _, _ = key_shape
    fits = mask.ndim == len(key_shape) and mask.shape[-3:] == (1, 1, key_length)
    if not fits or any(m not in (1, b) for m, b in zip(mask.shape, batch, strict=False)):
        raise ValueError(
            f"mask {mask.shape}: should be {(*batch, 1, 1, key_length)}, False on padding, as from "
            "nnx.make_attention_mask(jnp.ones((batch, 1)), valid); for a causal mask take "
            "flax_attention_fn(method, causal=True), for other masks attend"
        )
    seen = jnp.broadcast_to(jnp.asarray(mask)[..., 0, 0, :].astype(bool), (*batch, key_length))
    return seen.reshape(math.prod(batch), key_length)


def _last_seen(kv_mask: Array) -> Array:
    """The position [B, 1] of the last key that is no padding."""
    places = jnp.arange(kv_mask.shape[1], dtype=jnp.int32)[None, :]
    return jnp.max(jnp.where(kv_mask, places, 0), axis=1, keepdims=True)
