"""TFDS builder over a user's own .txt, .jsonl and .jsonl.gz files."""

import codecs
import functools
import gzip
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder

from lenext.data.stdlib_source import split_of
from lenext.data.text_paths import errors_of, find_files, is_txt, lone_splits, split_by_name
from lenext.errors import UserError

# How a file begins that says its encoding; UTF-32's mark begins as UTF-16's does.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
SPLITS = ("train", "validation", "test")
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
    JSON object with a text, named PATH:LINE. Empty ones are skipped. Files are UTF-8, or UTF-16 or
    UTF-32 by their byte-order mark, which is no part of the text. If names of folders or files say
    which splits they are (see `split_by_name`), these are the splits; otherwise a tenth of the
    documents is validation, by the sha256 of their names. Of a single document it is the last
    tenth.

    Examples are parts of documents, in order: `path`, the document's name, and `text`. The config's
    name is the files' fingerprint, so a prepared copy is never stale.

    Args:
      files: folders (searched to the bottom), files and globs, separated by commas.
      field: the key of a JSON object's text.

    Attributes:
      fingerprint: see `files_fingerprint`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files, field="text", data_dir=None, config=None, version=None):
        self.root, self.paths, self._skipped = find_files(files)
        self.field = field
        self._facts = {path: look_at(self.root, path) for path in self.paths}
        self._by_name = split_by_name(self.paths)
        self.fingerprint = files_fingerprint(self._facts, field, self._by_name)
        super().__init__(
            data_dir=data_dir,
            config=config or tfds.core.BuilderConfig(name=self.fingerprint),
            version=version,
        )

    def notes(self, bytes_kept: bool) -> list[str]:
        """What a user should know of the files: each a part of a line.

        Args:
          bytes_kept: bytes that are no UTF-8 come to the model as they are, not as U+FFFD.
        """
        facts, by_name = self._facts, self._by_name
        notes = []
        if by_name is None:
            notes += [f"{name} is no split: no train goes with it" for name in lone_splits(facts)]
        elif "validation" not in by_name.values():
            notes.append("test stands for validation")
        skipped = self._skipped + [
            f"{path} (empty)" for path, fact in facts.items() if not fact.size
        ]
        if skipped:
            notes.append(f"skipped {len(skipped)}: {some(sorted(skipped))}")
        broken = [f"{fact.broken:,} in {path}" for path, fact in facts.items() if fact.broken]
        if broken:
            done = "kept" if bytes_kept else "replaced"
            notes.append(f"bytes that are no UTF-8, {done}: {some(broken)}")
        # Of what was prepared before they were counted there is no count.
        halves = [f"{count:,} in {path}" for path, count in (self.info.metadata or {}).items()]
        if halves:
            notes.append(f'halves of characters, replaced by "?": {some(sorted(halves))}')
        if nul := [f"{fact.nul:,} in {path}" for path, fact in facts.items() if fact.nul]:
            notes.append(f"NUL bytes: {some(nul)}")
        if twins := _twins(facts, by_name):
            notes.append(f"the same text twice: {some(twins)}")
        return notes

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text files of the user who prepared it.",
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        parts_of, splits = self._splits()
        return {split: _shards(functools.partial(parts_of, split)) for split in splits}

    def _splits(self) -> tuple[Callable[[str], Iterator[Part]], tuple[str, ...]]:
        """Returns what yields the parts of a split's documents, and the splits."""
        by_name = self._by_name
        if by_name is not None:
            chosen = {split: [p for p in self.paths if by_name[p] == split] for split in SPLITS}
            for split, paths in chosen.items():
                if paths and not any(self._parts(paths)):
                    raise UserError(
                        f"text_files: all files for {split} in {self.root} are empty: {some(paths)}"
                    )
            splits = tuple(split for split, paths in chosen.items() if paths)
            return lambda split: self._parts(chosen[split]), splits
        return self._tenth(), SPLITS[:2]

    def _tenth(self) -> Callable[[str], Iterator[Part]]:
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
            halves = Counter()
            yield from read_parts(self.root, path, self.field, halves)
            if halves:
                counts: Any = self.info.metadata  # kept with what is prepared
                counts[path] = halves.total()


class Facts(NamedTuple):
    """What a file is, before its documents are read.

    Attributes:
      digest: sha256 of its content.
      size: bytes in it, without a byte-order mark.
      encoding: of a .txt that begins with a byte-order mark, what that says; else "".
      broken: of a .txt, bytes that are no UTF-8.
      nul: of a .txt, NUL bytes.
    """

    digest: bytes
    size: int
    encoding: str = ""
    broken: int = 0
    nul: int = 0


