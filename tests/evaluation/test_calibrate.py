"""Entropy matching: what calibration promises, seen through an evaluation of its own."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from lenext.config import read_methods
from lenext.data import ByteTokenizer, open_split
from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.evaluation.calibrate import MULTIPLES
from lenext.evaluation.protocols import CropSettings, full_context
from lenext.models import token_figures
from lenext.training import train
from lenext.workdirs.calibration import FILE, read_calibration, under_method
from lenext.workdirs.pretrained import load_run
from tests.training.common import tiny_config, tiny_decoder_config

L = 8
METHOD = "rerope+entropy_matched"


def calibration_config(data_dir, make=tiny_config):
    config = make(data_dir)
    config.data.train_length = L
    config.eval.update(
        methods=f"rerope,{METHOD}", batch_tokens=4096, probe_rows=16, bootstrap=10,
        calibration_documents=24, calibration_tokens=8192, documents=24, tokens=8192,
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def calibrated(data_dir, tmp_path_factory):
    """(config, workdir) of a model trained until its heads attend to something, and calibrated."""
    config = calibration_config(data_dir)
    config.model.update(hidden_size=32, intermediate_size=64, key_size=16)
    config.data.batch_size = 32
    config.optimizer.learning_rate = 5e-3
    config.training.update(steps=500, log_every=500, eval_every=500, checkpoint_every=500)
    workdir = tmp_path_factory.mktemp("calibrated")
    train(config, workdir)
    config.eval.lengths = str(64 * L)
    evaluate(config, workdir, calibrate_first=True)
    return config, workdir


def entropies(config, workdir, split, lengths):
    """(method, length) to entropies [layers]."""
    config.eval.update(lengths=",".join(map(str, lengths)), split=split)
    evaluate(config, workdir)
    heads = json.loads((workdir / "eval" / "results.json").read_text())["heads"]
    return {
        (method, length): np.array(
            [h["entropy"] for h in heads if (h["method"], h["length"]) == (method, length)]
        )
        for method in ("rerope", METHOD)
        for length in lengths
    }


def test_entropy_is_held_at_calibrated_lengths(calibrated):
    """Within 5 %, on the documents of the calibration."""
    config, workdir = calibrated
    assert MULTIPLES == (2, 8, 32, 128)
    lengths = [m * L for m in (1, *MULTIPLES)]
    found = entropies(config, workdir, "train", lengths)
    target = found[METHOD, L]
    np.testing.assert_array_equal(target, found["rerope", L])
    for length in lengths:
        np.testing.assert_allclose(found[METHOD, length], target, rtol=0.05)
    assert np.max(found["rerope", lengths[-1]] / target) > 1.2  # it would not have been


def test_entropy_is_held_at_lengths_and_documents_left_out(calibrated):
    """Within 10 %, at 4, 16 and 64 L of validation documents."""
    config, workdir = calibrated
    lengths = [L, 4 * L, 16 * L, 64 * L]
    found = entropies(config, workdir, "validation", lengths)
    (entry,) = read_calibration(workdir)
    target = np.ravel(entry["entropy"])
    for length in lengths:
        np.testing.assert_allclose(found[METHOD, length], target, rtol=0.10)
    assert np.max(found["rerope", 64 * L] / target) > 1.2


def refusal(config, workdir, **changes) -> str:
    """The line in which an evaluation with --calibrate ends; nothing is written."""
    config.eval.update(lengths=str(L), split="validation", **changes)
    before = (workdir / FILE).read_text() if (workdir / FILE).exists() else None
    with pytest.raises(UserError) as caught:
        evaluate(config, workdir, calibrate_first=True)
    assert "\n" not in str(caught.value)
    assert ((workdir / FILE).read_text() if (workdir / FILE).exists() else None) == before
    return str(caught.value)


@pytest.fixture
def copy(calibrated, tmp_path):
    """(config, workdir) that a test may change."""
    config, workdir = calibrated
    shutil.copytree(workdir, tmp_path / "run")
    return config.copy_and_resolve_references(), tmp_path / "run"


def test_what_is_stored_is_what_is_evaluated(copy):
    _, workdir = copy
    (entry,) = read_calibration(workdir)
    assert (entry["method"], entry["step"], entry["weights"]) == (METHOD, 500, "params")
    assert np.shape(entry["entropy"]) == (2, 1)
    run = load_run(workdir)
    model, initial = under_method(run, workdir, read_methods(METHOD, L))
    assert not initial
    for layer, parts in enumerate(entry["parts"]):
        slopes = model.layers.attention.learned_by(layer)["temperature"]["slopes"]
        np.testing.assert_allclose(slopes, parts["temperature"]["slopes"], rtol=1e-6)
        assert np.ptp(slopes) > 0
    # Another method's calibration is not its own.
    model, initial = under_method(run, workdir, read_methods("entropy_matched", L))
    assert initial
    slopes = model.layers.attention.learned_by(0)["temperature"]["slopes"]
    np.testing.assert_allclose(slopes, 2 / np.log(L), rtol=1e-6)
    assert under_method(run, workdir, read_methods("rerope", L))[1] is False


def test_an_uncalibrated_method_says_so(copy, capsys):
    config, workdir = copy
    config.eval.update(methods="softmax,entropy_matched", lengths=str(L), split="validation")
    evaluate(config, workdir)
    note = "Not calibrated (lenext.evaluate --calibrate): entropy_matched."
    assert note in capsys.readouterr().out
    assert note in (workdir / "eval" / "results.md").read_text()


def test_calibrations_stand_beside_each_other(copy):
    """And a pattern's layers without entropy matching have no parts."""
    config, workdir = copy
    hybrid = "windowed(window=8)|lm_infinite(sinks=2)+entropy_matched"
    config.eval.update(methods=hybrid, lengths=str(32 * L), split="validation")
    evaluate(config, workdir, calibrate_first=True)
    first, second = read_calibration(workdir)
    assert (first["method"], second["method"]) == (METHOD, hybrid)
    assert second["parts"][0] == {}
    # Rows see 17 keys at most, a little over 2 L: one slope does for all.
    assert np.ptp(second["parts"][1]["temperature"]["slopes"]) == 0
    assert second["off"][str(32 * L)] < 0.05
    evaluate(config, workdir, calibrate_first=True)
    assert [entry["method"] for entry in read_calibration(workdir)] == [METHOD, hybrid]


