"""The tokeniser that lies beside a folder's weights."""

import json
import sys
from pathlib import Path

import tokenizers

from lenext.data import get_tokenizer
from lenext.errors import UserError

JSON, VOCABULARY = "tokenizer.json", "vocab.txt"
TOKENIZERS = (JSON, VOCABULARY)
BYTE_LEVEL = ("vocab.json", "merges.txt")


def copy_tokenizer(source: Path, target: Path, vocab_size: int) -> str:
    """Copies a folder's tokeniser file.

    Args:
      source: the folder.
      target: where to.
      vocab_size: of the model.

    Returns:
      The file's name in `target`; "" where there is none.

    Raises:
      UserError: it cannot be read, or has more ids than the model.
    """
    if (source / JSON).is_file():
        name = JSON
        (target / name).write_bytes((source / JSON).read_bytes())
    elif (source / VOCABULARY).is_file():
        name = VOCABULARY
        (target / name).write_bytes((source / VOCABULARY).read_bytes())
        if json.loads((source / "config.json").read_text()).get("model_type") == "roformer":
            print(
                f"warning: {source / VOCABULARY} is read as BERT's WordPiece; RoFormer's own "
                "tokeniser cuts Chinese into words before, so that ids may differ",
                file=sys.stderr,
            )
    elif _is_gpt2(source):
        name = JSON
        _write_byte_level(source, target / JSON)
    else:
        return ""
    found = get_tokenizer(str(target / name))
    if found.vocab_size > vocab_size:
        raise UserError(
            f"{source / name}: has ids up to {found.vocab_size - 1}, and the model has "
            f"{vocab_size} by config.json"
        )
    return name


def _is_gpt2(source: Path) -> bool:
    kind = json.loads((source / "config.json").read_text()).get("model_type")
    return kind == "gpt2" and all((source / name).is_file() for name in BYTE_LEVEL)


def _write_byte_level(source: Path, path: Path) -> None:
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
    library.save(str(path))
