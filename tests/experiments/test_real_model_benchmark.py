"""The benchmark beside transformers, on a small imported model."""

import json
import re

import numpy as np
import pytest

from experiments.benchmarks import measure, real_model
from lenext.errors import UserError
from lenext.importing import import_checkpoint
from tests.importing.conftest import GOLDEN

MISSING = "torch not installed: so says the test"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(measure, "gemm_rates", lambda: {"jax": 100.0})
    tokens = np.random.default_rng(0).integers(3, 37, 100)
    monkeypatch.setattr(real_model, "text_tokens", lambda config, count: tokens[:count])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    place = tmp_path_factory.mktemp("real") / "run"
    import_checkpoint(GOLDEN / "llama", place)
    return place


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_both_compute_the_same(workdir, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: there is no peer")
    torch = pytest.importorskip("torch")
    # As it is: compiling would take longer than all else here.
    with torch._dynamo.config.patch(disable=True):
        real_model.run(workdir, [16, 24], [8], 2, tmp_path, drawn=5)
    content = json.loads((tmp_path / "real_model.json").read_text())
    assert "transformers" in content["versions"]
    records = content["records"]
    both = ["lenext", "transformers"]
    caches = [f"transformers, static cache{end}" for end in ("", ", compiled")]
    assert [(r["what"], r["candidate"]) for r in records] == [
        *((what, name) for what in ("loss at 16", "loss at 24") for name in both),
        *(("4 tokens after 8", name) for name in (*both, *caches)),
    ]
    seconds = {(r["what"], r["candidate"]): r["seconds"] for r in records}
    for r in records:
        assert r["seconds"] == np.median(r["times"])
        assert r["ratio"] == r["seconds"] / seconds[r["what"], "transformers"]
    text = (tmp_path / "real_model.md").read_text()
    assert len(re.findall(r"^\| (loss|4 tokens)", text, flags=re.MULTILINE)) == 8


def test_alone(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "why_no_torch", lambda: MISSING)
    real_model.run(workdir, [16], [8], 1, tmp_path, drawn=5)
    records = json.loads((tmp_path / "real_model.json").read_text())["records"]
    assert {r["candidate"] for r in records} == {"lenext"}
    assert {r["ratio"] for r in records} == {None}
    assert f"- {MISSING}\n" in (tmp_path / "real_model.md").read_text()


@pytest.mark.parametrize(
    ("mine", "theirs", "agree"),
    [(1.0, 1.00009, True), (1.0, 1.0002, False), (1.0, float("nan"), False), ([1, 2], [1, 2], True),
     ([1, 2], [1, 3], False), ([1, 2], [1], False)],
)  # fmt: skip
def test_what_is_not_the_same_is_not_timed(mine, theirs, agree):
    found = {"lenext": mine, "transformers": theirs}
    if agree:
        real_model.check_parity(found, "a")
    else:
        with pytest.raises(real_model.ParityError, match="a: transformers has"):
            real_model.check_parity(found, "a")


def test_a_workdir_without_a_model(tmp_path):
    with pytest.raises(UserError, match="holds no model; `make smollm2` fetches and imports one"):
        real_model.run(tmp_path, [16], [8], 1, tmp_path)
