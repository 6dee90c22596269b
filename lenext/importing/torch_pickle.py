"""Tensors out of PyTorch's own files, without PyTorch and without running anything in them.

A file of `torch.save` is a zip archive: a pickle that says which tensors there are, and a member
for each storage. A pickle is a program; of what it may call, this reader knows what makes a tensor
and nothing else.
"""

import collections
import io
import math
import pickle
import pickletools
import types
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lenext.errors import UserError

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of PyTorch before 1.6 begin."""

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Kind(NamedTuple):
    """Stands for a class of PyTorch's; nothing that a pickle says can change it."""

    name: str


class _Code(UserError):
    """A pickle would call something."""


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int  # numbers in it


class StoredTensor(NamedTuple):
    """Where a tensor lies: numbers of a storage, from an offset on, by strides."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.storage.dtype


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """What `torch._utils._rebuild_tensor_v2` is called with."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor of no storage")
    shape, strides = tuple(shape), tuple(strides)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise pickle.UnpicklingError("a tensor that its storage does not hold")
    if math.prod(shape) > storage.size:  # by strides of 0, as many as it likes
        raise pickle.UnpicklingError("a tensor of more numbers than its storage has")
    return StoredTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    """What `torch._utils._rebuild_parameter` is called with."""
    return tensor


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _Kind(name) for name in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        if known is None:
            raise _Code(f"it would run {module}.{name}")
        if isinstance(known, types.FunctionType):  # a pickle may set attributes of what it gets
            return lambda *arguments: known(*arguments)
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(name), str(key), str(), int(size)):
                return _Storage(DTYPES[name], key, size)
        raise pickle.UnpicklingError("a storage of another kind")


def _check_sizes(data: bytes) -> None:
    """Checks what a pickle says of sizes, for which its reader makes room before it sees any more.

    Raises:
      ValueError: it has not so many bytes.
    """
    for opcode, argument, _ in pickletools.genops(data):  # which checks the lengths of texts
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"{opcode.name} of number {argument}")


class TorchFile:
    """The tensors of a file of `torch.save`, read one at a time.

    Args:
      path: of the file, which holds a dict of names to tensors.

    Raises:
      UserError: it is not such a file, is cut short, or its pickle would run something.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                raise UserError(
                    f"{path}: written by PyTorch before 1.6; save it again, as safetensors"
                )
        try:
            self.archive = zipfile.ZipFile(path)
            # What is compressed, as PyTorch's never is, may be of any size when it is read.
            if sum(info.file_size for info in self.archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path}: says of its parts that they are larger than it is")
            (index,) = (n for n in self.archive.namelist() if n.endswith("/data.pkl"))
            self.root = index.removesuffix("data.pkl")
            order = self.root + "byteorder"
            if order in self.archive.namelist() and self.archive.read(order) != b"little":
                raise UserError(f"{path}: its numbers are not little-endian")
            data = self.archive.read(index)
            _check_sizes(data)
            content = _Unpickler(io.BytesIO(data)).load()
        except _Code as error:
            raise UserError(
                f"{path}: its pickle holds more than tensors: {error}; save the weights as "
                "safetensors"
            ) from None
        except UserError:
            raise
        except Exception as error:  # whatever a pickle's few opcodes can go wrong with
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: should be a file of torch.save ({reason})") from None
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(x, StoredTensor) for name, x in content.items()
        ):
            raise UserError(f"{path}: should hold names and their tensors (a state dict)")
        self.tensors: dict[str, StoredTensor] = dict(content)

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Raises:
          UserError: the file does not hold all of it.
        """
        storage, offset, shape, strides = self.tensors[name]
        try:
            data = self.archive.read(f"{self.root}data/{storage.key}")
        except Exception as error:  # a member may say that it is compressed, or encrypted
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: tensor {name} cannot be read ({reason})") from None
        if len(data) != storage.size * storage.dtype.itemsize:
            raise UserError(f"{self.path}: tensor {name} is cut short")
        numbers = np.frombuffer(data, storage.dtype)[offset:]
        steps = [step * storage.dtype.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)
