"""The experiment on attention maps: its figures by hand, and the whole on runs of a few steps."""

import json
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments import attention_maps, infoscale_table, windows
from lenext.config import read_methods
from lenext.models import FAMILIES
from lenext.sweeps.runs import over_seeds
from tests.training.common import tiny_config

METHODS = ("softmax", "windowed(window=4)+entropy_matched")


@pytest.fixture
def shrunk(monkeypatch, tmp_path_factory):
    config = tiny_config(tmp_path_factory.getbasetemp() / "tfds")
    config.training.update(steps=4, eval_every=4, checkpoint_every=4)
    config.eval.update(lengths="16,64", calibration_documents=2, calibration_tokens=64)
    runs = over_seeds("softmax", config, ("softmax",), (0,))
    monkeypatch.setattr(infoscale_table, "softmax_runs", lambda size: runs)
    monkeypatch.setattr(attention_maps, "METHODS", METHODS)
    monkeypatch.setattr(windows, "DOCUMENTS", 2)
    return runs[0]


def test_share_by_distance():
    first = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])
    second = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4]])
    share = windows.share_by_distance(np.stack([first, second])[:, None, None])
    np.testing.assert_allclose(share, [[2.3 / 3, 0.5 / 3, 0.2 / 3], [2.4 / 3, 0, 0.6 / 3]])
    # Of two documents (or heads), the mean of both.
    both = windows.share_by_distance(np.stack([first, second])[None, :, None])
    np.testing.assert_allclose(both, [[4.7 / 6, 0.5 / 6, 0.8 / 6]])
    # 0.933 of the weight is nearer than 2 in the first, and 0.8 in the second.
    assert windows.effective_window(share) == [2, 3]


def test_window_of_rows_that_see_all_alike():
    # Of 64² pairs (64 - w)(65 - w) are at w or further: 380 at w = 45; 420, over a tenth, at 44.
    share = windows.share_by_distance(np.full((1, 1, 1, 64, 64), 1 / 64))
    assert windows.effective_window(share) == [45]


def test_its_methods_are_for_models_that_see_both_ways():
    (run, *_) = infoscale_table.softmax_runs("cpu")
    assert FAMILIES[run.config.model.family].objective == "masked_lm"
    for method in attention_maps.METHODS:
        read_methods(method, run.config.data.train_length, causal=False)


def test_results_go_by_default_where_nothing_is_committed(monkeypatch):
    given = []
    monkeypatch.setattr(attention_maps, "run", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(sys, "argv", ["experiments.attention_maps"])
    attention_maps.main()
    assert given == [(Path("runs/experiments"), Path("runs/results"), "cpu")]


def test_all_is_trained_measured_and_drawn(shrunk, tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    attention_maps.run(runs, results, "smoke")
    workdir = shrunk.workdir(runs)
    assert [path.name for path in runs.iterdir()] == [workdir.name]
    assert (workdir / "calibration.json").exists()

    pictures = ["attention_maps.png", "entropy_by_length.png"]
    files = ["attention_maps.json", "attention_maps.md", *pictures]
    assert sorted(path.name for path in results.iterdir()) == sorted(files)
    for name in pictures:
        picture = matplotlib.image.imread(results / name)
        assert picture.std() > 0.05, f"{name} is blank"

    content = json.loads((results / "attention_maps.json").read_text())
    assert {"git", "versions", "time", "trained", "seeds", "fingerprint"} <= content.keys()
    heads = content["heads"]
    assert {r["method"] for r in heads} == set(METHODS)
    (first,) = (
        r["entropy"] for r in heads if (r["method"], r["length"], r["layer"]) == ("softmax", 16, 0)
    )
    (row,) = (
        line for line in (results / "attention_maps.md").read_text().splitlines()
        if line.startswith("| softmax |")
    )  # fmt: skip
    assert row.startswith(f"| softmax | {first:.2f} / ")

    # The rows drawn: those of the 16 bytes in the middle.
    assert windows.validation_crops(shrunk.config).shape == (2, 64)
    alone, softmax, windowed = attention_maps.middle_rows(shrunk, workdir)
    assert (alone.first, softmax.first, windowed.first) == (24, 0, 0)
    assert alone.maps.shape == (2, 1, 1, 16, 16)
    assert softmax.maps.shape == windowed.maps.shape == (2, 1, 1, 16, 64)
    distance = np.abs(np.arange(24, 40)[:, None] - np.arange(64)[None])
    assert np.all(windowed.maps[..., distance >= 4] == 0)
    assert np.all(softmax.maps > 0)
    np.testing.assert_allclose(windowed.maps.sum(-1), 1, atol=1e-5)
