"""Entropy matching: what calibration promises, seen through an evaluation of its own."""

import json
import math
import shutil

import numpy as np
import pytest

from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.evaluation.calibrate import MULTIPLES
from lenext.generate import main as generate_main
from lenext.models.calibration import read_calibration
from lenext.training import train
from tests.training.common import tiny_config, tiny_decoder_config

L = 16
METHOD = "rerope+entropy_matched"


def calibration_config(data_dir, make=tiny_config):
    config = make(data_dir)
    config.eval.update(
        methods=f"rerope,{METHOD}", batch_tokens=4096, probe_rows=16, bootstrap=10,
        calibration_documents=16, calibration_tokens=8192, documents=16, tokens=8192,
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def calibrated(data_dir, tmp_path_factory):
    """(config, workdir) of a model trained until its heads attend to something, and calibrated."""
    config = calibration_config(data_dir)
    config.model.update(hidden_size=32, intermediate_size=64, key_size=16)
    config.data.batch_size = 32
    config.optimizer.learning_rate = 5e-3
    config.training.update(steps=300, log_every=100, eval_every=300, checkpoint_every=300)
    workdir = tmp_path_factory.mktemp("calibrated")
    train(config, workdir)
    config.eval.lengths = str(L)
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
    print(found)
    (entry,) = read_calibration(workdir)
    target = np.ravel(entry["entropy"])
    for length in lengths:
        np.testing.assert_allclose(found[METHOD, length], target, rtol=0.10)
    assert np.max(found["rerope", 64 * L] / target) > 1.2
