"""Where parameters and batches lie; what meshes do to runs is in tests/training/test_meshes.py."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from lenext.config import base_config, read_methods
from lenext.errors import UserError
from lenext.models import build_model
from lenext.parallel.meshes import (
    COLUMNS,
    MESH_AXES,
    check_batch,
    make_mesh,
    place,
    process_share,
    shard_batch,
    shardings_of,
    splits_of,
    spread_batch,
)
from tests.training.common import REPOSITORY, command, tiny_decoder_config


def abstract_mesh(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES)


def make_settings(**sizes):
    settings = base_config().mesh
    settings.update(sizes)
    return settings


@pytest.fixture
def mesh():
    return make_mesh(base_config().mesh)


class TestSizes:
    def test_all_devices_read_other_rows_by_default(self, mesh):
        assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
        assert mesh.devices.ravel().tolist() == jax.devices()

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"fsdp": 2}, "product is 2 and should be a divisor of the 1 devices"),
            ({"data": 1, "tensor": 3}, "product is 3 and should be 1, the devices there are"),
            ({"data": -1}, "data=-1, .*should be at least 1, and 0 for one axis at most"),
            ({"fsdp": 0}, "should be at least 1, and 0 for one axis at most"),
        ],
    )
    def test_others_are_refused(self, sizes, message):
        with pytest.raises(UserError, match=rf"config\.mesh: .*{message}"):
            make_mesh(make_settings(**sizes))

    def test_a_batch_that_four_devices_cannot_share(self, data_dir, tmp_path):
        call = command("train", tiny_decoder_config(data_dir), tmp_path / "run")
        call["env"]["XLA_FLAGS"] += " --xla_force_host_platform_device_count=3"
        done = subprocess.run(**call, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == (
            "error: config.data.batch_size=4: should be a multiple of the 3 devices\n"
        )
        assert not (tmp_path / "run").exists()


class TestBatches:
    @pytest.mark.parametrize(
        ("batch_size", "sizes", "devices"),
        [(1, {"data": 2}, 2), (6, {"data": 2, "fsdp": 2}, 4), (2, {"fsdp": 4, "tensor": 2}, 4)],
    )
    def test_fall_evenly(self, batch_size, sizes, devices):
        data, mesh = base_config().data, abstract_mesh(**sizes)
        data.batch_size = batch_size
        message = rf"batch_size={batch_size}: .* multiple of the {devices} devices"
        with pytest.raises(UserError, match=message):
            check_batch(data, mesh)
        data.batch_size = batch_size * devices
        check_batch(data, mesh)

    def test_micro_batches_fall_evenly_too(self):
        data, mesh = base_config().data, abstract_mesh(data=2)
        data.batch_size = 12
        check_batch(data, mesh, accumulate=3)
        data.batch_size = 8
        with pytest.raises(UserError) as error:
            check_batch(data, mesh, accumulate=3)
        assert str(error.value) == (
            "config.data.batch_size=8: should be a multiple of config.training.accumulate=3 times "
            "the 2 devices"
        )

    def test_rows_fall_evenly(self):
        data = base_config().data
        data.train_length = 66
        with pytest.raises(UserError, match=r"train_length=66: .* config\.mesh\.sequence=4"):
            check_batch(data, abstract_mesh(sequence=4))
        check_batch(data, abstract_mesh(sequence=2))

    @pytest.mark.parametrize("put", [shard_batch, spread_batch])
    def test_are_split_by_rows_and_tokens(self, mesh, put):
        arrays = {
            "tokens": np.arange(12, dtype=np.int32).reshape(4, 3),
            "targets": np.arange(8, dtype=np.int32).reshape(4, 2),
        }
        batch = put(arrays, mesh)
        for name, expected in arrays.items():
            np.testing.assert_array_equal(batch[name], expected)
        assert batch["tokens"].sharding.spec == P(("data", "fsdp"), "sequence")
        assert batch["targets"].sharding.spec == P(("data", "fsdp"))


class _Device:
    """A device of another process."""

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("shape", "processes", "expected"),
    [
        # data, fsdp, sequence, tensor; the process of each device; what process 0 reads
        ((4, 1, 1, 1), [0, 0, 1, 1], (0, 2)),
        ((2, 2, 1, 1), [0, 1, 2, 3], (0, 4)),
        ((1, 2, 1, 2), [0, 0, 1, 1], (0, 2)),
        ((1, 1, 4, 1), [0, 0, 1, 1], (0, 1)),  # all read all rows, and put some of each's tokens
        ((2, 1, 2, 1), [0, 1, 0, 1], (0, 1)),
        ((4, 1, 1, 1), [0, 1, 0, 1], (0, 1)),  # rows from here and there
    ],
)
def test_a_process_reads_what_its_devices_hold(shape, processes, expected):
    devices = np.array([_Device(i) for i in processes], dtype=object).reshape(shape)
    assert process_share(Mesh(devices, MESH_AXES)) == expected


class TestParameters:
    """Of models as they are built; a tree of shapes is enough."""

    def shardings(self, family, **sizes):
        settings = base_config().model
        settings.update(family=family, num_layers=1, hidden_size=32, intermediate_size=64)
        settings.update(key_size=16, num_heads=4 if family == "decoder" else 1)
        methods = read_methods("kerple_log", 16)
        model = nnx.eval_shape(lambda: build_model(settings, methods, 256, 0))
        params = nnx.to_pure_dict(nnx.state(model))
        found = shardings_of(params, abstract_mesh(**sizes), splits_of(model))
        leaves = jax.tree_util.tree_leaves_with_path(found)
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): sharding.spec
            for path, sharding in leaves
        }

    def test_of_a_decoder(self):
        specs = self.shardings("decoder", fsdp=2, tensor=2)
        assert specs.pop("embedding.embedding") == P("tensor", "fsdp")
        columns = {name for name, spec in specs.items() if spec == P(None, "fsdp", "tensor")}
        lines = {name for name, spec in specs.items() if spec == P(None, "tensor", "fsdp")}
        layer = "layers."
        assert columns == {
            f"{layer}{name}.kernel"
            for name in (
                "self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj",
                "mlp.gate_proj", "mlp.up_proj",
            )
        }  # fmt: skip
        assert lines == {f"{layer}self_attention.o_proj.kernel", f"{layer}mlp.down_proj.kernel"}
        rest = {spec for name, spec in specs.items() if name not in columns | lines}
        assert all(axis is None for spec in rest for axis in spec)

    def test_of_a_gau(self):
        specs = self.shardings("gau", fsdp=2, tensor=2)
        split = {name for name, spec in specs.items() if any(axis for axis in spec)}
        assert split >= {"word_embedding.embedding", "layers.i_dense.kernel"}
        assert specs["layers.o_dense.kernel"] == P(None, "tensor", "fsdp")

    def test_an_axis_that_does_not_divide_is_left_out(self):
        specs = self.shardings("decoder", fsdp=3, tensor=2)
        assert specs["layers.mlp.up_proj.kernel"] == P(None, None, "tensor")

    def test_are_placed(self, mesh):
        tree = {"layers": {"mlp": {"kernel": np.ones((3, 4, 6), np.float32)}}}
        placed = place(tree, shardings_of(tree, mesh, {"layers.mlp.kernel": COLUMNS}))
        kernel = placed["layers"]["mlp"]["kernel"]
        assert kernel.sharding.spec == P(None, "fsdp", "tensor")
        np.testing.assert_array_equal(kernel, 1.0)


LOWER = """
import jax, numpy as np, optax
from flax import nnx
from lenext.config import base_config, read_methods
from lenext.models import build_model
from lenext.parallel.meshes import make_mesh, place, shard_batch, shardings_of, splits_of
from lenext.training.step import init_state, make_train_step

config, optimizer = base_config(), optax.sgd(0.1)
mesh = make_mesh(config.mesh)
config.model.num_layers = 1
model = build_model(config.model, read_methods("softmax", 16), 258, 0)
state = init_state(model, optimizer)
shardings = shardings_of(state, mesh, splits_of(model))
step = make_train_step(
    nnx.graphdef(model), optimizer, seed=0, dropout=False, accumulate=2, mesh=mesh,
    shardings=shardings,
)
batch = {name: np.ones((8, 3), np.int32) for name in ("predicted", "targets")}
batch |= {"tokens": np.ones((8, 16), np.int32), "weights": np.ones((8, 3), np.float32)}
state = place(state, shardings)
print(step.lower(state, shard_batch(batch, mesh), np.int32(1)).compile().as_text())
"""


def test_micro_batches_stay_on_the_devices_that_hold_them():
    """Each of two devices works on 2 rows of either micro-batch of 4, and only sums travel."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", LOWER],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    collectives = re.findall(r"(all-\w+|collective-permute|reduce-scatter)\(", done.stdout)
    assert set(collectives) == {"all-reduce"}
    assert "f32[2,16,128]" in done.stdout
    assert "f32[4,16,128]" not in done.stdout
