"""Several devices, which a process has to be told of before it starts JAX."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lenext.errors import UserError
from lenext.training.sharding import check_batch, data_mesh, replicate, shard_batch
from tests.training.common import REPOSITORY, command, read_metrics


def on_devices(count, config, workdir):
    call = command("train", config, workdir)
    call["env"]["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    return subprocess.run(**call, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("devices", "accumulate"), [(4, 1), (2, 2)])
def test_several_devices_train_as_one_does(config, undisturbed, tmp_path, devices, accumulate):
    config.training.accumulate = accumulate
    done = on_devices(devices, config, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"on {devices} cpu" in done.stdout
    ours, theirs = read_metrics(tmp_path), read_metrics(undisturbed)
    assert len(ours) == len(theirs) == 12
    for record, expected in zip(ours, theirs, strict=True):
        assert record.keys() == expected.keys()
        for name in record:
            # Sums over the batch in another order, and Adam's division where they are tiny.
            assert record[name] == pytest.approx(expected[name], abs=1e-5), (record["step"], name)


def test_a_batch_that_four_devices_cannot_share(config, tmp_path):
    config.data.batch_size = 6
    done = on_devices(4, config, tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.data.batch_size=6: should be a multiple of the 4 devices\n"
    )
    assert not (tmp_path / "run").exists()


LOWER = """
import jax, numpy as np, optax
from flax import nnx
from lenext.config import base_config, read_methods
from lenext.models import build_model
from lenext.training.sharding import data_mesh, replicate, shard_batch
from lenext.training.step import init_state, make_train_step

mesh, optimizer = data_mesh(), optax.sgd(0.1)
settings = base_config().model
settings.num_layers = 1
model = build_model(settings, read_methods("softmax", 16), 258, 0)
step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=False, accumulate=2)
batch = {name: np.ones((8, 3), np.int32) for name in ("positions", "targets")}
batch |= {"tokens": np.ones((8, 16), np.int32), "weights": np.ones((8, 3), np.float32)}
state = replicate(init_state(model, optimizer), mesh)
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


@pytest.fixture
def mesh():
    return data_mesh()


def test_the_mesh_has_all_devices(mesh):
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 2), (6, 4), (2, 4)])
def test_batches_fall_evenly(batch_size, devices):
    mesh = Mesh(np.array([jax.devices()[0]] * devices), ("data",))
    with pytest.raises(UserError, match=rf"batch_size={batch_size}: .* multiple of the {devices} "):
        check_batch(batch_size, mesh)
    check_batch(batch_size * devices, mesh)


def test_micro_batches_fall_evenly_too():
    mesh = Mesh(np.array([jax.devices()[0]] * 2), ("data",))
    check_batch(12, mesh, accumulate=3)
    with pytest.raises(UserError) as error:
        check_batch(8, mesh, accumulate=3)
    assert str(error.value) == (
        "config.data.batch_size=8: should be a multiple of config.training.accumulate=3 times "
        "the 2 devices"
    )


def test_batches_are_spread_and_states_copied(mesh):
    batch = shard_batch({"tokens": np.arange(12, dtype=np.int32).reshape(4, 3)}, mesh)
    np.testing.assert_array_equal(batch["tokens"], np.arange(12).reshape(4, 3))
    assert batch["tokens"].sharding.spec == PartitionSpec("data")
    assert replicate({"a": np.ones(3)}, mesh)["a"].sharding.spec == PartitionSpec()
