"""python -m lenext.compare: evaluations of several runs as one table and one picture."""

import csv
import json
import shutil

import pytest

from tests.cli.conftest import untrained_run
from tests.training.common import tiny_config


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """Two runs of other seeds."""
    folder = tmp_path_factory.mktemp("compared")
    for name, seed, method in (("one", 0, "softmax"), ("two", 1, "log_length")):
        config = tiny_config(data_dir)
        config.update(seed=seed)
        config.model.method = method
        untrained_run(config, folder / name)
    return folder


def test_two_runs_side_by_side(call, runs, tmp_path):
    one, two = runs / "one", runs / "two"
    lengths = ("--config.eval.lengths=16,48", "--config.eval.lengths=16,32,48")
    for workdir, which in zip((one, two), lengths, strict=True):
        words = (f"--workdir={workdir}", "--config.eval.methods=trained,rerope", which)
        assert call("evaluate", *words).code == 0
    outcome = call("compare", one, two, f"--target={tmp_path}/c")
    assert outcome.code == 0, outcome.err
    rows = [line.split()[0:2] for line in outcome.out.splitlines()[1:5]]
    assert rows == [
        ["one:", "trained"],
        ["one:", "rerope"],
        ["two:", "trained"],
        ["two:", "rerope"],
    ]
    assert "Left out, as not all have them: lengths 32." in outcome.out

    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    found = {(r["method"], r["length"], r["metric"]): r for r in content["records"]}
    for name, workdir in (("one", one), ("two", two)):
        own = json.loads((workdir / "eval" / "results.json").read_text())["records"]
        for record in own:
            if record["length"] != 32:
                ours = found[f"{name}: {record['method']}", record["length"], record["metric"]]
                assert ours["value"] == record["value"]
                assert ours["interval"] == record["interval"]
    # To the first run's first method, on the same documents.
    base, other = (found[f"{name}: trained", 48, "loss"] for name in ("one", "two"))
    assert other["difference"] == other["value"] - base["value"] != 0
    low, high = other["difference_interval"]
    assert low <= other["difference"] <= high
    assert (base["trained"], other["trained"]) == ("softmax", "log_length")
    with (tmp_path / "c" / "compare.csv").open() as file:
        assert len([*csv.DictReader(file)]) == len(content["records"])
    text = (tmp_path / "c" / "compare.md").read_text()
    assert "## accuracy less one: trained's" in text
    assert "## effective length" in text
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")

    again = call("compare", two, one, f"--target={tmp_path}/c")
    assert again.out.splitlines()[1].startswith("two: trained")


def test_mistakes_are_one_line(fails, runs, tmp_path):
    one = tmp_path / "one"
    shutil.copytree(runs / "one", one, ignore=shutil.ignore_patterns("eval"))
    assert fails("compare", one).startswith("should be given two different folders or more")
    assert fails("compare", one, one).startswith("should be given two different folders or more")
    assert fails("compare", one, tmp_path).startswith(f"{one}: holds no evaluation; python -m")
    assert fails("compare", "--nope", one, tmp_path).startswith("Unknown command line flag 'nope'")
    (one / "eval").mkdir()
    (one / "eval" / "results.json").write_text("{}")
    assert "some of what it shows is not there; evaluate again" in fails("compare", one, tmp_path)
    assert not (tmp_path / "runs").exists()
