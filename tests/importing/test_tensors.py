"""Files of tensors are data: whole, or refused in a line, and nothing in them is run."""

import collections
import io
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lenext.errors import UserError
from lenext.importing.tensors import open_tensors


class _Persistent:
    """Stands for a storage, which PyTorch's pickles name and keep beside."""

    def __init__(self, *pid):
        self.pid = pid


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Persistent) else None


class _Global:
    """Pickles as a call of a function that this process need not have."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def torch_names(monkeypatch):
    """Modules that look like PyTorch's to the pickler."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, name in ((utils, "_rebuild_tensor_v2"), (utils, "_rebuild_parameter")):
        exec(f"def {name}(*arguments): pass", module.__dict__)
    for name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def tensor(key, storage, size, shape, strides, offset=0):
    torch = sys.modules["torch"]
    kind = getattr(torch, storage)
    return _Global(
        torch._utils._rebuild_tensor_v2,
        _Persistent("storage", kind, key, "cpu", size),
        offset, shape, strides, False, collections.OrderedDict(),
    )  # fmt: skip


def write_bin(folder, content, storages, byteorder=b"little"):
    """A file as `torch.save` makes it."""
    folder.mkdir(exist_ok=True)
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return folder


def test_a_pickle_of_tensors(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    narrow = np.asarray([1.5, -2.0], ml_dtypes.bfloat16)
    content = collections.OrderedDict(
        whole=tensor("0", "FloatStorage", 12, (3, 4), (4, 1)),
        turned=tensor("0", "FloatStorage", 12, (4, 3), (1, 4)),
        part=tensor("0", "FloatStorage", 12, (2, 2), (4, 1), offset=5),
        narrow=_Global(
            sys.modules["torch._utils"]._rebuild_parameter,
            tensor("1", "BFloat16Storage", 2, (2,), (1,)), True, collections.OrderedDict(),
        ),
        empty=tensor("0", "FloatStorage", 12, (0, 3), (3, 1)),
    )  # fmt: skip
    found = open_tensors(write_bin(tmp_path, content, {"0": numbers, "1": narrow}))
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "whole": ((3, 4), "float32"), "turned": ((4, 3), "float32"), "part": ((2, 2), "float32"),
        "narrow": ((2,), "bfloat16"), "empty": ((0, 3), "float32"),
    }  # fmt: skip
    np.testing.assert_array_equal(found["whole"].read(), numbers.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"].read(), numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"].read(), [[5, 6], [9, 10]])
    np.testing.assert_array_equal(found["narrow"].read().astype(np.float32), [1.5, -2.0])
    assert found["empty"].read().shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda path: _Global(os.system, f"touch {path}"), "system"),
        (lambda path: _Global(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: _Global(Path.touch, path), "getattr|touch"),
        (lambda path: _Global(pickle.loads, b"."), "loads"),
    ],
)
def test_a_pickle_with_code_runs_nothing(tmp_path, call, name):
    ran = tmp_path / "ran"
    content = {"x": tensor("0", "FloatStorage", 1, (1,), (1,)), "y": call(ran)}
    write_bin(tmp_path / "folder", content, {"0": np.zeros(1, np.float32)})
    with pytest.raises(
        UserError, match=rf"holds more than tensors: it would run [a-z_.]+\.({name})"
    ):
        open_tensors(tmp_path / "folder")
    assert not ran.exists()


def one(**changes):
    given = {"key": "0", "storage": "FloatStorage", "size": 4, "shape": (2, 2), "strides": (2, 1)}
    return {"x": tensor(**(given | changes))}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: one(shape=(3, 2)), "a tensor that its storage does not hold"),
        (lambda: one(offset=1), "a tensor that its storage does not hold"),
        (lambda: one(strides=(-2, 1)), "a tensor of no storage"),
        (lambda: one(shape=(10**9, 10**9), strides=(0, 0)), "more numbers than its storage has"),
        (lambda: {"model": one()}, r"should hold names and their tensors"),
        (lambda: [1, 2], r"should hold names and their tensors"),
    ],
)
def test_a_pickle_that_makes_no_sense(tmp_path, content, message):
    write_bin(tmp_path, content(), {"0": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match=message):
        open_tensors(tmp_path)


def test_parts_that_are_larger_than_their_file(tmp_path):
    path = write_bin(tmp_path, one(), {"0": np.zeros(4, np.float32)}) / "pytorch_model.bin"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(10**6))
    with pytest.raises(UserError, match="says of its parts that they are larger than it is"):
        open_tensors(tmp_path)


def test_storages_that_are_cut_short_or_missing(tmp_path):
    found = open_tensors(write_bin(tmp_path, one(), {"0": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match="tensor x is cut short"):
        found["x"].read()
    found = open_tensors(write_bin(tmp_path, one(), {}))
    with pytest.raises(UserError, match="tensor x cannot be read"):
        found["x"].read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "should be a file of torch.save"),
        (b"PK\x03\x04 and no more", "should be a file of torch.save"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rest", "written by PyTorch before 1.6"),
        (pickle.dumps({"x": 1}), "should be a file of torch.save"),
    ],
)
def test_no_torch_file(tmp_path, data, message):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(UserError, match=rf"{tmp_path}/pytorch_model.bin: {message}"):
        open_tensors(tmp_path)


def test_other_byte_order(tmp_path):
    write_bin(tmp_path, one(), {"0": np.zeros(4, np.float32)}, byteorder=b"big")
    with pytest.raises(UserError, match=r"pytorch_model.bin: its numbers are not little-endian"):
        open_tensors(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights; looked for model.safetensors, "):
        open_tensors(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_safetensors_file(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros((20, 20), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=rf"{path}: should be a whole safetensors file"):
        open_tensors(tmp_path)


def sharded(folder, **weight_map):
    save_file({"a": np.ones(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path):
    sharded(tmp_path, a="one.safetensors", b="two.safetensors")
    found = open_tensors(tmp_path)
    assert {name: x.shape for name, x in found.items()} == {"a": (2,), "b": (3,)}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "three.safetensors"}, "shard three.safetensors is missing"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "two.safetensors: tensor a is missing"),
        ({"a": "../one.safetensors"}, "should be the name of a file beside it"),
        ({"a": 1}, 'should hold a "weight_map"'),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "tensor b is not named by"),
    ],
)
def test_shards_that_are_not_there(tmp_path, weight_map, message):
    sharded(tmp_path, **weight_map)
    with pytest.raises(UserError, match=message):
        open_tensors(tmp_path)
