"""Where queries and keys stand, and what that says about the rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lenext.attention.axes.method import Method, Rows
from lenext.attention.checked import checked


class Places(NamedTuple):
    """Where the queries and keys stand. B is the batch size, or 1 where all sequences agree.

    `q_starts` and `kv_starts` are the positions at which each token's own document starts: its
    first key that is no padding, so that padding on the left and neighbours in a pack move
    neither sinks nor anything else that counts from the start. `located` fills them in.
    """

    q_positions: Int[Array, "#B T"]
    kv_positions: Int[Array, "#B S"]
    kv_mask: Bool[Array, "#B S"] | None = None
    q_segment_ids: Int[Array, "#B T"] | None = None
    kv_segment_ids: Int[Array, "#B S"] | None = None
    q_starts: Int[Array, "#B T"] | None = None
    kv_starts: Int[Array, "#B S"] | None = None

    @property
    def kv_ordinals(self) -> Int[Array, "#B S"]:
        """Each key's place in its own document, from 0."""
        if self.kv_starts is None:
            raise ValueError("the documents' starts are not known: call `located` first")
        return self.kv_positions - self.kv_starts


def located(places: Places) -> Places:
    """The same places with the documents' starts filled in; O((T + S) log S) where in packs."""
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

    def starts_of(ids, real, q_ids):
        order = jnp.argsort(ids)
        ordered = ids[order]
        # Documents numbered from 0 in the order of their ids, whatever those are.
        new = jnp.concatenate([jnp.zeros((1,), bool), ordered[1:] != ordered[:-1]])
        number = jnp.cumsum(new.astype(jnp.int32))
        starts = jax.ops.segment_min(real[order], number, num_segments=ids.size)
        starts = jnp.where(starts == far, 0, starts)
        of_keys = jnp.zeros_like(ids).at[order].set(starts[number])
        at = jnp.minimum(jnp.searchsorted(ordered, q_ids), ids.size - 1)
        return jnp.where(ordered[at] == q_ids, starts[number[at]], 0), of_keys

    batch = max(real.shape[0], places.kv_segment_ids.shape[0], places.q_segment_ids.shape[0])
    everywhere = (places.kv_segment_ids, real, places.q_segment_ids)
    everywhere = [jnp.broadcast_to(x, (batch, x.shape[1])) for x in everywhere]
    q_starts, kv_starts = jax.vmap(starts_of)(*everywhere)
    return places._replace(q_starts=q_starts, kv_starts=kv_starts)


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
    key_length: int,
    num_heads: int,
    head_dim: int,
) -> Rows:
    """The rows at (located) `places`, each of which sees `n` keys."""
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
        key_length=key_length,
        num_heads=num_heads,
        head_dim=head_dim,
    )


def count(mask: Bool[Array, "#B 1 T S"]) -> Int[Array, "#B 1 T 1"]:
    """How many keys each row sees."""
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)
