"""The steps of a kernel: a block of queries by a tile of keys, those that are visible."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lenext.attention.axes.axis import Rows
from lenext.attention.compute.plan import Plan
from lenext.attention.compute.trimmed import Trimmed


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


def number_of_steps(plan: Plan) -> int:
    """How many `steps_of` a plan finds, which takes long where they are many."""
    first, _, stop, sinks = _met(plan)
    return int(np.sum(stop - first + np.minimum(sinks, first)))


@functools.cache
def steps_of(plan: Plan, *, by_tile: bool) -> Steps:
    """All steps of a plan in which something is visible, by block of queries or by tile of keys."""
    first, whole, stop, sinks = _met(plan)
    kind_of = _kinds(plan)
    taken = [
        (block, tile, kind_of(block, tile, not first[block] <= tile < whole[block]))
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


def _met(plan: Plan) -> list[Int[np.ndarray, " blocks"]]:
    """What each block of queries meets, as `plan.tiles` has it."""
    with jax.ensure_compile_time_eval():
        return [np.asarray(x) for x in jax.vmap(plan.tiles)(plan.block_numbers)]


def _kinds(plan: Plan) -> Callable[[int, int, bool], Kind]:
    """Of the step of a block and a tile, masked or not."""
    among = _among(plan)

    def kind_of(block: int, tile: int, masked: bool) -> Kind:
        query = plan.keys - plan.queries + block * plan.query_block
        pieces = among(query, tile * plan.key_block)
        if pieces is None or np.any(pieces != pieces[0]):
            return Kind(masked, None)
        return Kind(masked, int(pieces[0]))

    return kind_of


def _among(plan: Plan) -> Callable[[int, int], Int[np.ndarray, " found"] | None]:
    """Of a step's first query and key, the pieces of what is visible of it; None for any."""
    size, span = plan.method.position.piece_chunk, _span(plan)
    if size is not None:
        of_chunks, end = _pieces_of_chunks(plan, size), plan.keys - 1  # behind it is padding

        def among_chunks(query: int, key: int) -> Int[np.ndarray, " found"]:
            i, j = (
                np.arange(start // size, min(start + length - 1, end) // size + 1)
                for start, length in ((query, plan.query_block), (key, plan.key_block))
            )
            i, j = np.meshgrid(i, j, indexing="ij")
            seen = i >= j if plan.causal else np.full(i.shape, True)
            return of_chunks[i[seen], j[seen]]

        return among_chunks
    of_distances = _pieces_of_distances(plan)

    def among_distances(query: int, key: int) -> Int[np.ndarray, " found"] | None:
        least, most = query - (key + plan.key_block - 1), query + plan.query_block - 1 - key
        least = max(least, 0) if plan.causal else least
        return None if of_distances is None else of_distances[span + least : span + most + 1]

    return among_distances


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
