"""The public functions: attend, choose_implementation, attention_weights, row_statistics."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lenext.attention.axes.axis import MOST_TOKENS, Params
from lenext.attention.axes.gates import Gates, gates_form
from lenext.attention.axes.method import AnyMethod, HeadMethods, Method, init_params
from lenext.attention.compute import diagnostics, naive
from lenext.attention.compute.blocks import default_block_size, map_blocks
from lenext.attention.compute.call import Call
from lenext.attention.compute.choice import Choice, choose
from lenext.attention.compute.fused import attend_fused
from lenext.attention.compute.places import Places, located
from lenext.attention.compute.sided import attend_sides

Ar = Array | np.ndarray
P = ParamSpec("P")
T = TypeVar("T")


def over_heads(axis: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes what computes one method take methods of heads, each with its share of them.

    Query heads of a share read the same heads of keys and values as without it. Arrays that come
    out are joined along an axis.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            given = signature.bind(*args, **kwargs).arguments
            method = given.get("method")
            if not isinstance(method, HeadMethods):
                return function(*args, **kwargs)
            _check_shapes(given["q"], given["k"])
            (_, _, heads, head_dim), kv_heads = given["q"].shape, given["k"].shape[2]
            params, gates = given.get("params"), given.get("gates")
            _check_form(params, init_params(method, heads, head_dim))
            parts = []
            for share, (own, span) in method.of_heads(heads).items():
                each = given | {"method": own, "q": given["q"][:, :, span]}
                of_keys = np.array(key_heads(span, heads // kv_heads))
                each |= {name: given[name][:, :, of_keys] for name in ("k", "v") if name in given}
                each["params"] = None if params is None else params[share]
                each["gates"] = None if gates is None else gates.of_share(share)
                parts.append(function(**each))  # pyright: ignore[reportCallIssue]
            return jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *parts)

        return wrapped

    return decorate


def key_heads(span: slice, group: int) -> list[int]:
    """The heads of keys that query heads `span` read, such that by themselves they group again.

    Each once where as many of the queries read it as any other, else one for each query head.
    """
    read = [head // group for head in range(span.start, span.stop)]
    once = sorted(set(read))
    evenly = read == [head for head in once for _ in range(len(read) // len(once))]
    return once if evenly else read


@over_heads(2)
def attend(
    q: Float[Ar, "B T N H"],
    k: Float[Ar, "B S K H"],
    v: Float[Ar, "B S K V"],
    method: AnyMethod,
    *,
    causal: bool = False,
    q_positions: Int[Ar, "..."] | None = None,
    kv_positions: Int[Ar, "..."] | None = None,
    kv_mask: Bool[Ar, "B S"] | None = None,
    q_segment_ids: Int[Ar, "B T"] | None = None,
    kv_segment_ids: Int[Ar, "B S"] | None = None,
    length: int | np.integer | Int[Ar, "..."] | None = None,
    params: Params | None = None,
    gates: Gates | None = None,
    implementation: str = "auto",
    block_size: int | None = None,
) -> Float[Array, "B T N V"]:
    """Attention by a method.

    Args:
      q: queries; N heads, H dimensions a head.
      k: keys; K heads, N a multiple of K (head h of q meets head h // (N / K) of k).
      v: values; V dimensions a head.
      method: from `make_method`.
      causal: hide keys at positions after the query's. Some methods are defined so only.
      q_positions: [B, T] or [T], in tokens; default: the last T of the keys' positions 0..S-1.
      kv_positions: [B, S] or [S]; default 0..S-1.
      kv_mask: False marks padding, or places of a cache that hold nothing: what stands there in k
        and v, NaN and infinity too, reaches neither outputs nor gradients. (Not so for keys that
        only causality or another document hides: a weight of 0 times NaN is NaN.)
      q_segment_ids: documents of a pack; a query sees keys of its own document only. Ids are only
        compared. Given together with `kv_segment_ids`.
      kv_segment_ids: see `q_segment_ids`.
      length: tokens in each key's document, for what follows that (such as `pi` without a `scale`):
        a number, [B], or [B, S], the same within a document. Default: S, where nothing hides keys
        and no positions are given. A Python number is known when compiling, and rotations follow it
        in float64; an array is not, and compiles once for all its values. Ignored by methods that
        follow no length.
      params: the method's learned parts; default `init_params(method, N, H)`.
      gates: what the method makes of the layer's input, from `make_gates`; for methods that follow
        it, such as `forgetting`, and for no others.
      implementation: "naive" (all rows at once), "blockwise" (memory linear in T + S, backward
        pass included), "fused" (a kernel for GPUs or TPUs; raises where none takes the call) or
        "auto"; `choose_implementation` says what that takes, and why.
      block_size: queries a block of "blockwise", and keys where rows are summed up key by key;
        default by shape.

    Returns:
      Outputs in q's dtype, computed in float32; zeros for rows that see no key.

    Raises:
      ValueError: for shapes, positions, implementations or params that do not fit; for a method
        that is defined under causality alone, without it; for gates that are not the method's, or
        are missing; where the method follows the length, and padding, documents or positions leave
        open what that is.
    """
    _check_block_size(block_size)
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v {v.shape}: should be [B, S, K, V] beside k {k.shape}")
    _check_floating("v", v)
    places, ordered, static_length, params = _resolve(
        q, k, method, q_positions, kv_positions, kv_mask, q_segment_ids, kv_segment_ids, length,
        params, gates, causal,
    )  # fmt: skip
    masked = places.kv_mask is not None or places.kv_segment_ids is not None
    call = _call(q, k, v, method, causal, ordered, masked, static_length)
    choice = _choose(call, implementation, block_size)
    return _attend(q, k, v, params, places, call=call, choice=choice)


def choose_implementation(
    q: Float[Ar, "B T N H"] | jax.ShapeDtypeStruct,
    k: Float[Ar, "B S K H"] | jax.ShapeDtypeStruct,
    v: Float[Ar, "B S K V"] | jax.ShapeDtypeStruct,
    method: AnyMethod,
    *,
    causal: bool = False,
    ordered: bool = True,
    masked: bool = False,
    implementation: str = "auto",
    block_size: int | None = None,
) -> Choice:
    """What `attend` takes for such a call, and why; nothing is computed.

    Args:
      q: queries, or their shape and type alone.
      k: keys, likewise.
      v: values, likewise.
      method: from `make_method`, one for all heads.
      causal: as in `attend`.
      ordered: no positions are given.
      masked: a `kv_mask` or segment ids are given.
      implementation: as in `attend`.
      block_size: as in `attend`.

    Raises:
      ValueError: for an implementation that is unknown, or cannot take the call.
    """
    if isinstance(method, HeadMethods):
        names = ", ".join(own.name for own in method.methods)
        raise ValueError(f"method {method.name!r}: is several, to be asked for by one: {names}")
    call = _call(q, k, v, method, causal, ordered, masked, k.shape[1])
    return _choose(call, implementation, block_size)


@over_heads(1)
def attention_weights(
    q: Float[Ar, "B T N H"],
    k: Float[Ar, "B S K H"],
    method: AnyMethod,
    *,
    causal: bool = False,
    q_positions: Int[Ar, "..."] | None = None,
    kv_positions: Int[Ar, "..."] | None = None,
    kv_mask: Bool[Ar, "B S"] | None = None,
    q_segment_ids: Int[Ar, "B T"] | None = None,
    kv_segment_ids: Int[Ar, "B S"] | None = None,
    length: int | np.integer | Int[Ar, "..."] | None = None,
    params: Params | None = None,
    gates: Gates | None = None,
) -> Float[Array, "B N T S"]:
    """The weights that `attend` gives the values, float32. Arguments as in `attend`."""
    q, k = jnp.asarray(q), jnp.asarray(k)
    places, _, static_length, params = _resolve(
        q, k, method, q_positions, kv_positions, kv_mask, q_segment_ids, kv_segment_ids, length,
        params, gates, causal,
    )  # fmt: skip
    return _attention_weights(
        q, k, params, places, method=method, causal=causal, length=static_length
    )


@over_heads(1)
def row_statistics(
    q: Float[Ar, "B T N H"],
    k: Float[Ar, "B S K H"],
    method: AnyMethod,
    *,
    causal: bool = False,
    q_positions: Int[Ar, "..."] | None = None,
    kv_positions: Int[Ar, "..."] | None = None,
    kv_mask: Bool[Ar, "B S"] | None = None,
    q_segment_ids: Int[Ar, "B T"] | None = None,
    kv_segment_ids: Int[Ar, "B S"] | None = None,
    length: int | np.integer | Int[Ar, "..."] | None = None,
    params: Params | None = None,
    gates: Gates | None = None,
    block_size: int | None = None,
) -> diagnostics.RowStatistics:
    """Entropy, dilution, gap scale, largest logit and sink weight of every row, each [B, N, T].

    O(block * S) memory. Arguments as in `attend`; what the figures mean: `RowStatistics`.
    """
    _check_block_size(block_size)
    q, k = jnp.asarray(q), jnp.asarray(k)
    places, ordered, static_length, params = _resolve(
        q, k, method, q_positions, kv_positions, kv_mask, q_segment_ids, kv_segment_ids, length,
        params, gates, causal,
    )  # fmt: skip
    if block_size is None:
        block_size = default_block_size(q.shape[0], q.shape[2], k.shape[1])
    return _row_statistics(
        q, k, params, places, method=method, causal=causal, ordered=ordered,
        length=static_length, block_size=block_size,
    )  # fmt: skip


def _call(q, k, v, method, causal, ordered, masked, length) -> Call:
    dtype = jnp.result_type(q.dtype, k.dtype, v.dtype).name
    return Call(method, q.shape, k.shape, v.shape, dtype, causal, ordered, masked, length)


def _choose(call: Call, wanted: str, block_size: int | None) -> Choice:
    backend = jax.default_backend()
    return choose(call, wanted=wanted, block_size=block_size, backend=backend)


def _without_hidden(places: Places, *of_keys: Array) -> tuple[Places, *tuple[Array, ...]]:
    """Places, keys and values with zeros where padding is: a weight of 0 times NaN would be NaN."""
    mask = places.kv_mask
    if mask is None:
        return places, *of_keys
    gates = jax.tree.map(lambda x: jnp.where(mask[:, :, None], x, 0), places.kv_gates)
    return (
        places._replace(kv_gates=gates), *(jnp.where(mask[:, :, None, None], x, 0) for x in of_keys)
    )  # fmt: skip


def _checked_gates(
    gates: Gates | None, method: Method, batch: int, queries: int, keys: int, num_heads: int
) -> Gates:
    """The gates, none where none are given; a ValueError where they are not the method's."""
    given = Gates({}, {}) if gates is None else gates
    wanted = gates_form(method, num_heads)
    if jax.tree.structure(given) != jax.tree.structure(wanted):
        follows, should = ("the", "gates=, from make_gates") if method.gated else ("no", "no gates")
        raise ValueError(
            f"method {method.name!r} follows {follows} layer's input: should have {should}"
        )
    for side, length in zip(given, (queries, keys), strict=True):
        for x in jax.tree.leaves(side):
            if x.ndim != 3 or x.shape[0] not in (1, batch) or x.shape[1:] != (length, num_heads):
                raise ValueError(f"gates {x.shape}: should be [{batch}, {length}, {num_heads}]")
    return given


@functools.partial(jax.jit, static_argnames=("call", "choice"))
def _attend(q, k, v, params, places, *, call: Call, choice: Choice):
    places, k, v = _without_hidden(located(places), k, v)
    if choice.implementation == "fused":
        assert choice.kernel is not None  # which is what "fused" says
        return attend_fused(q, k, v, call, params, places, kernel=choice.kernel)
    k_sides = _sides(k, call.method, places, call.num_heads, call.causal, call.length)
    return attend_sides(q, k_sides, v.swapaxes(1, 2), params, places, call=call, choice=choice)


def _sides(k, method, places, num_heads, causal, length):
    return naive.sides_of_keys(k, method, places, num_heads=num_heads, causal=causal, length=length)


@functools.partial(jax.jit, static_argnames=("method", "causal", "length"))
def _attention_weights(q, k, params, places, *, method, causal, length):
    places, k = _without_hidden(located(places), k)
    k_sides = _sides(k, method, places, q.shape[2], causal, length)
    scored = naive.scores(q, k_sides, method, params, places, causal=causal, length=length)
    return naive.weights(scored, method)


@functools.partial(jax.jit, static_argnames=("method", "causal", "ordered", "length", "block_size"))
def _row_statistics(q, k, params, places, *, method, causal, ordered, length, block_size):
    places, k = _without_hidden(located(places), k)

    def figures(scored, _):
        per_row = diagnostics.statistics(scored, method)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), per_row)  # [B, T, N]

    out = map_blocks(
        figures, q, _sides(k, method, places, q.shape[2], causal, length), None, method, params,
        places,
        causal=causal, ordered=ordered, length=length, block_size=block_size,
    )  # fmt: skip
    return jax.tree.map(lambda x: jnp.moveaxis(x, 2, 1), out)