def test_a_calibration_of_other_weights_is_refused(copy):
    config, workdir = copy
    content = json.loads((workdir / FILE).read_text())
    content["calibrations"][0]["step"] = 200
    (workdir / FILE).write_text(json.dumps(content))
    config.eval.update(methods=METHOD, lengths=str(L), split="validation")
    with pytest.raises(UserError, match="on params of step 200, and these are params of step 500"):
        evaluate(config, workdir)
    content["calibrations"][0]["step"] = 500
    for key, other, message in (
        ("identity", "0" * 64, "on other weights of step 500, which was trained anew since"),
        ("sources", {"mine": ["Mine()", "0" * 64]}, "the source of .* has changed since it was"),
    ):
        was = content["calibrations"][0][key]
        content["calibrations"][0][key] = other
        (workdir / FILE).write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            evaluate(config, workdir)
        content["calibrations"][0][key] = was
    content["calibrations"][0]["parts"][0]["temperature"]["slopes"] = [[1.0, 2.0]]
    (workdir / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="has other parts than rerope"):
        evaluate(config, workdir)
    (workdir / FILE).write_text("[]")
    with pytest.raises(UserError, match="should be as"):
        evaluate(config, workdir)


def test_nothing_to_calibrate(copy):
    assert "entropy_matched" in refusal(*copy, methods="softmax,rerope+infoscale")


def test_documents_too_short_to_calibrate(copy, tmp_path):
    config, workdir = copy
    (tmp_path / "texts" / "train").mkdir(parents=True)
    (tmp_path / "texts" / "validation").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "texts" / split / "a.txt").write_text("x" * (2 * L - 1))
    config.data.update(dataset="text_files", files=str(tmp_path / "texts"))
    line = refusal(config, workdir, methods=METHOD)
    assert f"length {2 * L}: no document in split 'train'" in line


def test_a_causal_model(data_dir, tmp_path_factory):
    """Its last rows, which see the most keys, are held: seen here by the model itself."""
    config = calibration_config(data_dir, tiny_decoder_config)
    length = config.data.train_length = 16
    config.data.batch_size = 16
    config.optimizer.learning_rate = 1e-2
    config.training.update(steps=60, log_every=60, eval_every=60, checkpoint_every=60)
    config.eval.update(methods=METHOD, lengths=str(32 * length), calibration_tokens=2048)
    workdir = tmp_path_factory.mktemp("causal")
    train(config, workdir)
    evaluate(config, workdir, calibrate_first=True)
    (entry,) = read_calibration(workdir)
    assert np.shape(entry["parts"][0]["temperature"]["slopes"]) == (2, 4)  # heads, pieces
    run = load_run(workdir)
    targets = np.array(entry["entropy"])

    corpus = open_split(config.data, "train", ByteTokenizer())
    sampling = CropSettings(documents=64, tokens=2048, seed=0)

    def last_rows(method, tokens):
        model, _ = under_method(run, workdir, read_methods(method, length))
        batch = full_context(corpus, ByteTokenizer(), tokens, tokens, sampling).batch
        batch = {name: jnp.asarray(x) for name, x in batch.items()}
        rows = token_figures(model, batch, probe=jnp.arange(tokens - tokens // 8, tokens)).rows
        return np.asarray(rows.entropy).mean(axis=(1, 3))

    assert [int(key) for key in entry["off"]] == [length * m for m in (1, 2, 8, 32)]  # as asked for
    for multiple in (2, 8, 32):
        assert np.all(np.abs(last_rows(METHOD, multiple * length) / targets - 1) < 0.05)
    assert np.max(last_rows("rerope", 32 * length) / targets) > 1.5
