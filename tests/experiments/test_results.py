"""What is committed under experiments/results says where it comes from, and tables follow it."""

import json

import pytest

from experiments import report, run, sizes
from tests.experiments.common import KEYS
from tests.training.common import REPOSITORY

RESULTS = REPOSITORY / "experiments" / "results"
JSON = sorted(RESULTS.rglob("*.json"))


def test_there_are_results():
    assert {path.stem for path in JSON} >= {"attention", "depth", "loss", "training_step"}


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_every_result_says_where_it_comes_from(path):
    content = json.loads(path.read_text())
    assert content.keys() >= KEYS
    assert content["config"]
    assert content["git"]
    assert {"jax", "python"} <= content["versions"].keys()


@pytest.mark.parametrize("name", run.NAMES)
def test_tables_are_what_their_json_gives(name, tmp_path):
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{name} has no committed results")
    content = json.loads(path.read_text())
    assert content["size"] in sizes.SIZES
    assert len(content["seeds"]) >= 3 or not content["steps"]  # of what others have trained
    files = run.read(name).report(content)
    assert files[".md"] == (RESULTS / f"{name}.md").read_text()
    for end in files:
        assert (RESULTS / f"{name}{end}").exists()


def test_the_page_of_claims_is_what_the_results_give():
    page = report.claims_page(report.load(RESULTS))
    assert page == (REPOSITORY / "experiments" / "README.md").read_text()
