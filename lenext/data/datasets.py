"""Datasets by name: where a split's texts come from."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from lenext.data.brought import brought
from lenext.data.prepare import open_builder, open_named
from lenext.data.stdlib_packages import StdlibPackages
from lenext.data.stdlib_source import StdlibSource
from lenext.data.text_files import SPLITS, TextFiles
from lenext.data.token_cache import Text
from lenext.errors import UserError

# TFDS builders whose examples have `path` and `text`, and which know their data's `fingerprint`.
DATASETS = {
    "stdlib_source": StdlibSource,
    "stdlib_packages": StdlibPackages,
    "text_files": TextFiles,
}
NAMED = "tfds:"  # begins the name of any other TFDS dataset
ALL = "all"  # of text_files, the split that is all of its documents


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """One split of a prepared dataset.

    Attributes:
      read: yields (name, text) in the corpus's order; a document may be several texts.
      fingerprint: hash of the data that the dataset was made from.
      full_name: TFDS's name of it, with config and version.
      root: the folder that datasets are kept in.
      notes: what a user should know of the files, each a part of a line; takes whether bytes that
        are no UTF-8 are kept.
    """

    read: Callable[[], Iterator[Text]]
    fingerprint: str
    full_name: str
    root: Path
    notes: Callable[[bool], list[str]] = lambda _: []


def open_texts(
    dataset: str, split: str, data_dir: str | Path | None, files: str, field: str
) -> Texts:
    """Prepares a dataset if need be and opens one split; see `load_corpus`.

    Raises:
      UserError: as `load_corpus`.
    """
    if dataset not in DATASETS and not dataset.startswith(NAMED):
        choices = ", ".join([*DATASETS, f"{NAMED}NAME"])
        raise UserError(f"unknown dataset {dataset!r}; choose from: {choices}")
    if files and dataset != "text_files":
        raise UserError(
            f"dataset {dataset!r} takes no files ({files!r}): only text_files does; "
            "leave config.data.files empty"
        )
    data_dir = brought(data_dir, dataset.removeprefix(NAMED).partition("/")[0])
    if dataset.startswith(NAMED):
        return _open_named(dataset.removeprefix(NAMED), split, data_dir, field)
    make_builder = DATASETS[dataset]
    if dataset == "text_files":
        make_builder = functools.partial(TextFiles, files=files, field=field)
    builder = open_builder(make_builder, data_dir)
    splits = sorted(builder.info.splits)
    stored, _ = choose_split(dataset, split, splits)  # one is held out, so each is taken whole
    source = builder.as_data_source(split=stored)  # pyright: ignore[reportCallIssue]: its decorator

    def read() -> Iterator[Text]:
        places = range(len(source))
        # TFDS orders examples by a hash of its own, unless it was told not to; and splits are put
        # together end to end. Parts of one document stay in order.
        if not builder.info.disable_shuffling or split == ALL:
            places = sorted(places, key=lambda i: source[i]["path"])
        for example in map(source.__getitem__, places):
            yield example["path"].decode(), example["text"]

    root = _root(builder, data_dir)
    notes = builder.notes if isinstance(builder, TextFiles) else lambda _: []
    return Texts(read, builder.fingerprint, builder.info.full_name, root, notes)


def _open_named(name: str, split: str, data_dir: str | Path | None, field: str) -> Texts:
    if name in DATASETS:
        raise UserError(f"unknown dataset 'tfds:{name}'; say {name!r}")
    builder = open_named(name, data_dir)
    info: Any = builder.info  # TFDS's own types leave much open
    features = info.features
    texts = [key for key, kind in features.items() if isinstance(kind, tfds.features.Text)]
    if field not in texts:
        raise UserError(
            f"dataset 'tfds:{name}' has no text feature {field!r}; it has: "
            f"{', '.join(texts) or 'none'} (of all features: {', '.join(features)})"
        )
    stored, part = choose_split(f"tfds:{name}", split, list(info.splits))
    try:
        source = builder.as_data_source(split=stored)  # pyright: ignore[reportCallIssue]
    except NotImplementedError:  # for lack of random access
        raise UserError(
            f"dataset 'tfds:{name}' is prepared as {info.file_format.value} in "
            f"{builder.data_dir}, which has no random access; prepare it as array_record "
            "(--file_format=array_record), or in another data_dir"
        ) from None
    places = _places(len(source), part)
    if not places:
        raise UserError(
            f"dataset 'tfds:{name}': {len(source)} documents in {stored} are too few for a split "
            f"{split!r} of a tenth"
        )

    def read() -> Iterator[Text]:
        for i in places:
            if text := source[i][field]:
                yield f"{stored}:{i:09}", text

    sizes = {key: (part.shard_lengths, part.num_bytes) for key, part in info.splits.items()}
    identity = json.dumps([info.full_name, sizes or len(source), field], sort_keys=True)
    return Texts(
        read,
        hashlib.sha256(identity.encode()).hexdigest()[:12],
        info.full_name,
        _root(builder, data_dir),
    )


def choose_split(dataset: str, split: str, splits: list[str]) -> tuple[str, str]:
    """Chooses what stands for a split.

    A dataset's own split does. Where there is no validation, test does; where neither is, the last
    tenth of train does, and train is the rest. Of text_files, all of them are a split, too.

    Args:
      dataset: its name, for the message.
      split: the one that is wanted.
      splits: the dataset's own; empty if it does not say, as in TFDS's mocks.

    Returns:
      The name of the stored split, and the part of it: "all", "first" (nine tenths) or "last".

    Raises:
      UserError: nothing does.
    """
    own = dataset == "text_files"
    if split == ALL and own:
        return "+".join(name for name in SPLITS if name in splits), "all"
    whole = not splits or "validation" in splits or "test" in splits
    if split == "train" and "train" in splits and not whole:
        return "train", "first"
    if split in splits or not splits:
        return split, "all"
    if split == "validation" and "test" in splits:
        return "test", "all"
    if split == "validation" and "train" in splits:
        return "train", "last"
    raise _unknown_split(dataset, split, [*sorted(splits), *[ALL] * own])


def _places(size: int, part: str) -> range:
    cut = size - max(1, size // 10)
    return {"all": range(size), "first": range(cut), "last": range(cut, size)}[part]


def _unknown_split(dataset: str, split: str, splits: list[str]) -> UserError:
    return UserError(f"unknown split {split!r} of {dataset}; choose from: {', '.join(splits)}")


def _root(builder: tfds.core.DatasetBuilder, data_dir: str | Path | None) -> Path:
    return Path(data_dir) if data_dir else Path(builder.data_dir_root)
