"""A split's tokens on disk: written once, in a stream, and mapped into memory from then on."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from lenext.data.tokenizers import Tokenizer
from lenext.errors import MISREAD, UserError
from lenext.files import write_atomically

log = logging.getLogger(__name__)

FORMAT = 1  # of what is written, part of the key
META = "meta.json"  # written last: a folder without it is nothing
JOINED = {"joined": True}  # in META: a document's ids are those of its whole text
IN_PARTS = "text_files"  # whose documents may come in several texts
# Text handed to the tokeniser at once: enough to keep its threads busy.
FILES = {"tokens", "offsets", "names", "name_offsets"}
DTYPES = ("uint8", "uint16", "int32", "uint32")  # of ids; the first that is large enough
BATCH_BYTES = 2**22
BATCH_TEXTS = 4096

Text = tuple[str, bytes | str]
"""A document's name and a part of its text; parts of a document follow one another."""


class Names(Sequence[str]):
    """Names of documents, in a few bytes each beside their text: equal to a list of them."""

    def __init__(self, text: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " borders"]):
        """Takes all names end to end, in UTF-8, and the D + 1 places where one begins or ends."""
        self._text = text
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # also from the end, and raises
        return self._text[self._offsets[i] : self._offsets[i + 1]].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]: it is no key

    def __repr__(self) -> str:
        return f"Names({len(self)})"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """What is kept of a split: see `Corpus`, which has the same."""

    tokens: Integer[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " borders"]
    names: Sequence[str]


