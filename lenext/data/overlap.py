"""Which documents, or how much of them, stand in other documents: by hashes of texts and lines."""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lenext.data.token_cache import Text

LINE = 16
"""Characters, without white space, of a line that tells something. Shorter ones, such as
"return None", stand in many documents."""


class Prints(NamedTuple):
    """What a text is known by, however its white space and its characters are spelt.

    Attributes:
      digest: SHA-256 of its characters in normal form (NFKC), without white space.
      lines: of lines of at least `LINE` such characters, how many stand on those of a hash. It is
        Python's own, of 64 bits, which is another one in another process.
      size: of all lines, characters without white space.
    """

    digest: bytes
    lines: dict[int, int]
    size: int


def prints_of(parts: Iterable[str | bytes]) -> Prints:
    """The prints of a text that comes in parts, cut at line ends or white space; bytes in UTF-8."""
    digest, lines, size = hashlib.sha256(), {}, 0
    for part in parts:
        text = part if isinstance(part, str) else part.decode(errors="replace")
        for line in unicodedata.normalize("NFKC", text).splitlines():
            bare = "".join(line.split())
            digest.update(bare.encode(errors="replace"))
            size += len(bare)
            if len(bare) >= LINE:
                lines[hash(bare)] = lines.get(hash(bare), 0) + len(bare)
    return Prints(digest.digest(), lines, size)


def shares_in(documents: Sequence[Prints], others: Iterable[Text]) -> list[float]:
    """How much of each document stands in other ones.

    The others are gone through once, and nothing is kept of them but what the documents have too.

    Args:
      documents: those that are asked for.
      others: names and texts, see `Text`.

    Returns:
      Of each, 1.0 where one of the others has the same text, and else the share of its characters
      in lines that one of them has, too; of an empty one 0.0.
    """
    wanted = {line for each in documents for line in each.lines}
    same, seen = set(), set()
    for _, parts in itertools.groupby(others, key=lambda text: text[0]):
        prints = prints_of(text for _, text in parts)
        same.add(prints.digest)
        seen |= wanted & prints.lines.keys()
    same &= {each.digest for each in documents}
    return [
        1.0
        if each.digest in same
        else sum(size for line, size in each.lines.items() if line in seen) / max(1, each.size)
        for each in documents
    ]
