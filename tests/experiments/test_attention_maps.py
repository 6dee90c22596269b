"""The experiment on attention maps: its figures by hand, and the whole on runs of a few steps."""

import json

import matplotlib.image
import numpy as np
import pytest

from experiments import attention_maps
from lenext.models.pretrained import load_run
from tests.training.common import read_metrics, tiny_config

METHODS = ("softmax", "windowed(window=4)+entropy_matched")


@pytest.fixture
def shrunk(monkeypatch, tmp_path_factory):
    data_dir = tmp_path_factory.getbasetemp() / "tfds"

    def get_config(size):
        del size
        config = tiny_config(data_dir)
        config.training.update(steps=4, eval_every=4, checkpoint_every=4)
        config.eval.update(lengths="16,64", calibration_documents=2, calibration_tokens=64)
        return config

    for name, value in {
        "get_config": get_config, "METHODS": METHODS, "SCALES": (8,), "KEPT": 8, "STEPS": 3,
        "DOCUMENTS": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(attention_maps, name, value)


def test_share_by_distance():
    first = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])
    second = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4]])
    share = attention_maps.share_by_distance(np.stack([first, second])[:, None, None])
    np.testing.assert_allclose(share, [[2.3 / 3, 0.5 / 3, 0.2 / 3], [2.4 / 3, 0, 0.6 / 3]])
    # Of two documents (or heads), the mean of both.
    both = attention_maps.share_by_distance(np.stack([first, second])[None, :, None])
    np.testing.assert_allclose(both, [[4.7 / 6, 0.5 / 6, 0.8 / 6]])
    # 0.933 of the weight is nearer than 2 in the first, and 0.8 in the second.
    assert attention_maps.effective_window(share) == [2, 3]


def test_all_is_trained_measured_and_drawn(shrunk, tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    attention_maps.run(runs, results)
    names = ["cosscale_8_3", "quickstart", "softmax_3"]
    assert sorted(path.name for path in runs.iterdir()) == names
    assert [read_metrics(runs / name)[-1]["step"] for name in names] == [3, 4, 3]
    configs = []
    for name in ("softmax_3", "cosscale_8_3"):
        config = json.loads((runs / name / "config.json").read_text())
        configs.append(config)
        config["model"].pop("method")
        config.pop("eval")
    assert configs[0] == configs[1]
    assert (runs / "quickstart" / "calibration.json").exists()

    pictures = ["attention_maps.png", "cosscale_window.png", "entropy_by_length.png"]
    files = ["attention_maps.json", "attention_maps.md", *pictures]
    assert sorted(path.name for path in results.iterdir()) == sorted(files)
    for name in pictures:
        picture = matplotlib.image.imread(results / name)
        assert picture.std() > 0.05, f"{name} is blank"

    content = json.loads((results / "attention_maps.json").read_text())
    assert {"git", "versions", "time", "trained"} <= content["provenance"].keys()
    assert {r["method"] for r in content["heads"]} == set(METHODS)
    found = content["cosscale"]
    assert found["length"] == 64
    for share in found["share_by_distance"].values():
        np.testing.assert_allclose(np.sum(share, axis=-1), 1, atol=1e-4)
    # Of 64² pairs (64 - w)(65 - w) are at w or further: 380 at w = 45; 420, over a tenth, at 44.
    assert found["uniform"] == 45
    # The weights trained with c = 8, and themselves.
    name = "cosscale(cos_scale=8)"
    assert found["kept"][name] == found["window"][name]
    table = (results / "attention_maps.md").read_text()
    value = next(
        r["value"] for r in found["records"]
        if (r["method"], r["metric"], r["length"]) == (name, "loss", 64)
    )  # fmt: skip
    assert f"| {name} |" in table
    assert f"{value:.3f}" in table

    # The rows drawn: those of the 16 bytes in the middle.
    workdir = runs / "quickstart"
    tokens = attention_maps.validation_crops(attention_maps.get_config(""))
    assert tokens.shape == (2, 64)
    trained = attention_maps.Trained(load_run(workdir), [], [])
    alone, softmax, windowed = attention_maps.middle_rows(trained, workdir, tokens)
    assert (alone.first, softmax.first, windowed.first) == (24, 0, 0)
    assert alone.maps.shape == (2, 1, 1, 16, 16)
    assert softmax.maps.shape == windowed.maps.shape == (2, 1, 1, 16, 64)
    distance = np.abs(np.arange(24, 40)[:, None] - np.arange(64)[None])
    assert np.all(windowed.maps[..., distance >= 4] == 0)
    assert np.all(softmax.maps > 0)
    np.testing.assert_allclose(windowed.maps.sum(-1), 1, atol=1e-5)
