"""Several devices, which a process has to be told of before it starts JAX."""

import subprocess

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lenext.errors import UserError
from lenext.training.sharding import check_batch, data_mesh, replicate, shard_batch
from tests.training.common import command, read_metrics


def on_four_devices(config, workdir):
    call = command("train", config, workdir)
    call["env"]["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    return subprocess.run(**call, capture_output=True, text=True, check=False)


def test_four_devices_train_as_one_does(config, undisturbed, tmp_path):
    done = on_four_devices(config, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on 4 cpu" in done.stdout
    ours, theirs = read_metrics(tmp_path), read_metrics(undisturbed)
    assert len(ours) == len(theirs) == 12
    for record, expected in zip(ours, theirs, strict=True):
        assert record.keys() == expected.keys()
        for name in record:
            # Sums over the batch in another order, and Adam's division where they are tiny.
            assert record[name] == pytest.approx(expected[name], abs=1e-5), (record["step"], name)


def test_a_batch_that_four_devices_cannot_share(config, tmp_path):
    config.data.batch_size = 6
    done = on_four_devices(config, tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.data.batch_size=6: should be a multiple of the 4 devices\n"
    )
    assert not (tmp_path / "run").exists()


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


def test_batches_are_spread_and_states_copied(mesh):
    batch = shard_batch({"tokens": np.arange(12, dtype=np.int32).reshape(4, 3)}, mesh)
    np.testing.assert_array_equal(batch["tokens"], np.arange(12).reshape(4, 3))
    assert batch["tokens"].sharding.spec == PartitionSpec("data")
    assert replicate({"a": np.ones(3)}, mesh)["a"].sharding.spec == PartitionSpec()
