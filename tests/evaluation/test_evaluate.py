import csv
import json
import math
import shutil

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx

from lenext.attention import make_method
from lenext.data import ByteTokenizer, evaluation_crops, load_corpus, masked_crops
from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.models import build_model
from lenext.workdirs.checkpoints import Checkpoints
from tests.training.common import read_metrics, snapshot, tiny_config

KEYS = {
    "method", "length", "metric", "protocol", "value", "interval", "documents", "tokens",
    "seconds", "peak_bytes",
}  # fmt: skip
HEADS = ("entropy", "dilution", "gap_scale", "max_logit", "sink_weight")
METHODS = ["softmax", "rerope(window=16)+infoscale", "cosscale", "windowed(window=8)|softmax"]


@pytest.fixture(scope="module")
def results(trained, data_dir, tmp_path_factory):
    """(workdir, records, what was printed) of one sweep; its files are in workdir/eval."""
    workdir = trained()
    config = tiny_config(data_dir)
    config.eval.update(methods=",".join(METHODS), lengths="48,16")
    return workdir, evaluate(config, workdir)


def table(records, metric="accuracy"):
    return {(r["method"], r["length"]): r for r in records if r["metric"] == metric}


def test_records_are_as_promised(results):
    _, records = results
    for record in records:
        assert record.keys() >= KEYS
        assert record["protocol"] == "mlm15"
        assert math.isfinite(record["value"])
        assert record["interval"][0] <= record["value"] <= record["interval"][1]
    assert table(records).keys() == {(m, n) for m in METHODS for n in (16, 48)}
    assert {r["metric"] for r in records} == {"accuracy", "loss", *HEADS}


