"""A user's text files: which there are, and which split each of them is meant for."""

import contextlib
import fnmatch
import glob
import gzip
import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from lenext.errors import UserError

LINES = (".jsonl", ".jsonl.gz")  # whose lines are documents
SUFFIXES = (".txt", *LINES)  # in lower case; files' may be in any
# What folders and files of splits are called, by the table of Hugging Face's `datasets`
# (SPLIT_KEYWORDS in data_files.py).
SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# wiki.train, train-00000-of-00005: a word, perhaps after a prefix, perhaps before numbers.
_SPLIT_FILE = re.compile(
    rf"(?:(?P<prefix>.*)[-._ ])?(?P<word>{'|'.join(SPLIT_OF_WORD)})"
    r"(?:[-._ ]?\d+(?:[-._ ](?:of[-._ ])?\d+)*)?"
)


class Found(NamedTuple):
    """Text files.

    Attributes:
      root: the folder that holds all of them.
      paths: relative to `root`, with forward slashes, in the order of their documents' names.
      skipped: what was met and is no document, as one says it: "notes.md", ".git/".
    """

    root: Path
    paths: list[str]
    skipped: list[str]


def find_files(files: str, suffixes: tuple[str, ...] = SUFFIXES, said: str = "text_files") -> Found:
    """Finds text files.

    A folder is searched to the bottom, through links to folders, too, but not in hidden files and
    folders (whose names begin with a dot), unless they are named themselves.

    Args:
      files: folders, files and globs, separated by commas.
      suffixes: of text files, in lower case.
      said: begins messages: who wants to read them.

    Raises:
      UserError: `files` is empty, one of its entries leads to no text file, or a folder cannot be
        read.
    """
    entries = [entry.strip() for entry in files.split(",") if entry.strip()]
    if not entries:
        raise UserError(
            "dataset text_files needs to know its files: a folder, a file or a glob, "
            "several separated by commas"
        )
    roots, found, left = [], set(), {}
    for entry in entries:
        path = Path(os.path.abspath(os.path.expanduser(entry)))
        if path.is_dir():
            roots.append(path)
            matches = _search(path, left)
        elif path.exists():
            roots.append(path.parent)
            matches = [path]
        elif glob.has_magic(entry):
            fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            roots.append(fixed)
            matches = _matches(path, fixed)
        else:
            raise UserError(f"{said}: no file or folder {path}")
        texts = {match for match in matches if _is_text(match, suffixes) and match.is_file()}
        if not texts:
            raise UserError(f"{said}: no {', '.join(suffixes)} file in {path}")
        found |= texts
        for match in matches:
            if match not in texts:
                is_text = _is_text(match, suffixes)
                left[match] = " (no file)" if is_text else "/" if match.is_dir() else ""
    root = Path(os.path.commonpath(roots))
    # The colon that follows a .jsonl's name in those of its documents takes part in the order.
    paths = [path.relative_to(root).as_posix() for path in found]
    paths.sort(key=lambda p: p if is_txt(p) else f"{p}:")
    # Folders that a pattern matches are told only where they hold no text that it matches, too.
    holding = {folder for path in found for folder in path.parents}
    skipped = sorted(
        path.relative_to(root).as_posix() + why
        for path, why in left.items()
        if path not in found and path not in holding
    )
    return Found(root, paths, skipped)


def is_txt(path: str) -> bool:
    """Whether a file is one document, not one a line."""
    return not path.lower().endswith(LINES)


def split_by_name(paths: Iterable[str]) -> dict[str, str] | None:
    """Returns each path's split, "train", "validation" or "test", if their names say so.

    They do where a folder or file that is called train stands beside a held-out one, by the words
    of `SPLIT_OF_WORD`: train/ and val/, train.jsonl and dev.jsonl, wiki.train-000.txt and
    wiki.test-000.txt. The first such folder of a path counts (those called train and validation
    before others), then the file's name.

    Raises:
      UserError: they do, and a file is in none of them, or two words stand for one held-out split.
    """
    named = {path: _named(path) for path in paths}
    trains = {each.prefix for each in named.values() if each and each.split == "train"}
    if not any(each and each.split != "train" and each.prefix in trains for each in named.values()):
        return None
    splits, words = {}, {}
    for path, each in named.items():
        if each is None:
            own = {e.split: f"{e.place} ({e.split})" for e in named.values() if e}
            raise UserError(
                f"text_files: {path} lies in no split, beside {', '.join(own.values())}; name the "
                "folders or files that are meant"
            )
        word, place = words.setdefault(each.split, (each.word, each.place))
        if each.split != "train" and each.word != word:
            raise UserError(
                f"text_files: {place} and {each.place} are both called {each.split}; name the one "
                "that is meant, and those to train on"
            )
        splits[path] = each.split
    return splits


def lone_splits(paths: Iterable[str]) -> list[str]:
    """Folders and files that are called like held-out splits, for lack of a train no splits.

    Not single documents with a prefix: no-such-test.txt is a document's name.
    """
    named = ((path, _named(path)) for path in paths)
    places = (
        each.place
        for path, each in named
        if each and each.split != "train" and not (each.prefix and is_txt(path))
    )
    return list(dict.fromkeys(places))


class _Named(NamedTuple):
    split: str
    prefix: str
    word: str
    place: str  # what is called so


def _named(path: str) -> _Named | None:
    *folders, file = PurePath(path).parts
    exact = [i for i, name in enumerate(folders) if name in ("train", "validation")]
    for i in exact or range(len(folders)):
        word = folders[i].lower()
        if word in SPLIT_OF_WORD:
            return _Named(SPLIT_OF_WORD[word], "", word, "/".join(folders[: i + 1]) + "/")
    name = file.lower()
    stem = name.removesuffix(next((s for s in SUFFIXES if name.endswith(s)), ""))
    if match := _SPLIT_FILE.fullmatch(stem):
        word = match["word"]
        return _Named(SPLIT_OF_WORD[word], match["prefix"] or "", word, path)
    return None


def _is_text(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _search(top: Path, left: dict[Path, str]) -> list[Path]:
    """Lists the files below a folder; what is not gone into is put into `left`, with the reason."""
    found, seen = [], set()
    folders, links = [top], []
    while folders or links:
        # Links last: what they lead to may lie here under a name of its own.
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            left[folder] = "/ (a link to what is here)"
            continue
        seen.add(real)
        with errors_of(folder), os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        for entry in entries:
            path = Path(entry.path)
            is_dir = path.is_dir() if entry.is_symlink() else entry.is_dir()
            if entry.name.startswith("."):
                left[path] = "/" if is_dir else ""
            elif not is_dir:
                found.append(path)
            elif not entry.is_symlink():
                folders.append(path)
            elif _leads_back(path):
                left[path] = "/ (a link to a folder that it lies in)"
            else:
                links.append(path)
    return found


def _matches(pattern: Path, top: Path) -> list[Path]:
    """Lists what a pattern matches; of folders to any depth (**), what a search of `top` finds."""
    if "**" not in pattern.parts:
        return [Path(match) for match in glob.iglob(str(pattern))]
    # Python's own goes through each link that leads back 40 times, through two of them 2^40 times.
    parts = pattern.relative_to(top).parts
    found = _search(top, {}) if top.is_dir() else []
    return [path for path in found if _fits(path.relative_to(top).parts, parts)]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern, of which ** stands for any number."""
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return folder.parent.resolve().is_relative_to(folder.resolve())


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Says of which file or folder an error is."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: begins as {error.encoding} does, and goes on otherwise: {error.reason}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
