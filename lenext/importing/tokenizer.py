"""The tokeniser that lies beside a folder's weights, and what the folder says of it."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from lenext.data import VocabularyTokenizer, get_tokenizer, read_tokenizer_json
from lenext.data.frames import AUTO, NONE, surrounding_ids
from lenext.data.tokenizer_files import library_errors
from lenext.errors import UserError
from lenext.files import read_json, read_object
from lenext.workdirs.chat import SETTINGS, SPECIAL, TEMPLATES, special_token
from lenext.workdirs.workdir import TOKENIZERS

JSON, VOCABULARY = TOKENIZERS
BYTE_LEVEL = ("vocab.json", "merges.txt")
GENERATION = "generation_config.json"
KEPT = (
    GENERATION, SETTINGS, SPECIAL, *BYTE_LEVEL, "added_tokens.json", *TEMPLATES, "tokenizer.model",
    "spiece.model",
)  # fmt: skip
"""Files that come along, and go out as they came: of the tokeniser, chats, and generation."""


class Found(NamedTuple):
    """The tokeniser of a folder.

    Attributes:
      name: of its file; "" where there is none.
      content: of that.
      eos: for `config.data.eos`: the ids that the folder's files name as ends, with commas.
    """

    name: str
    content: bytes
    eos: str


def read_tokenizer(source: Path, vocab_size: int, *, instead: str = "") -> Found:
    """A folder's tokeniser.

    Args:
      source: the folder.
      vocab_size: of the model.
      instead: a file to take in place of what lies there; "none" for none.

    Raises:
      UserError: a file of it cannot be read, or text has more ids than the model.
    """
    declared = [read_object(source / name) for name in (SETTINGS, SPECIAL)]
    name = next((name for name in TOKENIZERS if (source / name).is_file()), "")
    path = source / name
    if instead:
        path = Path(instead)
        named = {".json": JSON, ".txt": VOCABULARY, "": ""}
        if path.suffix not in named or (not path.suffix and instead != NONE):
            raise UserError(
                f"--tokenizer={instead}: should be a tokenizer.json, a vocabulary (.txt), or {NONE}"
            )
        name = named[path.suffix]
    content, found = b"", None
    if name:
        found = get_tokenizer(str(path), eos=NONE)
        content = path.read_bytes()
    elif (
        not instead
        and _kind(source) == "gpt2"
        and all((source / name).is_file() for name in BYTE_LEVEL)
    ):
        name = JSON
        content = _read_byte_level(source, declared).to_str().encode()
        path = source / BYTE_LEVEL[0]
        found = read_tokenizer_json(content, str(path), eos=NONE)
    if name == VOCABULARY and _kind(source) == "roformer":
        print(
            f"warning: {source / VOCABULARY} is read as BERT's WordPiece; RoFormer's own "
            "tokeniser cuts Chinese into words before, so that ids may differ",
            file=sys.stderr,
        )
    if found is not None and found.text_size > vocab_size:
        raise UserError(
            f"{path}: has ids up to {found.text_size - 1}, and the model has "
            f"{vocab_size} by config.json"
        )
    assert found is None or isinstance(found, VocabularyTokenizer)
    guessed = content if name == JSON else b""  # a BERT vocabulary has no customary end
    return Found(name, content, _ends(source, vocab_size, found, guessed, declared))


def _ends(
    source: Path,
    vocab_size: int,
    tokenizer: VocabularyTokenizer | None,
    content: bytes,
    declared: list[dict[str, Any]],
) -> str:
    """The ids at which a text ends, of which the first ends a document, for `config.data.eos`."""
    ids: list[int] = []
    if tokenizer is not None:
        ids += surrounding_ids(tokenizer.library)[1][:1]
        tokens = (special_token(settings, "eos_token") for settings in declared)
        ids += [i for token in tokens if (i := tokenizer.library.token_to_id(token)) is not None]
    config = read_object(source / "config.json")
    for path, found in (("config.json", config), (GENERATION, read_object(source / GENERATION))):
        ids += _read_ids(found, source / path)
    for i in dict.fromkeys(i for i in ids if i >= vocab_size):
        print(
            f"warning: {source}: token {i} is said to end a text, and the model has {vocab_size} "
            "tokens by config.json",
            file=sys.stderr,
        )
    known = list(dict.fromkeys(i for i in ids if i < vocab_size))
    if not known and not ids and "eos_token_id" not in config:
        if tokenizer is None:
            return AUTO
        if content:  # a guess, which is told
            frame = read_tokenizer_json(content, str(source / JSON)).frame
            known = [i for i in frame.stops if i < vocab_size]
    return ",".join(map(str, known)) or NONE


def _read_ids(content: Mapping[str, Any], path: Path) -> Iterator[int]:
    value = content.get("eos_token_id")
    for i in value if isinstance(value, list) else [] if value is None else [value]:
        if type(i) is not int or not 0 <= i < 2**31:
            shown = repr(value)[:60]
            raise UserError(
                f"{path}: eos_token_id={shown}: should be a token's id, or a list of ids"
            )
        yield i


def _kind(source: Path) -> str:
    return read_json(source / "config.json").get("model_type")


def _read_byte_level(source: Path, declared: list[dict[str, Any]]) -> tokenizers.Tokenizer:
    """GPT-2's older form, in two files, as one; what texts start with its settings say."""
    vocabulary, merges = (str(source / name) for name in BYTE_LEVEL)
    ids = read_object(source / BYTE_LEVEL[0]).values()
    # The library writes a vocabulary by going through all ids from 0 to the highest.
    room = (source / BYTE_LEVEL[0]).stat().st_size
    if not all(type(i) is int and 0 <= i < room for i in ids):
        raise UserError(f"{vocabulary}: should hold tokens and their ids, from 0 up")
    with library_errors(f"{vocabulary}, {merges}: should be a vocabulary and merges"):
        model = tokenizers.models.BPE.from_file(vocabulary, merges)
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    named = {
        key: next(
            filter(None, (special_token(settings, key) for settings in declared)), "<|endoftext|>"
        )
        for key in ("bos_token", "eos_token")
    }
    known = {key: token for key, token in named.items() if library.token_to_id(token) is not None}
    library.add_special_tokens(sorted({*known.values()}))
    added = {key: known[key] for key in known if declared[0].get(f"add_{key}") is True}
    if added:
        around = [added.get("bos_token"), "$A", added.get("eos_token")]
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=[part for part in around if part],
            special_tokens=[(token, library.token_to_id(token)) for token in {*added.values()}],
        )
    return library