class Pages:
    """Bounds how much of a mapped file counts as resident while it is read here and there.

    Without it all that was read stays in the process's mapping, up to the whole file, for as long
    as the system is not short of memory. Letting go of pages costs little: they are still in the
    system's cache, and reading them again maps them again.
    """

    READ_AROUND = 2**16  # bytes that Linux maps around one that is read
    KEPT = 2**26

    def __init__(self, tokens: Integer[np.ndarray, " tokens"]):
        """Takes an array, which need not be a mapped one."""
        self._mapping = getattr(tokens, "_mmap", None)
        self._touched = 0

    def touch(self, part: Integer[np.ndarray, " n"]) -> None:
        """Notes that a part of the array is read; now and then lets go of all."""
        self._touched += part.nbytes + self.READ_AROUND
        if self._touched >= self.KEPT and self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def cached_tokens(
    folder: Path, identity: Sequence[str], texts: Callable[[], Iterable[Text]], tokenizer: Tokenizer
) -> Tokens:
    """Returns a split's tokens, mapped from a folder that is written if it is not there.

    Several processes may call it at once: each writes to a folder of its own and renames that. What
    a process that was killed has written is never read. Memory does not go with the text.

    Args:
      folder: where such folders lie.
      identity: what tells this split from others; the first is put into the folder's name as well.
      texts: called if they have to be tokenised.
      tokenizer: turns the texts into ids; its frame surrounds those of each document.

    Raises:
      UserError: there are no texts, or the folder has to be written and cannot be.
    """
    key = json.dumps([FORMAT, *identity, *tokenizer.document_identity])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder / f"{identity[0].replace('/', '-').replace(':', '-')}-{digest}"
    if not tokenizer.byte_level and identity[0] == IN_PARTS and _was_cut(path, texts):
        log.warning("%s has documents cut by the mebibyte: writing it anew", path)
        (path / META).unlink(missing_ok=True)
    if (found := _open(path)) is not None:
        return found
    log.info("tokenising %s into %s", ", ".join(identity), path)
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
        beside.chmod(0o755)  # mkdtemp's is for its owner alone
        if not _write(beside, texts(), tokenizer):
            raise UserError(f"there is no text in {', '.join(identity)}")
        _move(beside, path)
    except OSError as error:
        raise UserError(
            f"cannot write tokens to {folder}: {error}; give a writable data_dir or set "
            "TFDS_DATA_DIR"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    written = _open(path)
    if written is None:
        raise UserError(f"{path} was removed or changed while it was written")
    return written


def smallest_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest of uint8, uint16, int32 and uint32 that holds ids below `vocab_size`."""
    return np.dtype(next(d for d in DTYPES if vocab_size - 1 <= np.iinfo(d).max))


def _write(folder: Path, texts: Iterable[Text], tokenizer: Tokenizer) -> int:
    """Writes ids, names and where those of each document begin; and last, how much there is.

    Returns:
      The number of documents.
    """
    dtype = smallest_dtype(tokenizer.vocab_size)
    frame = tokenizer.frame
    start = np.array(frame.start, dtype).tobytes()
    end = np.array([] if frame.end is None else [frame.end], dtype).tobytes()
    documents = token_bytes = name_bytes = 0
    with contextlib.ExitStack() as stack:
        tokens, offsets, names, name_offsets = files = [
            stack.enter_context((folder / name).open("wb"))
            for name in ("tokens", "offsets", "names", "name_offsets")
        ]
        for name, parts in itertools.groupby(_encoded(texts, tokenizer), key=lambda part: part[0]):
            offsets.write(np.int64(token_bytes // dtype.itemsize).tobytes())
            name_offsets.write(np.int64(name_bytes).tobytes())
            documents += 1
            name_bytes += names.write(name.encode())
            token_bytes += tokens.write(start)
            token_bytes += sum(tokens.write(ids.astype(dtype).tobytes()) for _, ids in parts)
            token_bytes += tokens.write(end)
        offsets.write(np.int64(token_bytes // dtype.itemsize).tobytes())
        name_offsets.write(np.int64(name_bytes).tobytes())
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    write_atomically(folder / META, json.dumps({"dtype": dtype.name, "bytes": sizes} | JOINED))
    return documents


def _encoded(
    texts: Iterable[Text], tokenizer: Tokenizer
) -> Iterator[tuple[str, Integer[np.ndarray, " _"]]]:
    """Ids of all texts; those of several that are one document's go on as in the whole of it."""
    batch: list[Text] = []
    size = 0
    for name, parts in itertools.groupby(texts, key=lambda text: text[0]):
        _, text = next(parts)
        more = next(parts, None)  # noqa: B031 # it goes on
        if more is not None:
            yield from _encode(batch, tokenizer)
            batch, size = [], 0
            rest = (part for _, part in itertools.chain((more,), parts))
            for ids in tokenizer.encode_parts(itertools.chain((text,), rest)):
                yield name, ids
            continue
        batch.append((name, text))
        size += len(text)
        if size >= BATCH_BYTES or len(batch) >= BATCH_TEXTS:
            yield from _encode(batch, tokenizer)
            batch, size = [], 0
    yield from _encode(batch, tokenizer)


def _encode(
    batch: list[Text], tokenizer: Tokenizer
) -> Iterator[tuple[str, Integer[np.ndarray, " _"]]]:
    names = [name for name, _ in batch]
    return zip(names, tokenizer.encode_batch([text for _, text in batch]), strict=True)


def _was_cut(path: Path, texts: Callable[[], Iterable[Text]]) -> bool:
    """Whether what is there was written while each part of a document was read by itself.

    It is not if no document came in parts, which is noted then, to be asked once.
    """
    try:
        meta = json.loads((path / META).read_text())
        if not isinstance(meta, dict) or meta.get("joined"):
            return False
        names = (name for name, _ in texts())
        if any(one == other for one, other in itertools.pairwise(names)):
            return True
        write_atomically(path / META, json.dumps(meta | JOINED))
    except (OSError, *MISREAD):  # nothing there, nothing to read, or nowhere to note it
        pass
    return False


def _move(beside: Path, path: Path) -> None:
    """Renames, unless another process was first; what is there and cannot be read makes room."""
    try:
        beside.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        if _open(path) is None:
            path.rename(beside.with_name(f"{beside.name}.broken"))
            shutil.rmtree(beside.with_name(f"{beside.name}.broken"), ignore_errors=True)
            beside.rename(path)


def _open(path: Path) -> Tokens | None:
    """Maps what is written in a folder; None if nothing is, or less than was said."""
    try:
        meta = json.loads((path / META).read_text())
        if meta["bytes"].keys() != FILES:
            raise ValueError
        sizes = {name: (path / name).stat().st_size for name in meta["bytes"]}
        if sizes != meta["bytes"]:
            log.warning("%s is damaged: writing it anew", path)
            return None
        if meta["dtype"] not in DTYPES:
            raise ValueError
        tokens = _map(path / "tokens", np.dtype(meta["dtype"]))
        # As plain arrays over the same pages: what is read often should not pay for a subclass.
        offsets, name_offsets = (
            np.asarray(_map(path / name, np.dtype(np.int64)))
            for name in ("offsets", "name_offsets")
        )
        if offsets[-1] != len(tokens):
            raise ValueError
        return Tokens(
            tokens, offsets, Names(_map(path / "names", np.dtype(np.uint8)), name_offsets)
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except MISREAD:  # what the meta file should not be
        log.warning("%s is damaged: writing it anew", path)
        return None


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
