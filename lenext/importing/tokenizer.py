"""The tokeniser that lies beside a folder's weights."""

import json
import sys
from pathlib import Path

import tokenizers

from lenext.data import get_tokenizer
from lenext.errors import UserError
from lenext.workdirs.workdir import TOKENIZERS

JSON, VOCABULARY = TOKENIZERS
BYTE_LEVEL = ("vocab.json", "merges.txt")


def read_tokenizer(source: Path, vocab_size: int) -> tuple[str, bytes]:
    """A folder's tokeniser file.

    Args:
      source: the folder.
      vocab_size: of the model.

    Returns:
      The file's name and content; ("", b"") where there is none.

    Raises:
      UserError: it cannot be read, or has more ids than the model.
    """
    name = next((name for name in TOKENIZERS if (source / name).is_file()), None)
    if name is not None:
        highest = get_tokenizer(str(source / name)).vocab_size
        content = (source / name).read_bytes()
    elif _kind(source) == "gpt2" and all((source / name).is_file() for name in BYTE_LEVEL):
        name, library = JSON, _read_byte_level(source)
        highest = library.get_vocab_size(with_added_tokens=True)
        content = library.to_str().encode()
    else:
        return "", b""
    if name == VOCABULARY and _kind(source) == "roformer":
        print(
            f"warning: {source / VOCABULARY} is read as BERT's WordPiece; RoFormer's own "
            "tokeniser cuts Chinese into words before, so that ids may differ",
            file=sys.stderr,
        )
    if highest > vocab_size:
        raise UserError(
            f"{source / name}: has ids up to {highest - 1}, and the model has {vocab_size} by "
            "config.json"
        )
    return name, content


def _kind(source: Path) -> str:
    return json.loads((source / "config.json").read_text()).get("model_type")


def _read_byte_level(source: Path) -> tokenizers.Tokenizer:
    """GPT-2's older form, in two files, as one."""
    vocabulary, merges = (str(source / name) for name in BYTE_LEVEL)
    try:
        model = tokenizers.models.BPE.from_file(vocabulary, merges)
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(
            f"{vocabulary}, {merges}: should be a vocabulary and merges ({reason})"
        ) from None
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    ends = [token for token in ("<|endoftext|>",) if library.token_to_id(token) is not None]
    library.add_special_tokens(ends)
    return library