def test_heads_are_as_their_means(results):
    """The run has two layers of one head; entropy is the mean over them."""
    workdir, records = results
    with (workdir / "eval" / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    heads = json.loads((workdir / "eval" / "results.json").read_text())["heads"]
    assert [{k: str(v) for k, v in head.items()} for head in heads] == rows
    assert rows[0].keys() == {"method", "length", "layer", "head", *HEADS}
    for (method, length), record in table(records, "entropy").items():
        found = [h for h in heads if (h["method"], h["length"]) == (method, length)]
        assert [(h["layer"], h["head"]) for h in found] == [(0, 0), (1, 0)]
        mean = sum(h["entropy"] for h in found) / 2
        # The record's is over documents' sums, as they have crops.
        assert mean == pytest.approx(record["value"], rel=1e-5)
        assert 0 < mean < math.log(length)


def test_methods_are_named_as_typed(results):
    _, records = results
    assert [*dict.fromkeys(r["method"] for r in records)] == METHODS


def test_the_baseline_differs_from_itself_by_nothing(results):
    _, records = results
    for record in records:
        if record["method"] == "softmax":
            assert record["difference"] == 0.0
            assert record["difference_interval"] == [0.0, 0.0]


def test_methods_that_want_other_weights_are_marked(results):
    _, records = results
    for record in records:
        wanted = ["similarity"] if record["method"] == "cosscale" else []
        assert record["unsuited"] == wanted


def test_methods_differ(results):
    _, records = results
    losses = {
        r["method"]: r["value"] for r in records if (r["length"], r["metric"]) == (48, "loss")
    }
    assert len(set(losses.values())) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_figures_equal_a_plain_evaluation(results, config, data_dir, method):
    """Restore, swap the method, take logits over all tokens, count."""
    workdir, records = results
    pattern = [make_method(m, train_length=16) for m in method.split("|")]
    model = build_model(config.model, pattern, 258, seed=0)
    graphdef, params = nnx.split(model)
    checkpoints = Checkpoints(workdir)
    params = checkpoints.restore_params(8, nnx.to_pure_dict(params))
    checkpoints.close()
    model = nnx.merge(graphdef, params)
    corpus = load_corpus("stdlib_source", "validation", ByteTokenizer(), data_dir)
    crops = evaluation_crops(corpus, length=48, documents=6, tokens=512)
    batch = masked_crops(crops, seed=0, tokenizer=ByteTokenizer())
    logits = np.asarray(model(jnp.asarray(batch["tokens"])), np.float64)
    chosen = np.take_along_axis(logits, batch["predicted"][:, :, None], axis=1)
    logs = chosen - np.log(np.exp(chosen).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(logs, batch["targets"][:, :, None], axis=2).mean()
    accuracy = np.mean(chosen.argmax(axis=-1) == batch["targets"])

    assert table(records, "loss")[method, 48]["value"] == pytest.approx(loss, rel=1e-4)
    assert table(records)[method, 48]["value"] == pytest.approx(accuracy)
    assert table(records)[method, 48]["predictions"] == batch["targets"].size
    assert table(records)[method, 48]["documents"] == len(set(crops.document))


class TestFiles:
    @pytest.fixture
    def folder(self, results):
        return results[0] / "eval"

    def test_are_five(self, folder):
        results = {f"results.{ending}" for ending in ("json", "csv", "md", "png")}
        assert {path.name for path in folder.iterdir()} == {"cells", "heads.csv", *results}

    def test_json_holds_the_records_and_where_they_come_from(self, folder, results, config):
        content = json.loads((folder / "results.json").read_text())
        assert content["records"] == results[1]
        provenance = content["provenance"]
        assert provenance["trained"] == json.loads((folder.parent / "config.json").read_text())
        assert provenance["steps"] == 8
        assert provenance["tokens"] == 8 * 4 * 16
        assert provenance["seeds"] == [0]
        assert provenance["config"]["eval"]["methods"] == ",".join(METHODS)
        data = provenance["data"]
        assert (data["dataset"], data["split"]) == ("stdlib_source", "validation")
        assert data["fingerprint"] == provenance["fingerprint"]
        assert len(data["fingerprint"]) > 8
        assert data["python"].startswith("3.")
        assert {"git", "versions", "hardware", "time"} <= provenance.keys()
        assert {"jax", "flax", "python"} <= provenance["versions"].keys()

    def test_csv_says_the_same(self, folder, results):
        with (folder / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        for row, record in zip(rows, results[1], strict=True):
            for key in ("method", "metric", "protocol"):
                assert row[key] == record[key]
            for key in ("length", "documents", "tokens", "peak_bytes"):
                assert int(row[key]) == record[key]
            assert float(row["value"]) == record["value"]
            assert [float(row[f"interval_{end}"]) for end in ("low", "high")] == record["interval"]

    def test_markdown_says_the_same(self, folder, results):
        text = (folder / "results.md").read_text()
        for record in results[1]:
            low, high = record["interval"]
            assert f" {record['value']:.3f} [{low:.3f}, {high:.3f}] " in text
        for method in METHODS:
            assert f"| {method}".replace("|softmax", r"\|softmax") in text

    def test_picture_is_one(self, folder):
        image = matplotlib.image.imread(folder / "results.png")
        assert image.ndim == 3
        assert np.ptp(image[..., :3]) > 0.5


@pytest.fixture
def copied(trained, tmp_path):
    """Returns a copy of a trained workdir, to evaluate without touching the others' results."""

    def copy(method="softmax"):
        return shutil.copytree(
            trained(method), tmp_path / "run", ignore=shutil.ignore_patterns("eval")
        )

    return copy


def test_prints_the_table(copied, config, capsys):
    workdir = copied()
    records = evaluate(config, workdir)
    said = capsys.readouterr().out
    for method in ("softmax", "infoscale"):
        values = [table(records)[method, n]["value"] for n in (16, 48)]
        assert f"{method:<9}{values[0]:>8.3f}{values[1]:>8.3f}\n" in said
    for name in ("results.md", "results.png"):
        assert str(workdir / "eval" / name) in said


def test_touches_nothing_of_the_run_and_replaces_results(copied, config):
    workdir = copied()
    before = snapshot(workdir)
    evaluate(config, workdir)
    config.eval.methods = "windowed"
    records = evaluate(config, workdir)
    after = snapshot(workdir)
    assert {key: after[key] for key in before} == before
    assert {key.split("/")[0] for key in after.keys() - before.keys()} == {"eval"}
    assert {r["method"] for r in records} == {"windowed"}
    assert json.loads(after["eval/results.json"])["records"] == records
    assert "softmax" not in str(after["eval/results.csv"])  # it is kept in eval/cells


@pytest.mark.parametrize("method", ["lssar", "cosscale(cos_scale=16)"])
def test_runs_of_methods_that_need_training(copied, config, method):
    workdir = copied(method)
    losses = [record["loss"] for record in read_metrics(workdir)]
    assert losses[-1] < losses[0]
    config.eval.update(methods=f"{method},softmax", lengths="16")
    records = evaluate(config, workdir)  # its own method, whatever config.model.method says
    assert not table(records)[method, 16]["unsuited"]
    assert table(records)["softmax", 16]["unsuited"]
    assert table(records, "loss")[method, 16]["value"] < np.log(258)


def test_the_newest_checkpoint_is_evaluated(copied, config):
    workdir = copied()
    first = evaluate(config, workdir)
    newest = workdir / "checkpoints" / "8"
    half = workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    shutil.copytree(newest, half)
    shutil.rmtree(half / "params")
    shutil.rmtree(workdir / "eval")  # or what was measured would be taken from there
    again = evaluate(config, workdir)
    assert [r["value"] for r in again] == [r["value"] for r in first]


def test_the_training_length_is_the_runs_own(copied, config):
    workdir = copied()
    expected = evaluate(config, workdir)
    shutil.rmtree(workdir / "eval")
    config.data.train_length = 48  # a window or a temperature of this length would be another
    records = evaluate(config, workdir)
    assert [r["value"] for r in records] == [r["value"] for r in expected]


def test_computes_in_the_configs_type(copied, config):
    workdir = copied()
    expected = table(evaluate(config, workdir), "loss")
    config.model.dtype = "bfloat16"
    config.eval.update(methods="softmax", lengths="48")
    records = table(evaluate(config, workdir), "loss")
    for key, record in records.items():
        assert record["value"] != expected[key]["value"]
        assert record["value"] == pytest.approx(expected[key]["value"], rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ""}, "config.eval.methods: should name at least one method"),
        (
            {"methods": "softmax,nope2"},
            "unknown method 'nope2'; did you mean 'nope'? choose from softmax, ",
        ),
        ({"methods": "rerope(depth=3)"}, "method 'rerope' has no option 'depth'; choose from"),
        ({"lengths": "1"}, "config.eval.lengths '1': should be whole numbers of 2 and more"),
        ({"lengths": "16,x"}, "config.eval.lengths '16,x': should be whole numbers of 2 and more"),
        ({"lengths": ""}, "config.eval.lengths '': should be whole numbers of 2 and more"),
        ({"lengths": "16,9999999"}, "evaluation length 9999999: no document in split 'validation'"),
        ({"split": "test"}, "unknown split 'test' of stdlib_source"),
        (
            {"protocol": "mlm16"},
            "config.eval.protocol='mlm16': should be one of mlm15, single_mask",
        ),
        (
            {"protocol": "full_context"},
            "config.eval.protocol='full_context': should be one of mlm15",
        ),
        ({"masks": 0}, "config.eval.masks=0: should be at least 1"),
        ({"documents": 0}, "config.eval.documents=0: should be at least 1"),
        ({"bootstrap": 0}, "config.eval.bootstrap=0: should be at least 1"),
        ({"seed": -1}, "config.eval.seed=-1: should be from 0 to 2^32 - 1"),
    ],
)
def test_mistakes_leave_no_results(copied, config, change, message):
    workdir = copied()
    before = snapshot(workdir)
    config.eval.update(change)
    with pytest.raises(UserError) as error:
        evaluate(config, workdir)
    assert str(error.value).startswith(message)
    assert snapshot(workdir) == before


def test_a_model_of_another_shape_is_named(copied, config):
    workdir = copied()
    config.model.update(intermediate_size=48, family="decoder")
    with pytest.raises(UserError) as error:
        evaluate(config, workdir)
    assert str(error.value) == (
        "config.model.family ('decoder', was 'gau'), config.model.intermediate_size (48, was 32): "
        f"should be as {workdir} was trained"
    )
    assert not (workdir / "eval").exists()


def test_a_checkpoint_that_is_not_of_its_config(copied, config):
    workdir = copied()
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 32', '"intermediate_size": 48'))
    config.model.update(intermediate_size=48)
    with pytest.raises(
        UserError, match=r"parameter layers\.i_dense\.kernel is \[2, 16, 72\] there"
    ):
        evaluate(config, workdir)
    assert not (workdir / "eval").exists()


@pytest.mark.parametrize("left", ["nothing", "config.json", "checkpoints"])
def test_a_workdir_without_a_checkpoint(copied, config, left):
    workdir = copied()
    for path in workdir.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="holds no checkpoint; train there first"):
        evaluate(config, workdir)
    assert {path.name for path in workdir.iterdir()} <= {left}
