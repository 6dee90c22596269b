"""Results are versioned by hand: who changes one raises its number, who moves code raises none."""

import json

import numpy as np
import pytest

from lenext.attention import catalogue
from lenext.attention.catalogue import CATALOGUE, Entry
from lenext.workdirs.versions import changes, outside_sources, results_version
from tests.workdirs import golden_versions

# Digits hold on one machine only: another processor sums in another order, and training carries
# that on. Within these, a change of formula shows (the least of them moves figures by percents).
TRAINING = {"rtol": 2e-4}
FIGURES = {"rtol": 5e-3, "atol": 5e-3}
METHODS = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def golden():
    return json.loads(golden_versions.FILE.read_text())


def test_the_golden_figures_are_of_the_present_versions(golden):
    again = "raised: make the figures anew with python -m tests.workdirs.golden_versions"
    assert golden["results_version"] == results_version(), again


def close(found, golden, tolerance, version):
    assert found.keys() == golden.keys()
    for name, value in golden.items():
        hint = f"{name} changed: if that is meant, raise {version} and make the figures anew"
        np.testing.assert_allclose(found[name], value, err_msg=hint, **tolerance)


def test_what_is_trained_and_measured_is_of_these_versions(golden, tmp_path):
    losses, figures = golden_versions.trained_figures(tmp_path)
    close(losses, golden["training"], TRAINING, "TRAINING_VERSION")
    assert figures.keys() == golden["figures"].keys()
    for name, found in figures.items():
        close(found, golden["figures"][name], FIGURES, "FIGURES_VERSION")


def test_methods_are_of_this_version(golden):
    close(golden_versions.method_figures(), golden["methods"], METHODS, "FIGURES_VERSION")


def test_only_what_differs_from_the_defaults_counts():
    defaults = {"seed": 0, "data": {"length": 64, "task": ""}, "runs": {"a": {"x": 1}}}
    assert changes(defaults, defaults) == {}
    ours = {"seed": 1, "data": {"length": 64, "task": ""}, "runs": {"b": {"x": 1}}}
    assert changes(ours, defaults) == {"seed": 1, "runs.a": None, "runs.b": {"x": 1}}
    # A key that is newer than the run, at its default.
    assert changes({**ours, "mesh": 1}, {**defaults, "mesh": 1}) == changes(ours, defaults)


SOURCE = """
import dataclasses
from lenext.attention.catalogue import CATALOGUE, Entry
from lenext.attention.axes.axis import Temperature, option

@dataclasses.dataclass(frozen=True)
class Twice(Temperature):
    factor: float = option(2.0, float)

    def __call__(self, rows, q, params):
        return self.factor * rows.n
"""


def test_what_is_registered_from_outside_counts_by_its_source(tmp_path, monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "outside_methods.py"
    file.write_text(SOURCE)
    module = importlib.import_module("outside_methods")
    monkeypatch.setitem(CATALOGUE, "twice", Entry("a test", temperature=module.Twice()))
    monkeypatch.setitem(CATALOGUE, "named", Entry("a test", position=CATALOGUE["yarn"].position))
    assert outside_sources(["softmax", "rerope(window=32)+yarn"]) == {}
    before = outside_sources(["rerope(window=4)+twice|softmax"])
    assert set(before) == {"twice"}
    file.write_text(SOURCE + "# edited\n")
    assert outside_sources(["twice"]) == before  # which is what still runs
    module = importlib.reload(module)
    monkeypatch.setitem(CATALOGUE, "twice", Entry("a test", temperature=module.Twice()))
    after = outside_sources(["twice"])
    assert after != before
    # What a choice derives from counts where it lies in another file, and code that was typed in.
    beside = tmp_path / "outside_base.py"
    beside.write_text("from outside_methods import Twice\nclass Thrice(Twice): pass\n")
    derived = importlib.import_module("outside_base").Thrice
    monkeypatch.setitem(CATALOGUE, "thrice", Entry("a test", temperature=derived()))
    assert set(after["twice"]) & set(outside_sources(["thrice"])["thrice"])
    typed = []
    for factor in (1, 2):
        space = {"Twice": module.Twice, "__name__": "typed_in"}
        exec(f"class Typed(Twice):\n def __call__(self, *x): return {factor}", space)
        monkeypatch.setitem(CATALOGUE, "typed", Entry("a test", temperature=space["Typed"]()))
        typed.append(outside_sources(["typed"]))
    assert typed[0] != typed[1]
    # A name for choices of lenext's own counts by what it chooses.
    named = outside_sources(["named"])
    monkeypatch.setitem(CATALOGUE, "named", Entry("a test", position=CATALOGUE["ntk"].position))
    assert outside_sources(["named"]) != named
    assert catalogue.BUILT_IN.isdisjoint({"twice", "named"})
