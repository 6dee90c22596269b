"""Tokenisers: text to ids and back."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt16

from lenext.errors import UserError


@runtime_checkable
class Tokenizer(Protocol):
    """What the pipelines need of a tokeniser."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def mask_id(self) -> int:
        """The id that stands for a masked token."""
        ...

    @property
    def pad_id(self) -> int:
        """The id that fills a row up."""
        ...

    @property
    def num_regular(self) -> int:
        """Ids 0 … num_regular − 1 are the ones a random replacement is drawn from."""
        ...

    def encode(self, text: bytes | str) -> Integer[np.ndarray, " n"]:
        """Returns the ids of `text`."""
        ...

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns the text of `ids`, special ids left out."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Bytes are their own ids; mask and padding follow them."""

    vocab_size: int = 258
    mask_id: int = 256
    pad_id: int = 257
    num_regular: int = 256
    byte_level: bool = True
    eos_id: None = None

    def encode(self, text: bytes | str) -> UInt16[np.ndarray, " n"]:
        """Returns the bytes of `text` (a str's in UTF-8), one id a byte."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns `ids` read as UTF-8: mask and padding left out, broken characters as U+FFFD."""
        regular = ids[ids < self.num_regular].astype(np.uint8)
        return regular.tobytes().decode(errors="replace")


TOKENIZERS = {"bytes": ByteTokenizer}


def get_tokenizer(name: str) -> Tokenizer:
    """Returns the tokeniser called `name`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in TOKENIZERS:
        raise UserError(f"unknown tokenizer {name!r}; choose from: {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]()
