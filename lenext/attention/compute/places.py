"""Where queries and keys stand, and what that says about the rows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lenext.attention.axes.axis import Numbers, Rows
from lenext.attention.axes.method import Method
from lenext.attention.checked import checked

Ar = Array | np.ndarray


class Places(NamedTuple):
    """Where the queries and keys stand. B is the batch size, or 1 where all sequences agree.

    `q_starts` and `kv_starts` are the positions at which each token's own document starts: its
    first key that is no padding, so that padding on the left and neighbours in a pack move
    neither sinks nor anything else that counts from the start. `located` fills them in.

    `q_lengths` and `kv_lengths` are the tokens in each token's own document, where that is not one
    number that is known beforehand. Where the keys' are given, `located` fills in the queries'.

    `q_gates` and `kv_gates` are what the method made of the layer's input at these tokens, by axis.
    """

    q_positions: Int[Array, "#B T"]
    kv_positions: Int[Array, "#B S"]
    kv_mask: Bool[Array, "#B S"] | None = None
    q_segment_ids: Int[Array, "#B T"] | None = None
    kv_segment_ids: Int[Array, "#B S"] | None = None
    q_starts: Int[Array, "#B T"] | None = None
    kv_starts: Int[Array, "#B S"] | None = None
    q_lengths: Int[Array, "#B T"] | None = None
    kv_lengths: Int[Array, "#B S"] | None = None
    q_gates: dict[str, Numbers] | None = None
    kv_gates: dict[str, Numbers] | None = None

    @property
    def kv_ordinals(self) -> Int[Array, "#B S"]:
        """Each key's place in its own document, from 0."""
        if self.kv_starts is None:
            raise ValueError("the documents' starts are not known: call `located` first")
        return self.kv_positions - self.kv_starts


def located(places: Places) -> Places:
    """The same places with the documents' starts filled in; O((T + S) log S) where in packs."""
    if places.kv_lengths is not None and places.q_lengths is None:
        places = places._replace(q_lengths=_of_queries(places, places.kv_lengths))
    if places.kv_starts is not None:
        return places
    far = jnp.iinfo(jnp.int32).max
    shape = (1, places.kv_positions.shape[1])
    mask = jnp.ones(shape, bool) if places.kv_mask is None else places.kv_mask
    real = jnp.where(mask, places.kv_positions, far)
    if places.q_segment_ids is None or places.kv_segment_ids is None:
        starts = jnp.min(real, axis=1, keepdims=True)
        starts = jnp.where(starts == far, 0, starts)
        of_queries = jnp.broadcast_to(starts, (starts.shape[0], places.q_positions.shape[1]))
        return places._replace(q_starts=of_queries, kv_starts=jnp.broadcast_to(starts, real.shape))

    q_starts, kv_starts = _by_document(
        jax.ops.segment_min, places.kv_segment_ids, real, places.q_segment_ids, far
    )
    starts = (jnp.where(x == far, 0, x) for x in (q_starts, kv_starts))
    return places._replace(**dict(zip(("q_starts", "kv_starts"), starts, strict=True)))


def _by_document(
    reduce: Callable[..., Array],
    kv_ids: Int[Array, "#B S"],
    values: Int[Array, "#B S"],
    q_ids: Int[Array, "#B T"],
    missing: int,
) -> tuple[Int[Array, "B T"], Int[Array, "B S"]]:
    """What a segment reduction makes of each document's values: for its queries and its keys.

    `missing` is for queries of documents without keys.
    """

    def of_row(ids, values, q_ids):
        ordered, order = jax.lax.sort((ids, jnp.arange(ids.size, dtype=jnp.int32)), num_keys=1)
        # Documents numbered from 0 in the order of their ids, whatever those are.
        new = jnp.concatenate([jnp.zeros((1,), bool), ordered[1:] != ordered[:-1]])
        number = jnp.cumsum(new.astype(jnp.int32))
        whole = reduce(values[order], number, num_segments=ids.size)
        of_keys = jnp.zeros_like(values).at[order].set(whole[number])
        at = jnp.minimum(jnp.searchsorted(ordered, q_ids), ids.size - 1)
        return jnp.where(ordered[at] == q_ids, whole[number[at]], missing), of_keys

    batch = max(kv_ids.shape[0], values.shape[0], q_ids.shape[0])
    rows = (jnp.broadcast_to(x, (batch, x.shape[1])) for x in (kv_ids, values, q_ids))
    return jax.vmap(of_row)(*rows)


