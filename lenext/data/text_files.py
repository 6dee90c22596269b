"""TFDS builder over a user's own .txt, .jsonl and .jsonl.gz files."""

import contextlib
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder

from lenext.data.stdlib_source import split_of
from lenext.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
SPLITS = ("train", "validation")
# A document is stored in parts of about this many bytes, so that no step holds a whole long one.
PART_BYTES = 2**20
# TFDS holds one shard in memory while it writes it, and each example costs it this much by itself.
SHARD_BYTES = 2**25
EXAMPLE_BYTES = 512

Part = tuple[str, bytes]
"""A document's name, and a part of its text; parts of a document follow one another."""


class TextFiles(ShardBasedBuilder):
    """A user's own text files.

    A .txt file is a document, named by its path; a line of a .jsonl or .jsonl.gz is a document, a
    JSON object with a text, named PATH:LINE. Empty ones are skipped. If files lie in folders called
    train and validation, these are the splits; otherwise a tenth of the documents is validation, by
    the sha256 of their names. Of a single document it is the last tenth.

    Examples are parts of documents, in order: `path`, the document's name, and `text`. The config's
    name is the files' fingerprint, so a prepared copy is never stale.

    Args:
      files: folders (searched to the bottom), files and globs, separated by commas.
      field: the key of a JSON object's text.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files, field="text", data_dir=None, config=None, version=None):
        self.root, self.paths = find_files(files)
        self.field = field
        self.fingerprint = files_fingerprint(self.root, self.paths, field)
        super().__init__(
            data_dir=data_dir,
            config=config or tfds.core.BuilderConfig(name=self.fingerprint),
            version=version,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text files of the user who prepared it.",
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        parts_of = self._splits()
        return {split: _shards(functools.partial(parts_of, split)) for split in SPLITS}

    def _splits(self) -> Callable[[str], Iterator[Part]]:
        """Returns what yields the parts of a split's documents."""
        folders = split_by_folder(self.paths)
        if folders is not None:
            for split in SPLITS:
                chosen = [path for path in self.paths if folders[path] == split]
                if not any(self._parts(chosen)):
                    raise UserError(f"text_files: all files in {split}/ of {self.root} are empty")
            return lambda split: self._parts([p for p in self.paths if folders[p] == split])

        # One split has to be given a document only where all fell into the other, so most often
        # this looks at a few.
        splits, documents, size, previous, lowest = set(), 0, 0, None, ""
        for name, text in self._parts(self.paths):
            splits.add(split_of(name))
            if len(splits) == 2:
                return lambda split: self._assigned(split, split_of)
            documents += name != previous
            size += len(text)
            previous = name
            lowest = min(name, lowest or name, key=_name_digest)
        if documents < 2:
            return self._split_single(size)
        most = splits.pop()
        other = "train" if most == "validation" else "validation"
        return lambda split: self._assigned(split, lambda name: other if name == lowest else most)

    def _assigned(self, split: str, split_of: Callable[[str], str]) -> Iterator[Part]:
        return (part for part in self._parts(self.paths) if split_of(part[0]) == split)

    def _split_single(self, size: int) -> Callable[[str], Iterator[Part]]:
        if size < 2:
            where = self.paths[0] if len(self.paths) == 1 else f"the {len(self.paths)} files"
            what = "a single byte is too little for two splits" if size else "no text"
            raise UserError(f"text_files: {what} in {where} of {self.root}")
        return lambda split: cut_tenth(self._parts(self.paths), size, split)

    def _parts(self, paths: Iterable[str]) -> Iterator[Part]:
        for path in paths:
            yield from read_parts(self.root, path, self.field)


def find_files(files: str) -> tuple[Path, list[str]]:
    """Finds text files.

    Args:
      files: folders (searched to the bottom), files and globs, separated by commas.

    Returns:
      root: the folder that holds all of them.
      paths: relative to `root`, with forward slashes, in the order of their documents' names.

    Raises:
      UserError: `files` is empty, or one of its entries leads to no text file.
    """
    entries = [entry.strip() for entry in files.split(",") if entry.strip()]
    if not entries:
        raise UserError(
            "dataset text_files needs to know its files: a folder, a file or a glob, "
            "several separated by commas"
        )
    roots, found = [], set()
    for entry in entries:
        path = Path(os.path.abspath(os.path.expanduser(entry)))
        if path.is_dir():
            roots.append(path)
            matches = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        elif path.exists():
            roots.append(path.parent)
            matches = [path]
        elif glob.has_magic(entry):
            fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
            roots.append(Path(*fixed))
            matches = [Path(match) for match in glob.iglob(str(path), recursive=True)]
        else:
            raise UserError(f"text_files: no file or folder {path}")
        matches = [match for match in matches if match.name.endswith(SUFFIXES) and match.is_file()]
        if not matches:
            raise UserError(f"text_files: no {', '.join(SUFFIXES)} file in {path}")
        found.update(matches)
    root = Path(os.path.commonpath(roots))
    # The colon that follows a .jsonl's name in those of its documents takes part in the order.
    paths = [path.relative_to(root).as_posix() for path in found]
    return root, sorted(paths, key=lambda p: p if p.endswith(".txt") else f"{p}:")


