"""Tokenisers by name: bytes, a file of Hugging Face's `tokenizers`, or a BERT vocabulary."""

import codecs
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from lenext.buckets import AnyPath, as_path
from lenext.config import Config
from lenext.data.frames import (
    AUTO,
    CUSTOMARY,
    EOS_TOKENS,
    NONE,
    Frame,
    read_ids,
    surrounding_ids,
)
from lenext.data.tokenizers import ByteTokenizer, Tokenizer, VocabularyTokenizer, digest
from lenext.errors import UserError

# What vocabularies call these, in the order in which they are looked for.
MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>")
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
OTHER_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[BOS]", "<unk>", "<s>", "<bos>")
# Not regular in a BERT vocabulary, whether or not a text can spell them.
BERT_SPECIAL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused\d+)\]")


def get_tokenizer(name: str, *, bos: str = AUTO, eos: str = AUTO) -> Tokenizer:
    """Returns a tokeniser.

    Args:
      name: "bytes"; the path of a file that Hugging Face's `tokenizers` saved (*.json); or the path
        of a BERT vocabulary, one token a line (*.txt), which is read as lower-casing WordPiece.
      bos: what documents, crops and prompts start with. "auto": what the file's post-processor puts
        before a text, if anything; "none"; or tokens or their ids, with commas.
      eos: what a document ends with. "auto": what the post-processor puts after a text, or else the
        first of `EOS_TOKENS` that the vocabulary has, which is said on stderr; "customary": that
        one, whatever the post-processor does, as it was before there was a choice; "none"; or
        tokens or their ids, with commas: the first ends a document, and drawn text ends at any.

    Raises:
      UserError: there is none of that name, the file is missing or not what it should be, or it
        lacks a token that `bos` or `eos` names.
    """
    if name == "bytes":
        frame = _make_frame(None, {}, None, bos, eos, name)
        size = max(ByteTokenizer.vocab_size, frame.highest + 1)
        return ByteTokenizer(size, frame=frame)
    if name.endswith(".json"):
        return read_tokenizer_json(_read(as_path(name)), name, bos=bos, eos=eos)
    if name.endswith(".txt"):
        return _read_bert_vocabulary(as_path(name), bos, eos)
    said = f"unknown tokenizer {name!r}" if name else "no tokenizer is named, and the run has none"
    raise UserError(
        f"{said}; choose from: bytes, the path of a tokenizer.json, the path of a BERT vocab.txt"
    )


def open_tokenizer(config: Config, *, bos: str = "") -> Tokenizer:
    """Returns the tokeniser of a config's section `data`, for the ids that its model has.

    Args:
      config: of a run.
      bos: in place of `config.data.bos`.

    Raises:
      UserError: as `get_tokenizer`, or the model has fewer ids than text is made of.
    """
    data, size = config.data, config.model.vocab_size
    tokenizer = get_tokenizer(data.tokenizer, bos=bos or data.bos, eos=data.eos)
    if not size:
        return tokenizer
    if size < tokenizer.text_size:
        raise UserError(
            f"config.model.vocab_size={size}: should be at least {tokenizer.text_size}, the "
            f"vocabulary of the tokenizer {data.tokenizer}"
        )
    return tokenizer.within(size)


def read_tokenizer_json(
    content: bytes, name: str, *, bos: str = AUTO, eos: str = AUTO
) -> VocabularyTokenizer:
    """Returns the tokeniser of a file of Hugging Face's `tokenizers`.

    Special tokens that its added tokens declare, and those of the customary names, are not regular.

    Args:
      content: of the file.
      name: of it, for messages.
      bos: as `get_tokenizer`'s.
      eos: as `get_tokenizer`'s.

    Raises:
      UserError: as `get_tokenizer`.
    """
    right = "should be a file that Hugging Face's tokenizers saved (tokenizer.json)"
    with library_errors(f"tokenizer {name}: {right}"):
        json.loads(content)
        library = tokenizers.Tokenizer.from_buffer(content)
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UserError(f"tokenizer {name}: {right}, and its vocabulary is empty")
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
    usual = _first(EOS_TOKENS, vocabulary)
    frame = _make_frame(library, vocabulary, usual, bos, eos, name)
    regular = set(vocabulary.values()) - special
    return _make(library, regular, b"json" + content, frame, usual)


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Makes one line of what the library raises of a file: plain Exception, or a panic of Rust's.

    Raises:
      UserError: `what`, and why.
    """
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # for what a panic prints by itself
            os.dup2(nowhere.fileno(), 2)
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{what}: {reason}") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _read_bert_vocabulary(path: AnyPath, bos: str, eos: str) -> VocabularyTokenizer:
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
    frame = _make_frame(None, vocabulary, None, bos, eos, str(path))
    return _make(library, regular, b"bert" + content, frame, None)


def _make_frame(
    library: tokenizers.Tokenizer | None,
    vocabulary: dict[str, int],
    usual: int | None,
    bos: str,
    eos: str,
    name: str,
) -> Frame:
    """What surrounds a text; a library, if given, has a post-processor to ask."""
    with library_errors(f"tokenizer {name}: reads no text"):
        before, after = surrounding_ids(library) if library else ((), ())
    if bos == NONE:
        before = ()
    elif bos != AUTO:
        before = read_ids(bos, vocabulary, "config.data.bos")
    if eos == NONE:
        after = ()
    elif eos == CUSTOMARY or (eos == AUTO and not after):
        after = () if usual is None else (usual,)
        if after and eos == AUTO:
            token = next(token for token, i in vocabulary.items() if i == usual)
            print(
                f"warning: tokenizer {name}: does not say what ends a document; {token!r} does, by "
                "its name (config.data.eos)",
                file=sys.stderr,
            )
    elif eos != AUTO:
        after = read_ids(eos, vocabulary, "config.data.eos")
    return Frame(before, after[0] if after else None, after)


def _make(
    library: tokenizers.Tokenizer,
    regular: Iterable[int],
    identity: bytes,
    frame: Frame,
    usual: int | None,
) -> VocabularyTokenizer:
    vocabulary = library.get_vocab(with_added_tokens=True)
    pad_id = _first(PAD_TOKENS, vocabulary)
    if pad_id is None:
        pad_id = 0 if frame.end is None else frame.end
    return VocabularyTokenizer(
        library=library,
        regular_ids=np.array(sorted({*regular} - {*frame.start, *frame.stops}), np.int64),
        fingerprint=digest(identity),
        mask_id=_first(MASK_TOKENS, vocabulary),
        pad_id=pad_id,
        frame=frame,
        customary_end=usual,
    )


def _read(path: AnyPath) -> bytes:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from None


def _first(tokens: Iterable[str], vocabulary: dict[str, int]) -> int | None:
    return next((vocabulary[token] for token in tokens if token in vocabulary), None)
