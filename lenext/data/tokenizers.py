"""Tokenisers: text to ids and back."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int64, Integer, UInt16

from lenext.data.frames import (
    NO_FRAME,
    Frame,
)
from lenext.data.joining import OVERLAP_CHARACTERS, PARTS_AT_ONCE, Piece, in_groups, meet
from lenext.errors import UserError

Ids = Integer[np.ndarray, " _"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the pipelines need of a tokeniser."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def mask_id(self) -> int | None:
        """The id that stands for a masked token; None where the vocabulary has none."""
        ...

    @property
    def pad_id(self) -> int:
        """The id that fills a row up."""
        ...

    @property
    def frame(self) -> Frame:
        """The ids that surround a text; `encode` gives those of the text alone."""
        ...

    @property
    def text_size(self) -> int:
        """The highest id plus 1 that a model has to have: of what texts and frame are made of."""
        ...

    @property
    def regular_ids(self) -> Int64[np.ndarray, " regular"]:
        """The ids that text is made of, ascending; random replacements are drawn from them."""
        ...

    @property
    def byte_level(self) -> bool:
        """Whether each id of a text is one byte of it, so that loss / ln 2 is bits per byte."""
        ...

    @property
    def fingerprint(self) -> str:
        """12 hex digits of a hash of what determines the ids of a text."""
        ...

    @property
    def document_identity(self) -> list[Any]:
        """JSON values, of what determines the ids of a document: `fingerprint`, and the frame."""
        ...

    def encode(self, text: bytes | str) -> Integer[np.ndarray, " n"]:
        """Returns the ids of `text`."""
        ...

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[Integer[np.ndarray, " _"]]:
        """Returns the ids of each text, on several cores where the tokeniser can."""
        ...

    def encode_around(self, before: str, inner: str, after: str) -> tuple[Ids, Ids, Ids]:
        """Returns the ids of one text, before + inner + after, cut in three.

        An id that holds something of `inner` counts to it, whatever else it holds: ids of parts
        that are encoded by themselves are others.
        """
        ...

    def encode_parts(self, parts: Iterable[bytes | str]) -> Iterator[Ids]:
        """Yields the ids of one text that comes in parts: those that it has as a whole."""
        ...

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns the text of `ids`, special ids left out."""
        ...

    def within(self, vocab_size: int) -> "Tokenizer":
        """Returns it for a model of `vocab_size` ids, at least `text_size`: gives none beyond."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Bytes are their own ids; mask and padding follow them."""

    vocab_size: int = 258
    mask_id: int = 256
    pad_id: int = 257
    frame: Frame = NO_FRAME
    byte_level: bool = True

    @property
    def text_size(self) -> int:
        """All ids: the special ones are a model's that takes bytes, too."""
        return self.vocab_size

    @property
    def regular_ids(self) -> Int64[np.ndarray, " regular"]:
        """The 256 bytes."""
        return np.arange(256)

    @property
    def fingerprint(self) -> str:
        """Of the name: there is nothing else to know."""
        return digest(b"bytes")

    @property
    def document_identity(self) -> list[Any]:
        """The fingerprint, and what is put around the bytes, if anything is."""
        return _identity(self.fingerprint, self.frame, None)

    def encode(self, text: bytes | str) -> UInt16[np.ndarray, " n"]:
        """Returns the bytes of `text` (a str's in UTF-8), one id a byte."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[UInt16[np.ndarray, " _"]]:
        """Returns the bytes of each text."""
        return [self.encode(text) for text in texts]

    def encode_around(self, before: str, inner: str, after: str) -> tuple[Ids, Ids, Ids]:
        """Returns the bytes of each."""
        return self.encode(before), self.encode(inner), self.encode(after)

    def encode_parts(self, parts: Iterable[bytes | str]) -> Iterator[UInt16[np.ndarray, " _"]]:
        """Yields the bytes of each part."""
        return map(self.encode, parts)

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns `ids` read as UTF-8: mask and padding left out, broken characters as U+FFFD."""
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def within(self, vocab_size: int) -> "ByteTokenizer":
        """Returns itself."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyTokenizer:
    """A tokeniser of Hugging Face's `tokenizers` library.

    Text is text: `encode` puts nothing around it, and what spells a special token in it is read as
    any other text. Bytes are read as UTF-8, broken ones as U+FFFD.

    Attributes:
      library: the library's own object; it runs outside the GIL, on all cores.
      regular_ids: the ids that text is made of, ascending.
      fingerprint: 12 hex digits of a hash of the file it was read from.
      mask_id: the mask's id, if there is one.
      pad_id: the padding's id; where the vocabulary has none, the end's, or else 0.
      frame: what surrounds a text.
      customary_end: the end of a document that goes without saying, by `EOS_TOKENS`.
      limit: ids of the model, see `within`; None for any.
    """

    library: tokenizers.Tokenizer
    regular_ids: Int64[np.ndarray, " regular"]
    fingerprint: str
    mask_id: int | None
    pad_id: int
    frame: Frame = NO_FRAME
    customary_end: int | None = None
    limit: int | None = None
    byte_level: bool = False

    @property
    def vocab_size(self) -> int:
        """The highest id plus 1: vocabularies may have holes."""
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        size = max(*vocabulary.values(), self.frame.highest) + 1
        return size if self.limit is None else min(size, self.limit)

    @property
    def text_size(self) -> int:
        """Without tokens that were added behind the vocabulary, such as a padding."""
        of_text = self.library.get_vocab(with_added_tokens=False).values()
        return max(*of_text, self.frame.highest, 0) + 1

    @property
    def document_identity(self) -> list[Any]:
        """The fingerprint, the frame where it is not the customary one, and a limit that counts."""
        whole = self.limit is None or dataclasses.replace(self, limit=None).vocab_size <= self.limit
        own = _identity(self.fingerprint, self.frame, self.customary_end)
        return own if whole else [*own, f"below {self.limit}"]

    def encode(self, text: bytes | str) -> Int64[np.ndarray, " n"]:
        """Returns the ids of `text`."""
        return self.encode_batch([text])[0]

    def encode_with_special(self, text: str) -> Int64[np.ndarray, " n"]:
        """Returns the ids of `text`, in which what spells a special token is that token."""
        self.library.encode_special_tokens = False
        try:
            return self._ids_of(self.library.encode(text, add_special_tokens=False))
        finally:
            self.library.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[Int64[np.ndarray, " _"]]:
        """Returns the ids of each text."""
        decoded = [t if isinstance(t, str) else t.decode(errors="replace") for t in texts]
        encodings = self.library.encode_batch_fast(decoded, add_special_tokens=False)
        return [self._ids_of(encoding) for encoding in encodings]

    def encode_around(self, before: str, inner: str, after: str) -> tuple[Ids, Ids, Ids]:
        """Returns the ids of one text, cut before the first and after the last one of `inner`."""
        encoding = self.library.encode(before + inner + after, add_special_tokens=False)
        start, end = len(before), len(before) + len(inner)
        first = sum(last <= start for _, last in encoding.offsets)
        after_last = len(encoding) - sum(begin >= end for begin, _ in encoding.offsets)
        ids = self._ids_of(encoding)
        return ids[:first], ids[first : max(first, after_last)], ids[max(first, after_last) :]

    def encode_parts(self, parts: Iterable[bytes | str]) -> Iterator[Int64[np.ndarray, " _"]]:
        """Yields the ids of one text that comes in parts.

        A part is read with the end of the one before it. Where both give the same id to the same
        place, in the middle of what they share, the one goes on in the other: so a cut makes no
        word end, and no space begin.
        """
        held: Piece | None = None
        overlap = ""
        for group in in_groups(parts, PARTS_AT_ONCE):
            texts = [t if isinstance(t, str) else t.decode(errors="replace") for t in group]
            before = [overlap, *(text[-OVERLAP_CHARACTERS:] for text in texts)]
            overlap = before.pop()
            read = [a + b for a, b in zip(before, texts, strict=True)]
            encodings = self.library.encode_batch(read, add_special_tokens=False)
            for shared, text, encoding in zip(before, texts, encodings, strict=True):
                piece = Piece(self._ids_of(encoding), encoding.offsets, len(shared) + len(text))
                if held is not None:
                    end, start = meet(held, piece, len(shared))
                    yield held.ids[:end]
                    piece = piece._replace(ids=piece.ids[start:], places=piece.places[start:])
                held = piece
        if held is not None:
            yield held.ids

    def _ids_of(self, encoding: tokenizers.Encoding) -> Int64[np.ndarray, " _"]:
        ids = np.array(encoding.ids, np.int64)
        if self.limit is not None and len(ids) and (highest := int(ids.max())) >= self.limit:
            raise UserError(
                f"the text holds {self.library.id_to_token(highest)!r}, which is token {highest}, "
                f"and the model has {self.limit} tokens"
            )
        return ids

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns the text of the regular ones among `ids`."""
        regular = ids[np.isin(ids, self.regular_ids)]
        return self.library.decode(regular.tolist(), skip_special_tokens=True)

    def within(self, vocab_size: int) -> "VocabularyTokenizer":
        """Returns it for a model of `vocab_size` ids: a text that yields one beyond is refused."""
        if vocab_size >= self.vocab_size:
            return self
        end = self.frame.end
        pad = self.pad_id if self.pad_id < vocab_size else 0 if end is None else end
        mask = self.mask_id
        return dataclasses.replace(
            self,
            regular_ids=self.regular_ids[self.regular_ids < vocab_size],
            mask_id=None if mask is None or mask >= vocab_size else mask,
            pad_id=pad,
            limit=vocab_size,
        )


def _identity(fingerprint: str, frame: Frame, usual: int | None) -> list[Any]:
    """Of documents; a frame that is the customary one goes without saying."""
    around = (frame.start, frame.end)
    return [fingerprint] if around == ((), usual) else [fingerprint, list(frame.start), frame.end]


def digest(content: bytes) -> str:
    """Of what makes a tokeniser, short."""
    return hashlib.sha256(content).hexdigest()[:12]
