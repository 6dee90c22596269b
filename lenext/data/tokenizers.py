"""Tokenisers: text to ids and back."""

import codecs
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int64, Integer, UInt16

from lenext.errors import UserError

# What vocabularies call these, in the order in which they are looked for.
EOS_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]")
MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>")
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
OTHER_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[BOS]", "<unk>", "<s>", "<bos>")
# Not regular in a BERT vocabulary, whether or not a text can spell them.
BERT_SPECIAL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused\d+)\]")


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
    def eos_id(self) -> int | None:
        """The id that ends a document; None where documents end without one."""
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

    def encode(self, text: bytes | str) -> Integer[np.ndarray, " n"]:
        """Returns the ids of `text`."""
        ...

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[Integer[np.ndarray, " _"]]:
        """Returns the ids of each text, on several cores where the tokeniser can."""
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
    eos_id: None = None
    byte_level: bool = True

    @property
    def regular_ids(self) -> Int64[np.ndarray, " regular"]:
        """The 256 bytes."""
        return np.arange(256)

    @property
    def fingerprint(self) -> str:
        """Of the name: there is nothing else to know."""
        return _digest(b"bytes")

    def encode(self, text: bytes | str) -> UInt16[np.ndarray, " n"]:
        """Returns the bytes of `text` (a str's in UTF-8), one id a byte."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[UInt16[np.ndarray, " _"]]:
        """Returns the bytes of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns `ids` read as UTF-8: mask and padding left out, broken characters as U+FFFD."""
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyTokenizer:
    """A tokeniser of Hugging Face's `tokenizers` library, without its special tokens.

    Text is text: nothing is put around it, and what spells a special token in it is read as any
    other text. Bytes are read as UTF-8, broken ones as U+FFFD.

    Attributes:
      library: the library's own object; it runs outside the GIL, on all cores.
      regular_ids: the ids that text is made of, ascending.
      fingerprint: 12 hex digits of a hash of the file it was read from.
      mask_id: the mask's id, if there is one.
      eos_id: the id that ends a document, if there is one.
      pad_id: the padding's id; where the vocabulary has none, `eos_id`, or else 0.
    """

    library: tokenizers.Tokenizer
    regular_ids: Int64[np.ndarray, " regular"]
    fingerprint: str
    mask_id: int | None
    eos_id: int | None
    pad_id: int
    byte_level: bool = False

    @property
    def vocab_size(self) -> int:
        """The highest id plus 1: vocabularies may have holes."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: bytes | str) -> Int64[np.ndarray, " n"]:
        """Returns the ids of `text`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[bytes | str]) -> list[Int64[np.ndarray, " _"]]:
        """Returns the ids of each text."""
        decoded = [t if isinstance(t, str) else t.decode(errors="replace") for t in texts]
        encodings = self.library.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Returns the text of the regular ones among `ids`."""
        regular = ids[np.isin(ids, self.regular_ids)]
        return self.library.decode(regular.tolist(), skip_special_tokens=True)


def get_tokenizer(name: str) -> Tokenizer:
    """Returns a tokeniser.

    Args:
      name: "bytes"; the path of a file that Hugging Face's `tokenizers` saved (*.json); or the path
        of a BERT vocabulary, one token a line (*.txt), which is read as lower-casing WordPiece.

    Raises:
      UserError: there is none of that name, or the file is missing or not what it should be.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name.endswith(".json"):
        return _read_json(Path(name))
    if name.endswith(".txt"):
        return _read_bert_vocabulary(Path(name))
    said = f"unknown tokenizer {name!r}" if name else "no tokenizer is named, and the run has none"
    raise UserError(
        f"{said}; choose from: bytes, the path of a tokenizer.json, the path of a BERT vocab.txt"
    )


def _read_json(path: Path) -> VocabularyTokenizer:
    """A file of Hugging Face's `tokenizers`.

    Special tokens that its added tokens declare, and those of the customary names, are not regular.
    """
    content = _read(path)
    right = "should be a file that Hugging Face's tokenizers saved (tokenizer.json)"
    try:
        json.loads(content)
        library = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer {path}: {right}: {reason}") from None
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UserError(f"tokenizer {path}: {right}, and its vocabulary is empty")
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # as the text that they are
    added = library.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    special |= {
        vocabulary[token]
        for token in (*EOS_TOKENS, *MASK_TOKENS, *PAD_TOKENS, *OTHER_SPECIAL)
        if token in vocabulary
    }
    eos_id = _first(EOS_TOKENS, vocabulary)
    return _make(library, set(vocabulary.values()) - special, b"json" + content, eos_id)


def _read_bert_vocabulary(path: Path) -> VocabularyTokenizer:
    """WordPiece as of BERT's uncased models (Devlin et al. 2019), and GAU-α's."""
    content = _read(path)
    right = "should be a BERT vocabulary, one token a line"
    try:
        # Not splitlines(): a vocabulary may hold U+2028 and its like as tokens.
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {path}: {right}: {error}") from None
    vocabulary = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    if "[UNK]" not in vocabulary:
        raise UserError(f"tokenizer {path}: {right}, and [UNK] is not among them")
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    regular = [i for token, i in vocabulary.items() if not BERT_SPECIAL.fullmatch(token)]
    if not regular:
        raise UserError(f"tokenizer {path}: {right}, and all of its tokens are special ones")
    return _make(library, regular, b"bert" + content, eos_id=None)


def _make(
    library: tokenizers.Tokenizer, regular: Iterable[int], identity: bytes, eos_id: int | None
) -> VocabularyTokenizer:
    vocabulary = library.get_vocab(with_added_tokens=True)
    pad_id = _first(PAD_TOKENS, vocabulary)
    if pad_id is None:
        pad_id = 0 if eos_id is None else eos_id
    return VocabularyTokenizer(
        library=library,
        regular_ids=np.array(sorted(regular), np.int64),
        fingerprint=_digest(identity),
        mask_id=_first(MASK_TOKENS, vocabulary),
        eos_id=eos_id,
        pad_id=pad_id,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from None


def _first(tokens: Iterable[str], vocabulary: dict[str, int]) -> int | None:
    return next((vocabulary[token] for token in tokens if token in vocabulary), None)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
