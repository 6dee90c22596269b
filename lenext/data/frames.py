"""What surrounds a text: ids that it starts with, the one that ends it, those that drawing ends at.

Whoever joins texts to documents, cuts crops of them, or goes on from a prompt asks the tokeniser's
`Frame`. What it is, the tokeniser's file says, a checkpoint's other files, or the config.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tokenizers
from jaxtyping import Integer

from lenext.errors import UserError

# What vocabularies call these, in the order in which they are looked for.
EOS_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]")
AUTO, NONE, CUSTOMARY = "auto", "none", "customary"


@dataclasses.dataclass(frozen=True)
class Frame:
    """What surrounds a text.

    Attributes:
      start: ids that documents, crops and prompts start with.
      end: the id that ends a document; None where documents end without one.
      stops: ids at any of which a text that is drawn has ended.
    """

    start: tuple[int, ...] = ()
    end: int | None = None
    stops: tuple[int, ...] = ()

    @property
    def highest(self) -> int:
        """The highest id around a text; -1 where there is none."""
        return max(*self.start, -1 if self.end is None else self.end, -1)

    def started(self, rows: Integer[np.ndarray, "*rows n"]) -> Integer[np.ndarray, "*rows n"]:
        """Rows that start as a text does: their first tokens make room for the start.

        So a row keeps its length, and one that is cut where its document starts stays as it is.

        Raises:
          UserError: it takes all of a row.
        """
        count = len(self.start)
        if not count:
            return rows
        if rows.shape[-1] <= count:
            raise UserError(
                f"rows of {rows.shape[-1]} tokens: should be longer than what they start with, "
                f"{count} tokens (config.data.bos)"
            )
        rows = np.array(rows)
        rows[..., :count] = self.start
        return rows

    def count_start(self, row: Integer[np.ndarray, " n"]) -> int:
        """How many tokens at the beginning of a row are not text: the whole start, or none."""
        count = len(self.start)
        return count if count and tuple(row[:count]) == self.start else 0


NO_FRAME = Frame()


def read_ids(words: str, vocabulary: Mapping[str, int], key: str) -> tuple[int, ...]:
    """Ids from "<s>,7": tokens as the vocabulary spells them, or numbers, with commas.

    Args:
      words: these.
      vocabulary: ids by token.
      key: what says so, for messages.

    Raises:
      UserError: for a token that the vocabulary does not have.
    """
    found = []
    for word in (word.strip() for word in words.split(",")):
        if word.isascii() and word.isdecimal() and len(word) < 10:
            found.append(int(word))
        elif word in vocabulary:
            found.append(vocabulary[word])
        else:
            raise UserError(
                f"{key}={words!r}: the tokenizer has no token {word!r}; should be {AUTO}, {NONE}, "
                "or tokens of its vocabulary or their ids, with commas"
            )
    return tuple(found)


def surrounding_ids(library: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokeniser's own post-processor puts before a text, and after it."""
    if not library.num_special_tokens_to_add(is_pair=False):
        return (), ()
    # Of any text that has ids; it need not be the first one.
    for text in ("a", "0", *library.get_vocab(with_added_tokens=False)):
        encoding = library.encode(text, add_special_tokens=True)
        special = encoding.special_tokens_mask
        if 0 in special:
            first, last = special.index(0), len(special) - special[::-1].index(0)
            return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])
    return (), ()