def files_fingerprint(root: Path, paths: Iterable[str], field: str) -> str:
    """Returns 12 hex digits of the sha256 of paths, contents and `field`; reads by blocks.

    Raises:
      UserError: a file cannot be read.
    """
    digest = hashlib.sha256(f"{field}\0".encode())
    for path in paths:
        with _errors_of(root / path), (root / path).open("rb") as file:
            digest.update(f"{path}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def split_by_folder(paths: Iterable[str]) -> dict[str, str] | None:
    """Returns each path's split if folders called train and validation are among them.

    Raises:
      UserError: they are, and a file lies in neither.
    """
    found = {
        path: next((part for part in PurePath(path).parts[:-1] if part in SPLITS), None)
        for path in paths
    }
    if not set(SPLITS) <= set(found.values()):
        return None
    for path, split in found.items():
        if split is None:
            raise UserError(
                f"text_files: {path} lies neither in train/ nor in validation/; "
                "name the folders that are meant"
            )
    return {path: str(split) for path, split in found.items()}


def read_parts(root: Path, path: str, field: str) -> Iterator[Part]:
    """Yields the parts of the documents of a file that are not empty.

    Raises:
      UserError: the file cannot be read, or a line of a .jsonl has no text; names both.
    """
    full = root / path
    if path.endswith(".txt"):
        with _errors_of(full), full.open("rb") as file:
            for part in _text_parts(file):
                yield path, part
        return
    with _errors_of(full), _open(full) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            text = _line_text(line, field, f"{full}, line {number}")
            # Padded, so that documents sort by name as they stand in the file.
            name = f"{path}:{number:09}"
            for part in _text_parts(io.BytesIO(text)):
                yield name, part


def cut_tenth(parts: Iterable[Part], size: int, split: str) -> Iterator[Part]:
    """Yields the first nine tenths ("train") or the last ("validation") of a document.

    The cut falls after the last line end, or else the last white space, of the 20th of the document
    before nine tenths of it; where there is none, before a character.

    Args:
      parts: the document's.
      size: bytes in all of them, at least 2.
      split: which.
    """
    target = max(1, size * 9 // 10)
    done = 0
    for name, text in parts:
        cut = target - done
        if 0 < cut < len(text):
            cut = break_before(text, cut, max(0, cut - size // 20)) or cut
        cut = min(max(cut, 0), len(text))
        done += len(text)
        if half := text[:cut] if split == "train" else text[cut:]:
            yield name, half


def break_before(text: bytes, end: int, start: int = 0) -> int:
    """Returns where to cut text[:end]: after a line end or white space, or before a character."""
    for space in (b"\n", b" ", b"\t"):
        place = text.rfind(space, start, end)
        if place >= 0:
            return place + 1
    for place in range(end, max(start, end - 4), -1):
        if place == len(text) or text[place] & 0xC0 != 0x80:  # not inside a character
            return place
    return end


def _text_parts(file) -> Iterator[bytes]:
    """Cuts a file into parts, at line ends where it has any."""
    rest = b""
    while block := file.read(PART_BYTES):
        rest += block
        if len(rest) > PART_BYTES:
            cut = break_before(rest, PART_BYTES) or PART_BYTES
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _line_text(line: bytes, field: str, place: str) -> bytes:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: is no JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, or nested beyond reason
        raise UserError(f"{place}: is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: should be a JSON object, not {type(record).__name__}")
    if field not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{place}: has no field {field!r}; it has: {keys}")
    if not isinstance(record[field], str):
        raise UserError(
            f"{place}: field {field!r} should be a string, not {type(record[field]).__name__}"
        )
    return record[field].encode(errors="replace")  # JSON can spell half a surrogate pair


def _open(path: Path):
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _shards(parts: Callable[[], Iterator[Part]]) -> list[Callable[[], Iterator]]:
    """Deals a split's parts out to shards; returns what generates the examples of each."""
    counts, size = [0], 0
    for _, text in parts():
        if counts[-1] and size >= SHARD_BYTES:
            counts.append(0)
            size = 0
        counts[-1] += 1
        size += len(text) + EXAMPLE_BYTES
    examples = enumerate({"path": name, "text": text} for name, text in parts())
    # TFDS writes one shard after the other, so one pass serves all.
    return [functools.partial(itertools.islice, examples, count) for count in counts]


def _name_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
