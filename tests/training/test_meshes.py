"""Meshes of several devices, and several processes, train and evaluate as one device does."""

import json
import os
import subprocess
import sys

import pytest

from lenext.attention.catalogue import CATALOGUE
from lenext.evaluation import evaluate
from lenext.training import train
from tests.training.common import REPOSITORY, arguments, read_metrics
from tests.training.mesh_runs import FAMILIES, LAYOUTS, TILED, family_config


@pytest.fixture(scope="module")
def on_four_devices(data_dir, alone, tmp_path_factory):
    """The folder that `mesh_runs` fills. The data, which `alone` prepared, is there before."""
    out = tmp_path_factory.mktemp("meshes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.mesh_runs", str(data_dir), str(out)],
        cwd=REPOSITORY,
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on 4 cpu (tensor=4)") == len(FAMILIES) + 1
    return out


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """By family, the workdir of a run on one device, evaluated."""
    found = {}
    for family in FAMILIES:
        config = family_config(family, data_dir)
        found[family] = tmp_path_factory.mktemp(f"alone_{family}")
        train(config, found[family])
        evaluate(config, found[family])
    return found


def assert_same_metrics(workdir, other):
    """Sums in another order, and Adam's division where they are tiny: 1e-5."""
    ours, theirs = read_metrics(workdir), read_metrics(other)
    assert len(ours) == len(theirs) == 6
    for record, expected in zip(ours, theirs, strict=True):
        assert record.keys() == expected.keys()
        for name in record:
            assert record[name] == pytest.approx(expected[name], abs=1e-5), (record["step"], name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mesh_trains_as_one_device_does(on_four_devices, alone, family, layout):
    assert_same_metrics(on_four_devices / f"{family}_{layout}", alone[family])


@pytest.mark.parametrize("layout", ["data", "sequence"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mesh_evaluates_as_one_device_does(on_four_devices, alone, family, layout):
    """Lengths that do not fall evenly onto the devices too."""
    ours, theirs = (
        json.loads((folder / "eval" / "results.json").read_text())["records"]
        for folder in (on_four_devices / f"{family}_{layout}", alone[family])
    )
    assert len(ours) == len(theirs) > 20
    for record, expected in zip(ours, theirs, strict=True):
        for key in ("method", "length", "metric", "documents", "predictions"):
            assert record[key] == expected[key]
        # Weights differ by 1e-6 or so, and a hit among a hundred may turn.
        slack = 0.02 if record["metric"] == "accuracy" else 1e-4
        assert record["value"] == pytest.approx(expected["value"], rel=1e-4, abs=slack), record


@pytest.mark.parametrize(
    "name", [f"{n}, naive" for n in CATALOGUE] + [f"{n}, blockwise" for n in TILED]
)
def test_queries_split_over_devices_attend_alike(on_four_devices, name):
    """Padded, packed rows; by blocks, gradients, too."""
    found = json.loads((on_four_devices / "attention.json").read_text())
    assert found[name] < 2e-5


def test_a_run_goes_on_on_other_devices(on_four_devices, alone, data_dir):
    """What four devices began, in parts of theirs, one goes on with, on the same data."""
    config = family_config("decoder", data_dir)
    workdir = on_four_devices / "moved"
    assert len(read_metrics(workdir)) < 6
    train(config, workdir)
    assert_same_metrics(workdir, alone["decoder"])


# Each mesh once: which family meets which is above, in one process.
@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("gau", {"data": 1, "fsdp": 2, "tensor": 2}),
        ("decoder", {"data": 2, "sequence": 2}),
        ("decoder", {"data": 1, "sequence": 4}),
    ],
)
def test_two_processes_train_as_one_does(alone, data_dir, tmp_path, family, mesh):
    config = family_config(family, data_dir)
    config.mesh.update(mesh)
    file = "quickstart" if family == "gau" else "decoder"
    done = subprocess.run(
        [
            "launch/local.sh", "2", "--devices=2", "--",
            *arguments(config, file), f"--workdir={tmp_path / 'run'}",
        ],
        cwd=REPOSITORY, env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on 4 cpu" in done.stdout
    assert_same_metrics(tmp_path / "run", alone[family])
