"""The tokeniser that a GGUF file's metadata holds, as a tokenizer.json."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lenext.errors import UserError
from lenext.importing.gguf_file import GGUF
from lenext.importing.tokenizer import GENERATION, JSON
from lenext.workdirs.chat import SETTINGS

# Kinds of tokens, by their number.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

SPACE = "▁"
"""What SentencePiece makes of a space."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


class PreTokenizer(NamedTuple):
    """How byte-level BPE cuts text before its merges.

    Attributes:
      cuts: what does.
      composed: whether characters are composed (NFC) before.
      whole_words: whether a piece that is a token is taken as it is, whatever merges there are.
      starts: whether texts start with the start token where the file does not say.
    """

    cuts: Callable[[], list[Any]]
    composed: bool = False
    whole_words: bool = False
    starts: bool = False


def _by_pattern(digits: str) -> Callable[[], list[Any]]:
    """Llama 3's pattern, which Qwen2 has with other digits."""
    pattern = (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return lambda: [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _gpt2() -> list[Any]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False)]


def _smollm() -> list[Any]:
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_gpt2),
    "smollm": PreTokenizer(_smollm),
    "llama-bpe": PreTokenizer(_by_pattern(r"\p{N}{1,3}"), whole_words=True, starts=True),
    "qwen2": PreTokenizer(_by_pattern(r"\p{N}"), composed=True),
}
"""By "tokenizer.ggml.pre"."""

ENDS = ("eos", "eot", "eom")
"""What ends a text, a turn, a message: generation stops at each."""


class _Metadata:
    """What a file says below "tokenizer.ggml.", each of its type."""

    def __init__(self, gguf: GGUF):
        self.path, self.content = gguf.path, gguf.metadata

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A value; where it is missing, the default.

        Raises:
          UserError: it is of another type.
        """
        key = f"tokenizer.ggml.{name}"
        value = self.content.get(key, default)
        if value is not default and type(value) is not kind:
            said = {str: "text", bool: "true or false", int: "a whole number"}[kind]
            raise UserError(f"{self.path}: {key}={repr(value)[:60]}: should be {said}")
        return value

    def items(self, name: str, kind: type, count: int | None = None) -> list[Any]:
        """A list, empty where it is missing.

        Raises:
          UserError: it is none, or not of `count` values.
        """
        key = f"tokenizer.ggml.{name}"
        value = self.content.get(key, [])
        if not isinstance(value, list) or not all(type(x) is kind for x in value):
            said = {str: "text", int: "whole numbers", float: "numbers"}[kind]
            raise UserError(f"{self.path}: {key}: should be a list of {said}")
        if value and count is not None and len(value) != count:
            raise UserError(
                f"{self.path}: {key} has {len(value)} values, and there are {count} tokens"
            )
        return value

    def token_id(self, name: str, vocab_size: int) -> int | None:
        """The id of a special token, if it has one.

        Raises:
          UserError: it is no token.
        """
        found = self.get(f"{name}_token_id", int)
        if found is not None and not 0 <= found < vocab_size:
            raise UserError(
                f"{self.path}: tokenizer.ggml.{name}_token_id={found}: should be below "
                f"{vocab_size}, the rows of the embedding"
            )
        return found

    def around(self, vocab_size: int) -> tuple[int | None, int | None]:
        """The ids that are put before and after a text, each if one is."""
        model, pre = self.get("model", str, "none"), self.get("pre", str, "")
        known = PRE_TOKENIZERS.get(pre)
        starts = model == "llama" or (known is not None and known.starts)
        adds = self.get("add_bos_token", bool, starts), self.get("add_eos_token", bool, False)
        ids = self.token_id("bos", vocab_size), self.token_id("eos", vocab_size)
        return tuple(i if add else None for i, add in zip(ids, adds, strict=True))  # type: ignore


def write_settings(gguf: GGUF, vocab_size: int, folder: Path) -> dict[str, Any]:
    """Writes what a file says of special tokens and chats, under the names of a folder's files.

    Returns:
      What its config.json says of it.

    Raises:
      UserError: a value is of the wrong type, or an id is none of the model's.
    """
    said = _Metadata(gguf)
    tokens = said.items("tokens", str)
    names = ("bos", "eos", "unknown", "padding", "mask")
    ids = {name: said.token_id(name, vocab_size) for name in names}
    ends = list(dict.fromkeys(i for n in ENDS if (i := said.token_id(n, vocab_size)) is not None))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for key, name in zip(("bos", "eos", "unk", "pad", "mask"), names, strict=True):
        i = ids[name]
        if i is not None and i < len(tokens):
            settings[f"{key}_token"] = tokens[i]
    template = gguf.metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise UserError(f"{gguf.path}: tokenizer.chat_template: should be text")
        settings["chat_template"] = template
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    config = {"bos_token_id": ids["bos"], "eos_token_id": ends if len(ends) > 1 else ids["eos"]}
    if len(ends) > 1:
        (folder / GENERATION).write_text(json.dumps(config, indent=2) + "\n")
    return config


def write_tokenizer(gguf: GGUF, vocab_size: int, folder: Path) -> None:
    """Writes tokenizer.json; nothing where a file has no tokeniser.

    Raises:
      UserError: the tokeniser is of a kind that is not known, has another number of tokens than
        the model, or what it says does not fit together.
    """
    said = _Metadata(gguf)
    kind = said.get("model", str, "none")
    if kind == "none":
        return
    if kind not in MAKERS:
        raise UserError(
            f"{gguf.path}: tokenizer.ggml.model={kind!r} is not supported, only "
            f"{', '.join(MAKERS)}; --tokenizer=FILE takes another one, and --tokenizer=none none"
        )
    tokens = said.items("tokens", str)
    if len(tokens) != vocab_size:
        raise UserError(
            f"{gguf.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, and the embedding "
            f"{vocab_size} rows"
        )
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise UserError(f"{gguf.path}: tokenizer.ggml.tokens has {twice!r} twice")
    types = said.items("token_type", int, len(tokens)) or [1] * len(tokens)
    try:
        library = MAKERS[kind](said, tokens, types)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(f"{gguf.path}: its tokeniser does not fit together ({reason})") from None
    # In text they are found before anything is cut, as they are spelt.
    library.add_tokens(
        [
            tokenizers.AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if token and (kind in (CONTROL, USER_DEFINED) or kind == UNKNOWN)
        ]
    )
    before, after = said.around(vocab_size)
    if before is not None or after is not None:
        around = [None if before is None else tokens[before], "$A",
                  None if after is None else tokens[after]]  # fmt: skip
        library.post_processor = processors.TemplateProcessing(
            single=[part for part in around if part],
            special_tokens=[(tokens[i], i) for i in {before, after} - {None}],  # type: ignore
        )
    (folder / JSON).write_text(library.to_str(), encoding="utf-8")


def _byte_level(said: _Metadata, tokens: Sequence[str], types: Sequence[int]) -> Any:
    """GPT-2's kind: merges of bytes, which are written as characters."""
    name = said.get("pre", str, "gpt-2")
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"{said.path}: tokenizer.ggml.pre={name!r} is not supported, only "
            f"{', '.join(PRE_TOKENIZERS)}; --tokenizer=FILE takes another one, and "
            "--tokenizer=none none"
        )
    pre = PRE_TOKENIZERS[name]
    merges = []
    for merge in said.items("merges", str):
        left, space, right = merge[1:].partition(" ")  # a part is never empty
        if not space:
            raise UserError(f"{said.path}: tokenizer.ggml.merges: {merge!r}: should be two parts")
        merges.append((merge[:1] + left, right))
    library = tokenizers.Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pre.whole_words
        )
    )
    if pre.composed:
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(pre.cuts())
    library.decoder = decoders.ByteLevel()
    return library


