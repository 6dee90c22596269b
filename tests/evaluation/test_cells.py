"""What was measured is kept, cell by cell, and measured once."""

import json
import shutil

import numpy as np
import pytest

from lenext.errors import UserError
from lenext.evaluation import evaluate, sweep
from lenext.evaluation.cells import Cells, digest, digest_of
from lenext.evaluation.compare import paired, read_results, short_names
from lenext.evaluation.protocols import Sequences
from lenext.reporting.records import Cell
from lenext.workdirs.versions import FIGURES_VERSION, results_version
from tests.training.common import tiny_config

METHODS = "softmax,windowed(window=8)"
TIMES = ("seconds", "compile_seconds", "tokens_per_second")


@pytest.fixture
def config(data_dir):
    config = tiny_config(data_dir)
    config.eval.update(methods=METHODS, lengths="16,48")
    return config


@pytest.fixture
def measured(monkeypatch):
    """Lengths of the passes that are compiled, as they come."""
    lengths = []
    real = sweep.make_pass

    def spy(graphdef, params, batch, **how):
        lengths.append(batch["tokens"].shape[1])
        return real(graphdef, params, batch, **how)

    monkeypatch.setattr(sweep, "make_pass", spy)
    return lengths


@pytest.fixture(scope="module")
def done(trained, data_dir, tmp_path_factory):
    """A workdir that was evaluated under METHODS, and its records."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    shutil.copytree(trained(), workdir, ignore=shutil.ignore_patterns("eval"))
    config = tiny_config(data_dir)
    config.eval.update(methods=METHODS, lengths="16,48")
    return workdir, evaluate(config, workdir)


@pytest.fixture
def copy(done, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(done[0], workdir)
    return workdir


def names(workdir):
    return sorted(path.name for path in (workdir / "eval" / "cells").iterdir())


def values(records):
    return [{key: x for key, x in record.items() if key not in TIMES} for record in records]


def test_what_is_there_is_not_measured_again(copy, done, config, measured, capsys):
    assert len(names(copy)) == 4
    assert evaluate(config, copy) == done[1]  # to the seconds that it took
    assert measured == []
    assert "4 of 4 cells are in " in capsys.readouterr().out


def test_what_is_added_is_measured_alone(copy, done, config, measured, capsys):
    config.eval.update(methods="rerope," + METHODS, lengths="16,48,32")
    records = evaluate(config, copy)
    assert sorted(measured) == [16, 32, 32, 32, 48]
    assert "4 of 9 cells are in " in capsys.readouterr().out
    shown = {(r["method"], r["length"]) for r in records}
    assert shown == {(m, n) for m in config.eval.methods.split(",") for n in (16, 32, 48)}
    first = {(r["method"], r["length"], r["metric"]): r["value"] for r in done[1]}
    again = {(r["method"], r["length"], r["metric"]): r["value"] for r in records}
    assert first.items() <= again.items()
    assert len(names(copy)) == 9
    config.eval.update(methods="rerope", lengths="48")
    assert {(r["method"], r["length"]) for r in evaluate(config, copy)} == {("rerope", 48)}
    assert len(names(copy)) == 9


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_a_sweep_that_was_killed_goes_on(copy, done, config, measured, monkeypatch, cells):
    shutil.rmtree(copy / "eval")
    real, left = sweep.run_pass, iter(range(cells))

    def killed(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "run_pass", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, copy)
    assert len(names(copy)) == cells
    assert not (copy / "eval" / "results.json").exists()
    measured.clear()
    assert values(evaluate(config, copy)) == values(done[1])
    assert len(measured) == 4 - cells


@pytest.mark.parametrize(
    "change",
    [
        {"eval.seed": 1},
        {"eval.probe_rows": 3},
        {"eval.documents": 4},
        {"eval.protocol": "single_mask"},
        {"model.dtype": "bfloat16"},
    ],
    ids=str,
)
def test_what_figures_follow_from_is_in_the_key(copy, config, measured, change):
    config.update_from_flattened_dict(change)
    config.eval.lengths = "16"
    evaluate(config, copy)
    assert measured == [16, 16]
    assert len(names(copy)) == 6


def test_what_figures_do_not_follow_from_is_not(copy, done, config, measured):
    config.eval.update(batch_tokens=16, bucket=4.0, margin=0.5, bootstrap=50)
    records = evaluate(config, copy)
    assert measured == []
    assert [r["value"] for r in records] == [r["value"] for r in done[1]]
    assert [r["interval"] for r in records] != [r["interval"] for r in done[1]]


def test_other_weights_are_other_cells(copy, config, measured, capsys):
    seal = copy / "seals" / "8.json"
    seal.write_text(seal.read_text().replace("\n", " \n"))  # another seal that fits as well
    evaluate(config, copy)
    assert len(measured) == 4
    assert (
        f"{copy / 'eval'} showed softmax at 16, 48; windowed(window=8) at 16, 48, and now shows"
        in capsys.readouterr().out
    )
    seal.unlink()  # as where a run was killed before: the files say what the seal said at first
    evaluate(config, copy)
    assert len(measured) == 4


def test_sizes_that_no_weight_shows_are_in_the_key(copy, config, measured):
    path = copy / "config.json"
    stored = json.loads(path.read_text())
    stored["model"]["norm_epsilon"] = 1e-3
    path.write_text(json.dumps(stored))
    config.model.norm_epsilon = 1e-3
    evaluate(config, copy)
    assert len(measured) == 4


def test_a_table_from_before_cells_were_kept(copy, config, capsys):
    path = copy / "eval" / "results.json"
    path.write_text('{"provenance": {}, "records": []}')
    evaluate(config, copy)
    assert f"{path}: was made before cells were kept; what it showed" in capsys.readouterr().out


def test_results_say_where_each_cell_was_measured(copy, config):
    for path in sorted((copy / "eval" / "cells").iterdir())[:1]:
        content = json.loads(path.read_text())
        content["cell"]["provenance"]["git"] = "another revision"
        path.write_text(json.dumps(content))
    evaluate(config, copy)
    source = json.loads((copy / "eval" / "results.json").read_text())["provenance"]
    assert "another revision" in source["git"]
    assert len(source["git"]) == 2
    assert isinstance(source["hardware"], dict)


def test_a_folder_that_cannot_be_written(copy, config, measured, monkeypatch):
    shutil.rmtree(copy / "eval")
    (copy / "eval").mkdir()
    (copy / "eval" / "cells").write_text("a file")
    with pytest.raises(UserError, match=r"cells/.*: cannot be written"):
        evaluate(config, copy)


def test_a_method_by_two_names_is_measured_once(copy, config, measured):
    config.eval.update(methods="trained,softmax,softmax+softmax,rerope", lengths="48")
    records = evaluate(config, copy)
    assert measured == [48]  # rerope's
    config.eval.methods = "rerope+infoscale,infoscale+rerope"
    evaluate(config, copy)
    assert measured == [48, 48]
    by_name = {}
    for record in records:
        by_name.setdefault(record["method"], []).append(record["value"])
    assert by_name["trained"] == by_name["softmax"] == by_name["softmax+softmax"]
    assert by_name["rerope"] != by_name["softmax"]


def test_a_source_that_changes_is_measured_anew(copy, config, measured, tmp_path):
    file = tmp_path / "my_window.py"
    code = (
        "import dataclasses\n"
        "from lenext import register\n"
        "from lenext.attention import Entry\n"
        "from lenext.attention.axes.visibility import Window\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(Window):\n"
        '    """Mine."""\n'
        "register('my_window', Entry(visibility=Mine(window=8)))\n"
    )
    file.write_text(code)
    config.imports = str(file)
    config.eval.update(methods="softmax,my_window", lengths="16")
    evaluate(config, copy)
    assert measured == [16]
    evaluate(config, copy)
    assert measured == [16]
    file.write_text(code + "# another line\n")
    evaluate(config, copy)
    assert measured == [16, 16]  # softmax stays


def test_a_damaged_cell_is_measured_anew(copy, done, config, measured, capsys):
    path = copy / "eval" / "cells" / names(copy)[0]
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert values(evaluate(config, copy)) == values(done[1])
    assert len(measured) == 1
    assert f"{path}: is damaged; measured anew" in capsys.readouterr().out


def test_tables_by_name_share_cells(copy, done, config, measured, capsys):
    before = (copy / "eval" / "results.json").read_bytes()
    config.eval.methods = "softmax"
    records = evaluate(config, copy, name="plain")
    assert measured == []
    assert json.loads((copy / "eval" / "plain" / "results.json").read_text())["records"] == records
    assert (copy / "eval" / "results.json").read_bytes() == before
    assert "now shows what was asked" not in capsys.readouterr().out
    evaluate(config, copy)
    assert (
        f"{copy / 'eval'} showed windowed(window=8) at 16, 48, and now shows what was asked"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["", "cells", "a/b", "..", ".hidden", "a b", "results.json"])
def test_names_that_are_no_folders(copy, config, name):
    with pytest.raises(UserError, match=r"--name=.*: should be letters, digits"):
        evaluate(config, copy, name=name)


def test_where_each_was_measured_is_kept(copy):
    for path in (copy / "eval" / "cells").iterdir():
        content = json.loads(path.read_text())
        assert content["cell"]["provenance"]["results_version"] == results_version()
        assert content["key"]["figures_version"] == FIGURES_VERSION
        assert path.name == Cells.name(content["cell"]["length"], content["key"])


def test_the_effective_length_and_the_work_are_told(copy, done):
    results = json.loads((copy / "eval" / "results.json").read_text())
    assert [r["method"] for r in results["effective_lengths"]] == METHODS.split(",")
    for record in results["effective_lengths"]:
        assert (record["from"], record["longest"], record["margin"]) == (16, 48, 0.05)
        assert record["effective_length"] in (16, 48)
    work = {(r["method"], r["length"]): r["flops"] for r in done[1]}
    assert work["softmax", 16] > work["windowed(window=8)", 16]
    assert 3 < work["softmax", 48] / work["softmax", 16] < 9
    assert all(r["cache_bytes"] is None for r in done[1])  # it does not generate
    text = (copy / "eval" / "results.md").read_text()
    for heading in ("accuracy less softmax's", "effective length", "cost", "work"):
        assert f"## {heading}" in text


def test_digests_follow_all_that_is_asked():
    batch = {"tokens": np.arange(6).reshape(2, 3), "weights": np.ones((2, 3))}
    first = Sequences(batch, np.array([0, 1]))
    other = [
        Sequences(batch | {"tokens": np.arange(1, 7).reshape(2, 3)}, np.array([0, 1])),
        Sequences(batch | {"tokens": np.arange(6).reshape(3, 2)}, np.array([0, 1])),
        Sequences(batch, np.array([0, 2])),
        Sequences(batch, np.array([0, 1]), ordered=True),
    ]
    assert digest_of(first) == digest_of(Sequences(dict(reversed(batch.items())), np.array([0, 1])))
    assert len({digest_of(x) for x in [first, *other]}) == 5


def test_a_file_under_another_key_is_not_taken(tmp_path):
    cells = Cells(tmp_path)
    cell = Cell(
        length=8, protocol="mlm15", documents=[0], sequences=1, tokens=8, seconds=1.0,
        compile_seconds=1.0, peak_bytes=1, flops=1.0, cache_bytes=None, unsuited=[], sums=[],
    )  # fmt: skip
    cells.keep({"a": 1}, cell)
    assert cells.find(8, {"a": 1}) == cell
    assert cells.find(8, {"a": 2}) is None
    (tmp_path / Cells.name(8, {"a": 1})).rename(tmp_path / Cells.name(8, {"a": 2}))
    assert cells.find(8, {"a": 2}) is None
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


class TestCompare:
    def test_evaluations_are_paired(self, copy, done, config, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(copy, other)
        config.eval.update(methods="rerope,softmax", lengths="48,32")
        evaluate(config, other)
        first, second = paired([read_results(copy, "a"), read_results(other, "b")])
        assert [row.label for row in first] == ["a: softmax", "a: windowed(window=8)"]
        assert [row.label for row in second] == ["b: rerope", "b: softmax"]
        lengths = {cell.length for row in [*first, *second] for cell in row.by_seed[0]}
        assert lengths == {48}  # which both have
        assert first[0].by_seed == second[1].by_seed

    def test_other_questions_are_refused(self, copy, config, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(copy, other)
        config.eval.update(seed=1, lengths="48", methods="softmax")
        evaluate(config, other)
        with pytest.raises(UserError, match="b: was asked other sequences than a at 48; same data"):
            paired([read_results(copy, "a"), read_results(other, "b")])
        config.eval.update(lengths="32")
        evaluate(config, other)
        with pytest.raises(UserError, match="no length is common to all: a: 16, 48; b: 32"):
            paired([read_results(copy, "a"), read_results(other, "b")])

    def test_what_is_not_there(self, copy, tmp_path):
        with pytest.raises(UserError, match=r"holds no evaluation; python -m lenext.evaluate"):
            read_results(tmp_path, "a")
        (copy / "eval" / "cells" / names(copy)[0]).unlink()
        with pytest.raises(UserError, match="some of what it shows is not there; evaluate again"):
            read_results(copy, "a")

    def test_tables_by_name_can_be_compared(self, copy, config):
        config.eval.methods = "windowed(window=8)"
        evaluate(config, copy, name="apart")
        found = read_results(copy / "eval" / "apart", "apart")
        assert [*found.cells] == ["windowed(window=8)"]
        assert found.headline == "accuracy"

    def test_names_are_as_short_as_they_can_be(self, tmp_path):
        a, b, c = tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"
        assert short_names([a, c]) == ["run", "z"]
        assert short_names([a, b]) == ["x/run", "y/run"]
