"""GGUF files of llama.cpp: what they say, and their tensors, read one at a time.

The form is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Blocks of quantised
numbers are read by ggml-org's own package, `gguf`; the header is read here, as that package's
reader believes every count that it finds in one.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lenext.errors import UserError
from lenext.importing.tensors import Tensor

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
LONGEST_NAME = 2**16 - 1

# Of values, by their number: all but strings (8) and arrays (9).
SCALARS = {
    0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32, 6: np.float32,
    7: np.bool_, 10: np.uint64, 11: np.int64, 12: np.float64,
}  # fmt: skip
STRING, ARRAY = 8, 9

# Of tensors, by their number.
PLAIN = {0: "float32", 1: "float16", 30: "bfloat16"}
QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K",
}  # fmt: skip


class GGUF(NamedTuple):
    """What a file holds.

    Attributes:
      path: of it.
      metadata: by key: numbers, truths, strings, and lists of them.
      tensors: by the names that they have there; those of quantised ones come out in float32.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def open_gguf(path: Path) -> GGUF:
    """Reads a file's header.

    Args:
      path: of the file. It stays mapped while one of its tensors is held.

    Raises:
      UserError: it is none, cannot be read, or is cut; it is a part of a file, of another
        endianness or of version 1; the package `gguf` is missing; a tensor is quantised in a way
        that is not known here.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            f'{path}: reading it takes the package gguf: python -m pip install "gguf>=0.17,<1"'
        ) from None
    try:
        content = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # it is empty
        raise UserError(f"{path}: should be a GGUF file, and is empty") from None
    header = _Header(path, content)
    if content[:4].tobytes() != MAGIC:
        raise UserError(f"{path}: should be a GGUF file, and does not start with {MAGIC.decode()}")
    header.offset = 4
    version = header.number("<I", "version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            raise UserError(f"{path}: is a big-endian GGUF file; only little-endian ones are read")
        raise UserError(f"{path}: is of GGUF's version {version}; should be 2 or 3")
    # The least that one takes: of a tensor its name's length, one dimension, its type and offset.
    tensors, values = header.count("tensors", 8 + 4 + 8 + 4 + 8), header.count("values", 8 + 4 + 1)
    metadata: dict[str, Any] = {}
    for _ in range(values):
        key = header.string("key", LONGEST_NAME)
        if key in metadata:
            raise UserError(f"{path}: has {key} twice")
        metadata[key] = header.value(header.number("<I", key), key)
    split = metadata.get("split.count", 0)
    if split not in (0, 1):
        raise UserError(
            f"{path}: is one of {split!r} files of a split model; join them (llama-gguf-split "
            "--merge)"
        )
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"{path}: general.alignment={alignment!r}: should be a power of 2")
    places = [header.tensor() for _ in range(tensors)]
    start = -(-header.offset // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, shape, kind, offset in places:
        if name in found:
            raise UserError(f"{path}: has tensor {name} twice")
        if kind not in PLAIN and kind not in QUANTISED:
            known = gguf.GGMLQuantizationType.__members__.values()
            said = next((x.name for x in known if x == kind), f"of type {kind}")
            raise UserError(
                f"{path}: tensor {name} is {said}, which is not read; should be F32, F16, BF16, "
                f"{', '.join(QUANTISED.values())}"
            )
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise UserError(
                f"{path}: tensor {name} has rows of {shape[-1]}: should be of a multiple of "
                f"{block}, as it is {QUANTISED[kind]}"
            )
        count = math.prod(shape) // block * size
        if start + offset + count > len(content):
            raise UserError(
                f"{path}: tensor {name} ends at byte {start + offset + count}, and the file at "
                f"{len(content)}; is it cut?"
            )
        if offset % alignment:
            raise UserError(
                f"{path}: tensor {name} is at {offset}: should be at a multiple of {alignment}"
            )
        stored = content[start + offset : start + offset + count]
        found[name] = Tensor(
            shape, PLAIN.get(kind, "float32"), _reader(stored, shape, kind), path, name
        )
    return GGUF(path, metadata, found)


def _reader(stored: np.ndarray, shape: tuple[int, ...], kind: int) -> Callable[[], np.ndarray]:
    """What gives a tensor's numbers."""

    def read() -> np.ndarray:
        if kind in PLAIN:
            dtype = np.dtype(getattr(ml_dtypes, PLAIN[kind], PLAIN[kind]))
            return stored.view(dtype).reshape(shape)
        from gguf import GGMLQuantizationType, dequantize

        rows = np.asarray(stored).reshape(*shape[:-1], -1)
        with np.errstate(all="ignore"):  # a block may hold any bits
            return dequantize(rows, GGMLQuantizationType(kind))

    return read


class _Header:
    """A file's beginning, read from one end to the other."""

    def __init__(self, path: Path, content: np.ndarray):
        self.path, self.content, self.offset = path, content.data, 0

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes.

        Raises:
          UserError: the file ends before.
        """
        if size > len(self.content) - self.offset:
            raise UserError(
                f"{self.path}: {what} takes {size} bytes, and {len(self.content) - self.offset} "
                "are left of the file; is it cut?"
            )
        self.offset += size
        return self.content[self.offset - size : self.offset]

    def number(self, form: str, what: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, least: int) -> int:
        """How many of something follow.

        Raises:
          UserError: more than the rest of the file has room for, at `least` bytes each.
        """
        count = self.number("<Q", f"the number of {what}")
        if count * least > len(self.content) - self.offset:
            raise UserError(
                f"{self.path}: says that it has {count} {what}, more than there is room for in "
                "the file; is it cut?"
            )
        return count

    def string(self, what: str, longest: int | None = None) -> str:
        size = self.number("<Q", what)
        if longest is not None and size > longest:
            raise UserError(f"{self.path}: has a {what} of {size} bytes: should be {longest}")
        try:
            return self.take(size, what).tobytes().decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: {what}: should be text in UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string(key)
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            number = np.frombuffer(self.take(dtype.itemsize, key), dtype)[0]
            # 1e-05 in 32 bits is 9.99999974738e-06 in 64; what was meant is the shorter one.
            return float(str(number)) if dtype == np.float32 else number.item()
        if kind != ARRAY:
            raise UserError(f"{self.path}: {key} is of a type that is not known, {kind}")
        inner = self.number("<I", key)
        if inner == STRING:
            return [self.string(key) for _ in range(self.count(f"strings in {key}", 8))]
        if inner not in SCALARS:
            raise UserError(f"{self.path}: {key} is an array of a type that is not known, {inner}")
        dtype = np.dtype(SCALARS[inner])
        count = self.count(f"numbers in {key}", dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize, key), dtype).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """The next one's name, shape, type and offset."""
        name = self.string("name of a tensor", LONGEST_NAME)
        dimensions = self.number("<I", name)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise UserError(
                f"{self.path}: tensor {name} has {dimensions} dimensions: should have 1 to "
                f"{MOST_DIMENSIONS}"
            )
        # The last dimension comes first.
        shape = tuple(self.number("<Q", name) for _ in range(dimensions))[::-1]
        if not all(shape):
            raise UserError(f"{self.path}: tensor {name} is {list(shape)}, and holds nothing")
        return name, shape, self.number("<I", name), self.number("<Q", name)