def _sentencepiece_bpe(said: _Metadata, tokens: Sequence[str], types: Sequence[int]) -> Any:
    """SentencePiece's BPE: two neighbours are joined whose whole has the best score."""
    ids = {token: i for i, token in enumerate(tokens)}
    scores = said.items("scores", float, len(tokens))
    if not scores:
        raise UserError(f"{said.path}: tokenizer.ggml.scores is missing")
    # Of those alone that text is made of: no merge makes "<s>", or a byte's "<0x0A>".
    regular = [i for i, kind in enumerate(types) if kind not in (UNKNOWN, CONTROL, BYTE)]
    parts = {tokens[i] for i in regular}
    merges = []
    for i in sorted(regular, key=lambda i: -scores[i]):
        token = tokens[i]
        cuts = ((token[:n], token[n:]) for n in range(1, len(token)))
        merges += sorted(
            (cut for cut in cuts if cut[0] in parts and cut[1] in parts),
            key=lambda cut: (ids[cut[0]], ids[cut[1]]),
        )
    unknown = said.token_id("unknown", len(tokens))
    library = tokenizers.Tokenizer(
        models.BPE(
            ids, merges, unk_token=None if unknown is None else tokens[unknown], fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )  # fmt: skip
    prefix = said.get("add_space_prefix", bool, True)
    library.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return library


def _sentencepiece_unigram(said: _Metadata, tokens: Sequence[str], types: Sequence[int]) -> Any:
    """SentencePiece's unigrams: text is cut so that the sum of scores is the largest."""
    scores = said.items("scores", float, len(tokens))
    if not scores:
        raise UserError(f"{said.path}: tokenizer.ggml.scores is missing")
    library = tokenizers.Tokenizer(
        models.Unigram(
            list(zip(tokens, scores, strict=True)), said.token_id("unknown", len(tokens)),
            BYTE in types,
        )
    )  # fmt: skip
    table = bytes(x % 256 for x in said.items("precompiled_charsmap", int))
    steps: list[Any] = [normalizers.Precompiled(table)] if table else []
    if said.get("remove_extra_whitespaces", bool, True):
        steps.append(normalizers.Strip())
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if steps:
        library.normalizer = normalizers.Sequence(steps)
    scheme = "always" if said.get("add_space_prefix", bool, True) else "never"
    spaces = {"replacement": SPACE, "prepend_scheme": scheme}
    library.pre_tokenizer = pre_tokenizers.Metaspace(**spaces, split=False)
    library.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(**spaces, split=False)]
    )
    return library


MAKERS: dict[str, Callable[[_Metadata, Sequence[str], Sequence[int]], Any]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
"""By "tokenizer.ggml.model"."""
