"""Runs that keep an average of their parameters."""

import itertools

import jax
import numpy as np
import pytest

from lenext.errors import UserError
from lenext.training import loop, train
from lenext.workdirs.checkpoints import Checkpoints
from tests.training.common import read_metrics
from tests.training.runs import assert_same_run, interruption, saved_state, saved_steps

DECAY = 0.7


@pytest.fixture
def config(config):
    config.training.update(ema_decay=DECAY, checkpoint_every=1, keep_latest=12)
    return config


def test_is_that_of_all_steps_after_a_resumption_too(config, undisturbed, tmp_path):
    with interruption(8, "step"):
        train(config, tmp_path)
    train(config, tmp_path)
    states = [saved_state(tmp_path, step)[0] for step in range(1, 13)]
    mean, total = jax.tree.map(np.zeros_like, states[0]["params"]), 0.0
    for state in states:
        mean = jax.tree.map(lambda m, x: DECAY * m + np.float64(x), mean, state["params"])
        total = DECAY * total + 1
        expected = jax.tree.map(lambda m, total=total: m / total, mean)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), state["ema"], expected
        )
    # The run itself is the one without an average.
    for record, plain in zip(read_metrics(tmp_path), read_metrics(undisturbed), strict=True):
        assert {name: record[name] for name in plain} == pytest.approx(plain, rel=1e-5)


def test_is_evaluated_beside_the_parameters(config, tmp_path, monkeypatch):
    seen = []

    def evaluator(graphdef, params):
        seen.append(jax.tree.map(np.asarray, params))
        return {"loss": float(len(seen)), "accuracy": 0.5}

    monkeypatch.setattr(loop, "make_evaluators", lambda *_: {"validation": evaluator})
    train(config, tmp_path)
    records = {record["step"]: record for record in read_metrics(tmp_path)}
    assert [step for step in records if "eval/validation_ema/loss" in records[step]] == [6, 12]
    figures = [
        records[step][f"eval/{name}/loss"]
        for step in (6, 12)
        for name in ("validation", "validation_ema")
    ]
    assert figures == [1.0, 2.0, 3.0, 4.0]
    for step, weights, average in [(6, *seen[:2]), (12, *seen[2:])]:
        state, _ = saved_state(tmp_path, step)
        for ours, name in ((weights, "params"), (average, "ema")):
            np.testing.assert_array_equal(
                ours["layers"]["i_dense"]["kernel"],
                state[name]["layers"]["i_dense"]["kernel"],
            )


def test_may_choose_the_best_checkpoint(config, tmp_path, monkeypatch):
    pairs = [(0.5, 0.1), (0.4, 0.2), (0.3, 0.9), (0.2, 0.3), (0.1, 0.4), (0.0, 0.5)]
    accuracies = itertools.chain.from_iterable(pairs)  # of the parameters, of their average

    def evaluator(graphdef, params):
        return {"loss": 1.0, "accuracy": next(accuracies)}

    monkeypatch.setattr(loop, "make_evaluators", lambda *_: {"validation": evaluator})
    config.training.update(
        best_metric="eval/validation_ema/accuracy", eval_every=2, checkpoint_every=2, keep_latest=1
    )
    train(config, tmp_path)
    assert saved_steps(tmp_path) == [6, 12]


def test_may_be_named_in_best_metric_where_it_is_kept(config, tmp_path):
    config.training.update(best_metric="eval/validation_ema/loss", checkpoint_every=3)
    train(config, tmp_path / "kept")
    with interruption(8, "step"):
        train(config, tmp_path / "again")
    train(config, tmp_path / "again")
    assert_same_run(tmp_path / "again", tmp_path / "kept")
    config.training.ema_decay = 0.0
    with pytest.raises(UserError, match="best_metric='eval/validation_ema/loss': should be one of"):
        train(config, tmp_path / "off")
    config.training.update(ema_decay=DECAY, best_metric="eval/validation_ema/f1")
    with pytest.raises(UserError, match="best_metric"):
        train(config, tmp_path / "off")
    assert not (tmp_path / "off").exists()


def test_no_evaluator_may_have_its_name(config, tmp_path):
    config.evaluators.validation_ema = config.evaluators.validation.copy_and_resolve_references()
    with pytest.raises(UserError, match=r"config\.evaluators\.validation_ema: should have another"):
        train(config, tmp_path / "run")


def test_runs_that_keep_none_are_told_so(undisturbed):
    checkpoints = Checkpoints(undisturbed)
    like = jax.tree.map(jax.numpy.asarray, saved_state(undisturbed, 12)[0]["params"])
    with pytest.raises(UserError, match="12: holds no average of the parameters"):
        checkpoints.restore_params(12, like, item="ema")
    checkpoints.close()
