"""A dataset's split as tokens in memory, its documents end to end."""

import dataclasses
import platform
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.prepare import open_builder
from lenext.data.stdlib_source import StdlibSource
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

# TFDS builders whose examples have `path` and `text`, and which know their data's `fingerprint`.
DATASETS = {"stdlib_source": StdlibSource}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of one split, tokenised, sorted by name.

    Attributes:
      tokens: all ids, documents end to end.
      offsets: D + 1 of them for D documents; document i is tokens[offsets[i]:offsets[i + 1]].
      names: one a document.
      fingerprint: hash of the data that the dataset was made from.
      name: the dataset's.
      split: "train" or "validation".
    """

    tokens: Integer[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " borders"]
    names: list[str]
    fingerprint: str
    name: str
    split: str

    @property
    def lengths(self) -> Int64[np.ndarray, " documents"]:
        """Tokens in each document."""
        return np.diff(self.offsets)

    def document(self, index: int | np.integer) -> Integer[np.ndarray, " n"]:
        """Returns the tokens of document `index`, a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def require_document(self, length: int, purpose: str) -> None:
        """Checks that crops of `length` tokens can be cut from some document.

        Raises:
          UserError: `length` is below 2 or no document is that long; `purpose` ("training",
            "evaluation") says whose length it is.
        """
        if length < 2:
            raise UserError(f"{purpose} length must be at least 2, not {length}")
        longest = int(np.argmax(self.lengths))
        if self.lengths[longest] < length:
            raise UserError(
                f"{purpose} length {length}: no document in split {self.split!r} of {self.name} is "
                f"that long; the longest, {self.names[longest]}, has {self.lengths[longest]} tokens"
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
    files="",
    field="text",
) -> Corpus:
    """Prepares `dataset` if need be, reads one split and tokenises it.

    Args:
      dataset: a name in `DATASETS`.
      split: "train" or "validation".
      tokenizer: turns each document's bytes into ids.
      data_dir: where prepared datasets are kept; None is TFDS's own choice, TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      UserError: unknown dataset or split, or a `data_dir` that cannot be written to.
    """
    if dataset not in DATASETS:
        raise UserError(f"unknown dataset {dataset!r}; choose from: {', '.join(DATASETS)}")
    builder = open_builder(DATASETS[dataset], data_dir)
    if split not in builder.info.splits:
        splits = ", ".join(sorted(builder.info.splits))
        raise UserError(f"unknown split {split!r} of {dataset}; choose from: {splits}")
    source = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]: its decorator
    examples = sorted(source, key=lambda example: example["path"])
    documents = [tokenizer.encode(example["text"]) for example in examples]
    return Corpus(
        tokens=np.concatenate(documents),
        offsets=np.cumsum([0, *map(len, documents)], dtype=np.int64),
        names=[example["path"].decode() for example in examples],
        fingerprint=builder.fingerprint,
        name=dataset,
        split=split,
    )
