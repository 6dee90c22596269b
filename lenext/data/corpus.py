"""A dataset's split as tokens, mapped from disk, its documents end to end."""

import dataclasses
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.brought import TOKENS
from lenext.data.datasets import open_texts
from lenext.data.token_cache import cached_tokens
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of one split, tokenised, sorted by name (those of "tfds:NAME" by place).

    Attributes:
      tokens: all ids, documents end to end.
      offsets: D + 1 of them for D documents; document i is tokens[offsets[i]:offsets[i + 1]].
      names: one a document.
      fingerprint: hash of the data that the dataset was made from.
      name: the dataset's.
      split: "train" or "validation", "test" where the dataset has one, or "all" of text_files.
      notes: what a user should know of the files that it was made from.
    """

    tokens: Integer[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " borders"]
    names: Sequence[str]
    fingerprint: str
    name: str
    split: str
    notes: Sequence[str] = ()

    @property
    def lengths(self) -> Int64[np.ndarray, " documents"]:
        """Tokens in each document."""
        return np.diff(self.offsets)

    def document(self, index: int | np.integer) -> Integer[np.ndarray, " n"]:
        """Returns the tokens of document `index`, a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def require_document(
        self, length: int, purpose: str, *, lookahead: int = 0, advice: str = ""
    ) -> None:
        """Checks that crops of `length` + `lookahead` tokens can be cut from some document.

        Args:
          length: tokens that a model sees.
          purpose: "training" or "evaluation": whose length it is.
          lookahead: tokens after them that are only predicted.
          advice: ends the message, after a semicolon.

        Raises:
          UserError: `length` is below 2 or no document is that long.
        """
        if length < 2:
            raise UserError(f"{purpose} length must be at least 2, not {length}")
        longest = int(np.argmax(self.lengths))
        if self.lengths[longest] < length + lookahead:
            wanted = f" with {lookahead} more to predict" if lookahead else ""
            raise UserError(
                f"{purpose} length {length}: no document in split {self.split!r} of {self.name} is "
                f"that long{wanted}; the longest, {self.names[longest]}, has "
                f"{self.lengths[longest]} tokens" + (f"; {advice}" if advice else "")
            )

    def describe(self) -> dict[str, str | int]:
        """Returns what a result has to say about its data."""
        return {
            "dataset": self.name,
            "split": self.split,
            "documents": len(self.names),
            "tokens": len(self.tokens),
            "fingerprint": self.fingerprint,
            "python": platform.python_version(),
        }


def load_corpus(
    dataset: str,
    split: str,
    tokenizer: Tokenizer,
    data_dir: str | Path | None = None,
    *,
    files: str = "",
    field: str = "text",
) -> Corpus:
    """Prepares `dataset` if need be, tokenises one split of it if need be, and maps it into memory.

    Both are done once and kept in `data_dir`, by fingerprints of the data and of the tokeniser, so
    that what is found there is never stale. Several processes may do so at once. Of text_files,
    documents beyond a mebibyte are tokenised in parts, which changes none of their ids.

    Args:
      dataset: a name in `DATASETS`, or "tfds:NAME" or "tfds:NAME/CONFIG" for any dataset of TFDS's
        with a text; its documents keep its order, and are named by it.
      split: "train" or "validation", or another that the dataset has. Where there is a test and
        no validation, test stands for it; of a TFDS dataset that has neither, the last tenth of
        its train does. Of text_files also "all", each document once and whole.
      tokenizer: turns each document into ids; its frame surrounds those of each.
      data_dir: where prepared datasets are kept; None is TFDS's own choice, TFDS_DATA_DIR or
        ~/tensorflow_datasets; of one in a bucket, see `lenext.data.brought`.
      files: for "text_files", which: folders, files and globs, separated by commas.
      field: the feature of a TFDS dataset, or key of the .jsonl files, that holds the text.

    Raises:
      UserError: unknown dataset, split or field; files that are missing, empty or not what they
        should be; or a `data_dir` that has to be written to and cannot.
    """
    texts = open_texts(dataset, split, data_dir, files, field)
    identity = [dataset, split, texts.full_name, texts.fingerprint]
    kept = cached_tokens(texts.root / TOKENS, identity, texts.read, tokenizer)
    return Corpus(
        tokens=kept.tokens,
        offsets=kept.offsets,
        names=kept.names,
        fingerprint=texts.fingerprint,
        name=dataset,
        split=split,
        notes=texts.notes(tokenizer.byte_level),
    )


def summary(corpora: Iterable[Corpus]) -> str:
    """One line on what was loaded: each split's documents, tokens and longest document, and notes.

    Args:
      corpora: splits of one dataset, at least one.
    """
    corpora = list(corpora)
    parts = []
    for corpus in corpora:
        count, longest = len(corpus.names), int(np.argmax(corpus.lengths))
        tokens, name = f"{len(corpus.tokens):,} tokens", corpus.names[longest]
        if count == 1:
            parts.append(f"{corpus.split} {tokens}, all of them from one document ({name})")
        else:
            most = f"the longest {corpus.lengths[longest]:,} ({name})"
            parts.append(f"{corpus.split} {count:,} documents of {tokens}, {most}")
    return f"data: {corpora[0].name}; " + "; ".join([*parts, *corpora[0].notes])


def open_split(data: Any, split: str, tokenizer: Tokenizer) -> Corpus:
    """One split of what the config's section `data` says; see `load_corpus`."""
    return load_corpus(
        data.dataset, split, tokenizer, data.data_dir or None, files=data.files, field=data.field
    )
