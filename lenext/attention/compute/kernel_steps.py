"""The steps of a kernel for TPUs: a block of queries by a tile of keys, those that are visible."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lenext.attention.axes.axis import Rows
from lenext.attention.compute.call import Call
from lenext.attention.compute.plan import Plan
from lenext.attention.compute.trimmed import Trimmed

LANES = 128
LEAST = 256  # queries and keys of a step, whatever the window


class Kind(NamedTuple):
    """What the steps of one body of a kernel have in common.

    Attributes:
      masked: whether something is hidden.
      piece: the one that all entries are of; None where they are of several.
    """

    masked: bool
    piece: int | None


class Steps(NamedTuple):
    """The steps of a kernel, in its order.

    Attributes:
      block: each one's block of queries.
      tile: its tile of keys.
      what: 4 x the number of its kind, + 1 where it is the first of its sum, + 2 where the last.
      kinds: by number.
    """

    block: Int[np.ndarray, " steps"]
    tile: Int[np.ndarray, " steps"]
    what: Int[np.ndarray, " steps"]
    kinds: tuple[Kind, ...]


@functools.cache
def steps_of(plan: Plan, *, by_tile: bool) -> Steps:
    """All steps of a plan in which something is visible, by block of queries or by tile of keys."""
    with jax.ensure_compile_time_eval():
        met = jax.vmap(plan.tiles)(plan.block_numbers)
        first, whole, stop, sinks = (np.asarray(x) for x in met)
    taken = [
        (block, tile, _kind(plan, block, tile, masked=not first[block] <= tile < whole[block]))
        for block in range(plan.query_blocks)
        for tile in (*range(min(sinks[block], first[block])), *range(first[block], stop[block]))
    ]
    over = 1 if by_tile else 0
    # Sums of nothing are to be written, too: by a step in which all is hidden.
    number = plan.key_blocks if by_tile else plan.query_blocks
    for lacking in set(range(number)) - {step[over] for step in taken}:
        taken.append((0, lacking, Kind(True, 0)) if by_tile else (lacking, 0, Kind(True, 0)))
    taken.sort(key=lambda step: (step[over], step[1 - over]))
    sums = [step[over] for step in taken]
    kinds = list(dict.fromkeys(kind for *_, kind in taken))
    what = [
        4 * kinds.index(kind)
        + (i == 0 or sums[i - 1] != sums[i])
        + 2 * (i + 1 == len(sums) or sums[i + 1] != sums[i])
        for i, (*_, kind) in enumerate(taken)
    ]
    block, tile, what = (
        np.asarray(x, np.int32) for x in ([b for b, *_ in taken], [t for _, t, _ in taken], what)
    )
    return Steps(block, tile, what, tuple(kinds))


def _kind(plan: Plan, block: int, tile: int, *, masked: bool) -> Kind:
    """Of the step of a block and a tile."""
    query = plan.keys - plan.queries + int(block) * plan.query_block
    among = _among(plan, query, int(tile) * plan.key_block)
    if among is None or np.any(among != among[0]):
        return Kind(masked, None)
    return Kind(masked, int(among[0]))


def _among(plan: Plan, query: int, key: int) -> Int[np.ndarray, " found"] | None:
    """The pieces of what is visible of a step of these first positions; None for any."""
    size, last = plan.method.position.piece_chunk, key + plan.key_block - 1
    if size is not None:
        most = plan.keys - 1  # what lies behind is padding
        rows = np.arange(query // size, min(query + plan.query_block - 1, most) // size + 1)
        columns = np.arange(key // size, min(last, most) // size + 1)
        i, j = np.meshgrid(rows, columns, indexing="ij")
        seen = i >= j if plan.causal else np.full(i.shape, True)
        return _pieces_of_chunks(plan, size)[i[seen], j[seen]]
    pieces = _pieces_of_distances(plan)
    if pieces is None:
        return None
    least = query - last
    if plan.causal:
        least = max(least, 0)
    most = query + plan.query_block - 1 - key
    return pieces[_span(plan) + least : _span(plan) + most + 1]


def _span(plan: Plan) -> int:
    """No distance in a tile exceeds it, padding included."""
    return plan.keys + plan.query_blocks * plan.query_block + plan.key_blocks * plan.key_block


@functools.cache
def _pieces_of_distances(plan: Plan) -> Int[np.ndarray, " distances"] | None:
    """The piece of each distance from -span to span; None where it does not follow from that."""
    span = _span(plan)
    with jax.ensure_compile_time_eval():
        delta = jnp.arange(-span, span + 1, dtype=jnp.int32)[None, None, :, None]
        given = delta, delta[0, :, :, 0], delta[0, :, :1, 0], delta
        trimmed = Trimmed(functools.partial(_wheres, plan), *given)
        if any(trimmed.used[1:]):
            return None
        return _numbered(trimmed(*given), delta)[:, 0]


@functools.cache
def _pieces_of_chunks(plan: Plan, size: int) -> Int[np.ndarray, "chunks chunks"]:
    """The piece of each chunk of queries and chunk of keys, by their first tokens."""
    with jax.ensure_compile_time_eval():
        places = jnp.arange(0, plan.keys, size, dtype=jnp.int32)[None]
        delta = places[:, None, :, None] - places[:, None, None, :]
        wheres = _wheres(plan, delta, places, places, jnp.zeros_like(delta[..., :1]))
        return _numbered(wheres, delta)


def _wheres(plan: Plan, delta: Any, q_positions: Any, kv_positions: Any, start: Any) -> list[Any]:
    """Where pieces count, but for the first, which is of all others."""
    rows = Rows(
        n=jnp.ones((*delta.shape[:3], 1), jnp.float32), q_positions=q_positions,
        kv_positions=kv_positions, delta=delta, start=start, kv_ordinals=kv_positions,
        causal=plan.causal, train_length=plan.method.train_length, q_lengths=plan.length,
        kv_lengths=plan.length, num_heads=plan.num_heads, head_dim=plan.head_dim,
    )  # fmt: skip
    _, *later = plan.method.position.pieces(rows)
    return [piece.where for piece in later]


def _numbered(wheres: list[Any], delta: Any) -> Int[np.ndarray, "T S"]:
    """The number of the last piece that counts."""
    pieces = np.zeros(delta.shape[2:], np.int32)
    for number, where in enumerate(wheres, 1):
        pieces = np.where(np.asarray(where)[0, 0], number, pieces)
    return pieces


def plan_of(call: Call, most: tuple[int, int]) -> Plan:
    """The plan of a call in blocks and tiles of whole registers."""
    keeps = call.method.visibility.keeps()
    if keeps is not None:
        reach = max(LEAST, 2 ** (keeps[1] - 1).bit_length())
        most = min(most[0], reach), min(most[1], reach)
    return Plan(
        **vars(call), query_block=_even(call.queries, most[0]), key_block=_even(call.keys, most[1])
    )


def _even(length: int, most: int) -> int:
    """The size of a block, in whole registers: at most so many, and all of them alike."""
    blocks = -(-length // most)
    return -(-length // (blocks * LANES)) * LANES
