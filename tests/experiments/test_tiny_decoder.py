"""The tiny decoder's experiment, on runs of a few steps."""

import json

import pytest

from configs import decoder
from experiments import tiny_decoder
from tests.training.common import read_metrics, tiny_decoder_config


@pytest.fixture
def shrunk(monkeypatch, tmp_path_factory):
    data_dir = tmp_path_factory.getbasetemp() / "tfds"

    def get_config(arg):
        method = arg.split(",")[0]
        config = tiny_decoder_config(data_dir, method)
        config.training.update(steps=4, eval_every=4, checkpoint_every=4)
        # The sweep as the config file has it; for softmax a shorter one.
        config.eval.methods = decoder.get_config(arg).eval.methods
        if method == "softmax":
            config.eval.methods = "softmax,rerope"
        return config

    monkeypatch.setattr(tiny_decoder, "get_config", get_config)


def test_rows_pictures_and_equal_budgets(shrunk, tmp_path):
    records, about = tiny_decoder.run(tmp_path / "runs", "tiny")
    rows = ["softmax", "rerope", "lssa", "lssa → lssar", "lssar"]
    assert [*dict.fromkeys(r["method"] for r in records)] == rows
    assert {r["method"] for r in records if r["unsuited"]} == {"lssa → lssar"}

    configs = []
    for method in ("softmax", "lssa", "lssar"):
        workdir = tmp_path / "runs" / f"tiny_{method}"
        config = json.loads((workdir / "config.json").read_text())
        assert config["model"].pop("method") == method
        config["eval"].pop("methods")
        configs.append(config)
        assert read_metrics(workdir)[-1]["step"] == 4
    assert configs[0] == configs[1] == configs[2]

    tiny_decoder.write(records, about, tmp_path / "results", 16)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "tiny_decoder.json", "tiny_decoder.md", "tiny_decoder.png", "tiny_decoder_by_position.png",
    }  # fmt: skip
    table = (tmp_path / "results" / "tiny_decoder.md").read_text()
    assert "| lssa → lssar † |" in table
    content = json.loads((tmp_path / "results" / "tiny_decoder.json").read_text())
    assert content["records"] == records
    assert {"git", "versions", "time", "config", "seeds", "fingerprint"} <= content.keys()
    # Again: nothing is trained anew, and the figures are the same.
    again, _ = tiny_decoder.run(tmp_path / "runs", "tiny")
    assert [r["value"] for r in again] == [r["value"] for r in records]