def _of_queries(places: Places, lengths: Int[Array, "#B S"]) -> Int[Array, "#B T"]:
    """The lengths of queries' documents, by those of the keys; 0 where a query has no key."""
    queries = places.q_positions.shape[1]
    if places.kv_mask is not None:
        lengths = jnp.where(places.kv_mask, lengths, 0)
    if places.q_segment_ids is None or places.kv_segment_ids is None:
        longest = jnp.max(lengths, axis=1, keepdims=True)
        return jnp.broadcast_to(longest, (longest.shape[0], queries))

    return _by_document(
        jax.ops.segment_max, places.kv_segment_ids, lengths, places.q_segment_ids, 0
    )[0]


def count_tokens(
    mask: Bool[Ar, "#B S"] | None, segment_ids: Int[Ar, "#B S"] | None, tokens: int
) -> int | Int[Array, "#B"] | Int[Array, "#B S"]:
    """How many tokens each document has, as `attend` takes it for `length`.

    Args:
      mask: False marks padding; None: there is none.
      segment_ids: documents of a pack; None: each row is one document.
      tokens: S.

    Returns:
      S, a number a row, or in packs a number a token.
    """
    if segment_ids is None:
        return tokens if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
    ids = jnp.asarray(segment_ids)
    counted = jnp.ones((1, tokens), jnp.int32) if mask is None else jnp.asarray(mask, jnp.int32)
    return _by_document(jax.ops.segment_sum, ids, counted, ids, 0)[1]


def visible(method: Method, places: Places, causal: bool) -> Bool[Array, "#B 1 #T S"]:
    """Which keys each row sees."""
    delta = places.q_positions[:, None, :, None] - places.kv_positions[:, None, None, :]
    mask = jnp.ones_like(delta, dtype=bool)
    if places.kv_mask is not None:
        mask &= places.kv_mask[:, None, None, :]
    if places.q_segment_ids is not None and places.kv_segment_ids is not None:
        same = places.q_segment_ids[:, None, :, None] == places.kv_segment_ids[:, None, None, :]
        mask &= same
    if causal:
        mask &= delta >= 0
    ordinal = places.kv_ordinals[:, None, None, :]
    in_reach = method.visibility(delta, ordinal)
    if in_reach is None:
        return mask
    sizes = {"B": max(len(delta), len(ordinal)), "T": delta.shape[2], "S": delta.shape[3]}
    form = "B? 1 T? S?"
    return mask & checked(in_reach, method.visibility, "visibility", form, sizes, jnp.bool_)


def rows_at(
    method: Method,
    places: Places,
    n: Int[Array, "#B 1 T 1"],
    *,
    causal: bool,
    length: int,
    num_heads: int,
    head_dim: int,
) -> Rows:
    """The rows at (located) `places`, each of which sees `n` keys.

    `length` is that of every document, in tokens, unless `places` say otherwise.
    """
    if places.q_starts is None:
        raise ValueError("the documents' starts are not known: call `located` first")
    return Rows(
        n=jnp.maximum(n, 1).astype(jnp.float32),
        q_positions=places.q_positions,
        kv_positions=places.kv_positions,
        delta=places.q_positions[:, None, :, None] - places.kv_positions[:, None, None, :],
        start=places.q_starts[:, None, :, None],
        kv_ordinals=places.kv_ordinals,
        causal=causal,
        train_length=method.train_length,
        q_lengths=length if places.q_lengths is None else places.q_lengths,
        kv_lengths=length if places.kv_lengths is None else places.kv_lengths,
        num_heads=num_heads,
        head_dim=head_dim,
        q_gates=places.q_gates or {},
        kv_gates=places.kv_gates or {},
    )


def count(mask: Bool[Array, "#B 1 T S"]) -> Int[Array, "#B 1 T 1"]:
    """How many keys each row sees."""
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)