def look_at(root: Path, path: str) -> Facts:
    """Reads a file by blocks.

    Raises:
      UserError: it cannot be read, or is a .txt of UTF-16 or UTF-32 that does not say so.
    """
    full = root / path
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = nul = broken = 0
    encoding = None
    with errors_of(full), full.open("rb") as file:
        while block := file.read(PART_BYTES):
            if encoding is None:
                encoding, mark = mark_of(block)
                size -= mark
            digest.update(block)
            size += len(block)
            if is_txt(path) and encoding not in WIDE:
                nul += block.count(0)
                broken = broken or _fails(decoder, block)
        if broken or _fails(decoder, b"", final=True):
            file.seek(0)
            broken = _broken_bytes(file)
    encoding = encoding if is_txt(path) and encoding else ""
    if nul and nul >= size / 4:
        raise UserError(
            f"{full}: {nul:,} of {size:,} bytes are NUL, as in UTF-16 without its byte-order mark; "
            "save it as UTF-8, or with the mark"
        )
    return Facts(digest.digest(), size, encoding, broken, nul)


def files_fingerprint(
    facts: Mapping[str, Facts], field: str, by_name: Mapping[str, str] | None
) -> str:
    """Returns 12 hex digits of the sha256 of paths, contents, `field`, and how they are read.

    How they are read counts where it is not as it was in the beginning: .txt files as they are,
    and folders called train and validation the only names of splits. So a copy of then is found
    where it holds the same texts, and nowhere else.
    """
    digest = hashlib.sha256(f"{field}\0".encode())
    for path, fact in facts.items():
        digest.update(f"{path}\0".encode() + fact.digest)
    encodings = {path: fact.encoding for path, fact in facts.items() if fact.encoding}
    plain = by_name is None or (
        "test" not in by_name.values()
        and all(f"/{split}/" in f"/{path}" for path, split in by_name.items())
    )
    if encodings or not plain:
        digest.update(json.dumps([encodings, None if plain else by_name]).encode())
    return digest.hexdigest()[:12]


def fingerprint_of(files: str, field: str) -> str:
    """Returns the fingerprint that `TextFiles` of these has, without preparing anything.

    Raises:
      UserError: as `TextFiles`.
    """
    root, paths, _ = find_files(files)
    facts = {path: look_at(root, path) for path in paths}
    return files_fingerprint(facts, field, split_by_name(paths))


def read_parts(
    root: Path, path: str, field: str, halves: Counter[str] | None = None
) -> Iterator[Part]:
    """Yields the parts of the documents of a file that are not empty.

    Args:
      root: the folder that `path` starts from.
      path: the file's.
      field: the key of a JSON object's text.
      halves: counts, by document, the halves of surrogate pairs that become question marks.

    Raises:
      UserError: the file cannot be read, or a line of a .jsonl has no text; names both.
    """
    full = root / path
    if is_txt(path):
        with errors_of(full), _open(full) as file:
            for part in _text_parts(file):
                yield path, part
        return
    for name, text in read_lines(root, path, field):
        try:
            encoded = text.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair
            encoded = text.encode(errors="replace")
            if halves is not None:
                halves[name] = encoded.count(b"?") - text.count("?")
        for part in _text_parts(io.BytesIO(encoded)):
            yield name, part


def read_lines(root: Path, path: str, field: str) -> Iterator[tuple[str, str]]:
    """Yields name and text of each document of a .jsonl or .jsonl.gz, empty ones too.

    Raises:
      UserError: as `read_parts`.
    """
    full = root / path
    with errors_of(full), _open(full) as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                # Padded, so that documents sort by name as they stand in the file.
                yield f"{path}:{number:09}", _line_text(line, field, f"{full}, line {number}")


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


def _line_text(line: bytes, field: str, place: str) -> str:
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
    return record[field]


class _AsUtf8(io.RawIOBase):
    """A file's text in UTF-8, without its byte-order mark."""

    def __init__(self, file, encoding: str):
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = b"..."
        while block and not self._rest:
            block = self._file.read(io.DEFAULT_BUFFER_SIZE)
            self._rest = self._decoder.decode(block, final=not block).encode()
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path):
    """Opens a file for reading, in UTF-8 whatever its byte-order mark says."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    file = opened(path, "rb")
    try:
        encoding, mark = mark_of(file.peek(4))
        if encoding == "utf-8-sig":
            file.read(mark)  # and what is broken beyond stays as it is
        return io.BufferedReader(_AsUtf8(file, encoding)) if encoding in WIDE else file
    except BaseException:
        file.close()
        raise


def mark_of(start: bytes) -> tuple[str, int]:
    """The encoding that a file's byte-order mark names, "" without one, and the mark's bytes."""
    return next(((name, len(m)) for m, name in MARKS.items() if start.startswith(m)), ("", 0))


def _fails(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return True
    return False


def _broken_bytes(file) -> int:
    """Counts bytes that are no UTF-8, which takes longer than to see whether there are any."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    broken = 0
    while block := file.read(PART_BYTES):
        broken += len(block) - len(decoder.decode(block).encode())
    return broken


def _twins(facts: Mapping[str, Facts], by_name: Mapping[str, str] | None) -> list[str]:
    """Files that hold what one before them does, those of other splits first."""
    first: dict[bytes, str] = {}
    found = []
    for path, fact in facts.items():
        other = first.setdefault(fact.digest, path)
        if other != path and fact.size:
            found.append((by_name is None or by_name[other] == by_name[path], other, path))
    return [f"{other} and {path}" for _, other, path in sorted(found)]


def some(names: list[str], count: int = 3) -> str:
    """The first few of many, and how many more there are."""
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


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