def _resolve(
    q, k, method, q_positions, kv_positions, kv_mask, q_segment_ids, kv_segment_ids, length,
    params, gates, causal,
) -> tuple[Places, bool, int, Params]:  # fmt: skip
    """Checks the arguments and fills in the defaults.

    Returns:
      Where queries and keys stand, whether positions are the defaults, the length where it is one
      that is known (S, where it counts for nothing), and the learned parts.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method {method!r}: should come from make_method")
    if method.causal_only and not causal:
        raise ValueError(f"method {method.name!r}: is defined for causal=True only")
    _check_shapes(q, k)
    _check_floating("q", q)
    _check_floating("k", k)
    (batch, queries, num_heads, head_dim), key_length = q.shape, k.shape[1]
    if (q_segment_ids is None) != (kv_segment_ids is None):
        raise ValueError("q_segment_ids and kv_segment_ids: should be given both or neither")
    ordered = q_positions is None and kv_positions is None
    if q_positions is None:
        if queries > key_length:
            raise ValueError(f"{queries} queries on {key_length} keys: should have q_positions")
        q_positions = np.arange(key_length - queries, key_length)
    if kv_positions is None:
        kv_positions = np.arange(key_length)

    def per_token(name: str, x: Any, size: int, kind: Any) -> Any:
        if x is None:
            return None
        x = _as_given(x)
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != size or x.shape[0] not in (1, batch):
            raise ValueError(f"{name} {x.shape}: should be [{batch}, {size}]")
        if not jnp.issubdtype(x.dtype, kind):
            raise ValueError(f"{name} is {x.dtype}: should be {kind.__name__}")
        return jnp.asarray(x, jnp.bool_ if kind is jnp.bool_ else jnp.int32)

    gates = _checked_gates(gates, method, batch, queries, key_length, num_heads)
    places = Places(
        q_positions=per_token("q_positions", q_positions, queries, jnp.integer),
        kv_positions=per_token("kv_positions", kv_positions, key_length, jnp.integer),
        kv_mask=per_token("kv_mask", kv_mask, key_length, jnp.bool_),
        q_segment_ids=per_token("q_segment_ids", q_segment_ids, queries, jnp.integer),
        kv_segment_ids=per_token("kv_segment_ids", kv_segment_ids, key_length, jnp.integer),
        q_gates=gates.queries,
        kv_gates=gates.keys,
    )
    plain = ordered and kv_mask is None and kv_segment_ids is None
    if plain:
        # Known, and left to XLA a constant to fold, which takes seconds for a million keys.
        q_starts, kv_starts = (jnp.zeros_like(x) for x in (places.q_positions, places.kv_positions))
        places = places._replace(q_starts=q_starts, kv_starts=kv_starts)
    if not method.follows_length:
        length = key_length
    elif length is None and not plain:
        raise ValueError(
            f"method {method.name!r} follows the length of documents, which padding, segments or "
            "positions leave open: give length=, in tokens, or a method that follows none, such as "
            "one with scale="
        )
    known, given = _length(length, batch, key_length)
    if given is not None:
        places = places._replace(kv_lengths=given)
    initial = init_params(method, num_heads, head_dim)
    _check_form(params, initial)
    return places, ordered, known, initial if params is None else params


def _check_shapes(q: Any, k: Any) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape}, k {k.shape}: should be [B, T, N, H] and [B, S, K, H]")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} query heads: should be a multiple of {k.shape[2]} key heads"
        )


def _check_form(params: Params | None, initial: Params) -> None:
    if params is not None and _form(params) != _form(initial):
        raise ValueError(
            f"params {_form(params)}: should be {_form(initial)}, as init_params gives"
        )


def _length(length: Any, batch: int, key_length: int) -> tuple[int, Int[Array, "#B S"] | None]:
    """A length that is known (or S), and one by key that is not."""
    if length is None:
        return key_length, None
    if isinstance(length, int | np.integer) and not isinstance(length, bool):
        if not 1 <= length < MOST_TOKENS:
            raise ValueError(f"length={length}: should be at least 1 and below 2^31")
        return int(length), None
    length = _as_given(length)
    if not jnp.issubdtype(length.dtype, jnp.integer):
        raise ValueError(f"length is {length.dtype}: should be an integer")
    if length.shape not in ((), (1,), (batch,), (1, key_length), (batch, key_length)):
        raise ValueError(
            f"length {length.shape}: should be a number, [{batch}] or [{batch}, {key_length}]"
        )
    by_row = jnp.asarray(length.reshape(-1, 1) if length.ndim < 2 else length, jnp.int32)
    return key_length, jnp.broadcast_to(by_row, (by_row.shape[0], key_length))


def _as_given(x: Any) -> Any:
    """An array as it is, for its form to be checked before it is made one of JAX's."""
    return x if isinstance(x, Array) else np.asarray(x)


def _form(params: Any) -> Any:
    """Parameters' nesting and shapes, to compare and to print."""
    return jax.tree.map(lambda x: str(list(jnp.shape(x))), params)


def _check_floating(name: str, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} is {x.dtype}: should be floating")


def _check_block_size(block_size: int | None) -> None:
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size}: should be at least 1")
