"""Ids of a text that comes in parts: where those of one part go on in those of the next."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

# As much of one part is read again before the next: so much that the ids in the middle of it do not
# know of its two ends.
OVERLAP_CHARACTERS = 4096
PARTS_AT_ONCE = 8


class Piece(NamedTuple):
    """An encoded part: ids, the place of each in its text, and the characters of the text."""

    ids: Int64[np.ndarray, " n"]
    places: Sequence[tuple[int, int]]
    size: int


def meet(one: Piece, other: Piece, shared: int) -> tuple[int, int]:
    """Where the other goes on for the one: how many ids of the one there are, and of the other.

    Args:
      one: an encoded part.
      other: the next one, which begins with the last `shared` characters of the one.
      shared: these.
    """
    moved = one.size - shared
    seen = {}
    for i in range(len(one.ids) - 1, -1, -1):
        begin, end = one.places[i]
        if begin < moved:
            break
        seen[int(one.ids[i]), begin - moved, end - moved] = i
    best = None
    for j, (begin, end) in enumerate(other.places):
        if begin >= shared:
            break
        i = seen.get((int(other.ids[j]), begin, end))
        far = abs(2 * begin - shared)
        if i is not None and (best is None or far < best[0]):
            best = far, i, j
    if best is not None:
        return best[1:]
    return len(one.ids), sum(begin < shared for begin, _ in other.places)


def in_groups(parts: Iterable[bytes | str], size: int) -> Iterator[list[bytes | str]]:
    """Lists of `size` parts each, the last one of what is left."""
    group: list[bytes | str] = []
    for part in parts:
        group.append(part)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
