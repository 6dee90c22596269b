"""The definition: complete rows for the queries at hand against the keys at hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lenext.attention.method import Method, Params, Rows
from lenext.attention.position import rotate


class Places(NamedTuple):
    """Where the queries and keys stand. B is the batch size, or 1 where all sequences agree."""

    q_positions: Int[Array, "#B T"]
    kv_positions: Int[Array, "#B S"]
    kv_mask: Bool[Array, "B S"] | None = None
    q_segment_ids: Int[Array, "B T"] | None = None
    kv_segment_ids: Int[Array, "B S"] | None = None
    kv_ordinals: Int[Array, "#B S"] | None = None  # for positions that use them


class Scores(NamedTuple):
    """Complete rows of logits (float32; meaningless where `mask` is False)."""

    logits: Float[Array, "B N T S"]
    mask: Bool[Array, "#B 1 T S"]
    ordinal: Int[Array, "#B 1 T S"]
    rows: Rows


def document_ordinals(
    positions: Int[Array, "#B S"],
    mask: Bool[Array, "#B S"] | None,
    segment_ids: Int[Array, "#B S"] | None,
) -> Int[Array, "#B S"]:
    """Each key's place in its own document, counted as in `visible`; O(S log S)."""
    mask = jnp.ones((1, positions.shape[1]), bool) if mask is None else mask
    far = jnp.iinfo(jnp.int32).max
    real = jnp.where(mask, positions, far)
    if segment_ids is None:
        return positions - jnp.min(real, axis=1, keepdims=True)

    def starts(ids, real):
        order = jnp.argsort(ids)
        ids = ids[order]
        # Documents numbered from 0 in the order of their ids, whatever those are.
        new = jnp.concatenate([jnp.zeros((1,), bool), ids[1:] != ids[:-1]])
        document = jnp.zeros_like(ids).at[order].set(jnp.cumsum(new.astype(jnp.int32)))
        return jax.ops.segment_min(real, document, num_segments=ids.size)[document]

    batch = max(positions.shape[0], mask.shape[0], segment_ids.shape[0])
    segment_ids, real = (jnp.broadcast_to(x, (batch, x.shape[1])) for x in (segment_ids, real))
    return positions - jax.vmap(starts)(segment_ids, real)


def visible(
    method: Method, places: Places, causal: bool
) -> tuple[Bool[Array, "#B 1 T S"], Int[Array, "#B 1 T S"], Int[Array, "#B 1 T 1"]]:
    """Which keys each row sees, each key's place in the row's document, and where that starts.

    A document starts at the first of its keys that is no padding, so padding on the left and
    neighbours in a pack move neither sinks nor anything else that counts from the start.
    """
    q_positions = places.q_positions[:, None, :, None]
    kv_positions = places.kv_positions[:, None, None, :]
    delta = q_positions - kv_positions
    document = jnp.ones_like(delta, dtype=bool)
    if places.kv_mask is not None:
        document &= places.kv_mask[:, None, None, :]
    if places.q_segment_ids is not None and places.kv_segment_ids is not None:
        same = places.q_segment_ids[:, None, :, None] == places.kv_segment_ids[:, None, None, :]
        document &= same
    far = jnp.iinfo(jnp.int32).max
    start = jnp.min(jnp.where(document, kv_positions, far), axis=-1, keepdims=True)
    start = jnp.where(start == far, 0, start)
    ordinal = kv_positions - start
    mask = document
    if causal:
        mask &= delta >= 0
    in_reach = method.visibility(delta, ordinal)
    if in_reach is not None:
        mask &= in_reach
    return mask, ordinal, start


def rows_of(
    method: Method,
    places: Places,
    *,
    causal: bool,
    key_length: int,
    num_heads: int,
    head_dim: int,
) -> tuple[Rows, Bool[Array, "#B 1 T S"], Int[Array, "#B 1 T S"]]:
    """The rows that stand at `places`, with the mask and the ordinals that `visible` gives."""
    mask, ordinal, start = visible(method, places, causal)
    rows = Rows(
        n=jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(jnp.float32),
        q_positions=places.q_positions,
        kv_positions=places.kv_positions,
        delta=places.q_positions[:, None, :, None] - places.kv_positions[:, None, None, :],
        start=start,
        kv_ordinals=jnp.zeros_like(places.kv_positions)
        if places.kv_ordinals is None
        else places.kv_ordinals,
        causal=causal,
        train_length=method.train_length,
        key_length=key_length,
        num_heads=num_heads,
        head_dim=head_dim,
    )
    return rows, mask, ordinal


def scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    method: Method,
    params: Params,
    places: Places,
    *,
    causal: bool,
    key_length: int,
) -> Scores:
    """Logits of the queries against the keys at hand; `key_length` is the whole array's S."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    rows, mask, ordinal = rows_of(
        method, places, causal=causal, key_length=key_length,
        num_heads=q.shape[2], head_dim=q.shape[3],
    )  # fmt: skip
    position = method.position
    q_pairs, k_pairs = position.arrange(q), position.arrange(k)
    similarity = jnp.zeros((), jnp.float32)
    for piece in position.pieces(rows):
        turned = rotate(q_pairs, piece.q_phase), rotate(k_pairs, piece.k_phase)
        value = method.similarity(*turned)
        similarity = value if piece.where is None else jnp.where(piece.where, value, similarity)
    logits = method.temperature(rows, q, params.get("temperature", {})) * similarity
    gain, bias = position.gain(rows), position.bias(rows, params.get("position", {}))
    logits = logits if gain is None else gain * logits
    logits = logits if bias is None else logits + bias
    return Scores(logits, mask, ordinal, rows)


def weights(scored: Scores, method: Method) -> Float[Array, "B N T S"]:
    """The rows' weights, float32."""
    return method.weighting(scored.logits, scored.mask, scored.rows)


def combine(
    weights: Float[Array, "B N T S"], v: Float[Array, "B S K V"]
) -> Float[Array, "B T N V"]:
    """Weighted sums of the values, for grouped queries, in float32."""
    (b, n, t, s), (kv_heads, dim) = weights.shape, v.shape[2:]
    grouped = weights.reshape(b, kv_heads, n // kv_heads, t, s)
    v = v.astype(jnp.float32)
    out = jnp.einsum("bkgts,bskv->btkgv", grouped, v, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(b, t, n, dim)
