"""The tensors of a folder, by name, read one at a time."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from lenext.errors import UserError
from lenext.files import read_json
from lenext.importing.torch_pickle import TorchFile

SINGLE = ("model.safetensors", "pytorch_model.bin")
LOOKED_FOR = tuple(n for name in SINGLE for n in (name, f"{name}.index.json"))
"""Files that hold weights, or name the shards that do; the first that is there is taken."""

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class Tensor(NamedTuple):
    """A tensor that is not read yet.

    Attributes:
      shape: of it.
      dtype: "float32", "bfloat16", …
      read: gives its numbers, in that type.
      file: where it lies.
      name: that it has there, where it has another one than it is known by.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    file: Path
    name: str = ""


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's weights.

    Raises:
      UserError: there are none, a shard is missing, or a file is not what its name says.
    """
    found = next((folder / name for name in LOOKED_FOR if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: holds no weights; looked for {', '.join(LOOKED_FOR)}")
    if found.name in SINGLE:
        return _open_file(found)
    tensors: dict[str, Tensor] = {}
    weight_map = _read_index(found)
    for shard in dict.fromkeys(weight_map.values()):
        if Path(shard).name != shard:
            raise UserError(f"{found}: shard {shard!r}: should be the name of a file beside it")
        if not os.path.isfile(folder / shard):  # a name may be none that a file can have
            raise UserError(f"{found}: shard {shard} is missing")
        held = _open_file(folder / shard)
        for name in sorted(held.keys() - weight_map.keys()):
            raise UserError(f"{folder / shard}: tensor {name} is not named by {found}")
        for name in (n for n, where in weight_map.items() if where == shard):
            if name not in held:
                raise UserError(f"{folder / shard}: tensor {name} is missing, which {found} names")
            tensors[name] = held[name]
    return tensors


def _read_index(path: Path) -> Mapping[str, str]:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise UserError(f'{path}: should hold a "weight_map" of tensors to files')
    return weight_map


def _open_file(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _open_torch(path) if path.suffix == ".bin" else _open_safetensors(path)


def _open_torch(path: Path) -> dict[str, Tensor]:
    file = TorchFile(path)

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: file.read(name)

    return {
        name: Tensor(stored.shape, stored.dtype.name, reader(name), path)
        for name, stored in file.tensors.items()
    }


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file = safe_open(path, framework="numpy")
        # The library maps the file: a tensor is read when it is asked for.
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 # no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: should be a whole safetensors file ({error})") from None

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: file.get_tensor(name)

    return {
        name: Tensor(
            tuple(found.get_shape()),
            DTYPES.get(str(found.get_dtype()), str(found.get_dtype())),
            reader(name),
            path,
        )
        for name, found in slices.items()
    }
