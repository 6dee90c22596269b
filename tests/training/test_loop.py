import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import optax
import pytest

from lenext.errors import TrainingError, UserError
from lenext.training import loop, train
from tests.training.common import read_metrics, snapshot
from tests.training.runs import assert_same_run, interruption, saved_state, saved_steps


class TestAWholeRun:
    def test_writes_what_it_says(self, undisturbed, config):
        names = {path.name for path in undisturbed.iterdir()}
        assert names == {
            "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "seals", ".lock"
        }  # fmt: skip
        assert json.loads((undisturbed / "config.json").read_text()) == config.to_dict()
        assert 12 in saved_steps(undisturbed)

    def test_logs_every_step_once(self, undisturbed):
        assert [record["step"] for record in read_metrics(undisturbed)] == [*range(1, 13)]

    def test_records_hold_what_is_deterministic(self, undisturbed):
        always = {"step", "loss", "accuracy", "grad_norm", "param_norm", "learning_rate"}
        evaluated = {"eval/validation/loss", "eval/validation/accuracy"}
        for record in read_metrics(undisturbed):
            wanted = always | evaluated if record["step"] in (6, 12) else always
            assert record.keys() == wanted

    def test_starts_at_the_loss_of_guessing(self, undisturbed):
        assert read_metrics(undisturbed)[0]["loss"] == pytest.approx(np.log(258), abs=0.3)

    def test_the_rate_is_the_one_that_the_step_took(self, undisturbed):
        rates = [record["learning_rate"] for record in read_metrics(undisturbed)]
        # A third of the peak, up to the peak in three steps, then down, the last step above 0.
        assert rates[0] == pytest.approx(2e-3 / 3)
        assert rates[3] == pytest.approx(2e-3)
        assert max(rates) == rates[3]
        assert 0 < rates[-1] < 2e-4

    def test_parameters_are_float32(self, undisturbed):
        state, _ = saved_state(undisturbed, 12)
        assert {x.dtype for x in jax.tree.leaves(state["params"])} == {np.dtype(np.float32)}

    def test_says_what_it_trains(self, config, tmp_path, capsys):
        train(config, tmp_path)
        said = capsys.readouterr().out
        assert re.search(r"GAUEncoder, softmax, on 1 cpu", said)
        total = sum(x.size for x in jax.tree.leaves(saved_state(tmp_path, 12)[0]["params"]))
        assert re.search(rf"parameters +{total:,}\n", said)
        assert "trained to step 12" in said


def test_the_same_config_gives_the_same_run(config, undisturbed, tmp_path):
    train(config, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_the_seed_decides(config, undisturbed, tmp_path):
    config.seed = 1
    train(config, tmp_path)
    ours, theirs = read_metrics(tmp_path), read_metrics(undisturbed)
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, theirs, strict=True))


def test_logging_and_saving_less_often_changes_nothing_else(config, undisturbed, tmp_path):
    config.training.update(log_every=5, checkpoint_every=100, eval_every=4)
    train(config, tmp_path)
    full = {record["step"]: record for record in read_metrics(undisturbed)}
    records = {record["step"]: record for record in read_metrics(tmp_path)}
    assert [*records] == [4, 5, 8, 10, 12]
    for step, record in records.items():
        assert record["loss"] == full[step]["loss"]
        assert ("eval/validation/loss" in record) == (step in (4, 8, 12))
    assert records[12] == full[12]
    assert saved_steps(tmp_path) == [12]


class TestResuming:
    # Checkpoints are at 3, 6, 9 and 12, so before 1 and in the save of 3 there is none yet.
    @pytest.mark.parametrize(
        ("step", "where"),
        [
            (1, "step"),
            (3, "save"),
            (5, "step"),
            (6, "evaluation"),
            (6, "save"),
            (11, "step"),
            (12, "evaluation"),
            (12, "save"),
        ],
    )
    def test_ends_as_if_nothing_had_happened(self, config, undisturbed, tmp_path, step, where):
        with interruption(step, where):
            train(config, tmp_path)
        assert not (tmp_path / "checkpoints" / "12").exists()
        train(config, tmp_path)
        assert_same_run(tmp_path, undisturbed)

    def test_again_and_again(self, config, undisturbed, tmp_path, capsys):
        for step in (5, 6, 9, 11):
            with interruption(step, "step"):
                train(config, tmp_path)
        capsys.readouterr()
        train(config, tmp_path)
        assert f"resuming from step 9 of {tmp_path}" in capsys.readouterr().out
        assert_same_run(tmp_path, undisturbed)

    def test_does_with_dropout_and_bfloat16(self, config, tmp_path):
        config.model.update(dropout=0.2, dtype="bfloat16")
        train(config, tmp_path / "whole")
        with interruption(8, "step"):
            train(config, tmp_path / "halved")
        train(config, tmp_path / "halved")
        assert_same_run(tmp_path / "halved", tmp_path / "whole")

    def test_does_with_muon(self, config, tmp_path):
        config.optimizer.update(name="muon", learning_rate=1e-3, schedule="linear")
        config.training.update(z_loss=1e-3, accumulate=2)
        train(config, tmp_path / "whole")
        with interruption(8, "step"):
            train(config, tmp_path / "halved")
        train(config, tmp_path / "halved")
        assert_same_run(tmp_path / "halved", tmp_path / "whole")
        records = read_metrics(tmp_path / "whole")
        assert np.mean([record["loss"] for record in records[-3:]]) < records[0]["loss"] - 0.02
        # At first every token is as likely as any other, and log_z near ln 258.
        assert records[0]["z_loss"] == pytest.approx(np.log(258) ** 2, rel=0.05)
        assert records[-1]["learning_rate"] == pytest.approx(1e-3 / 9)

    def test_begins_anew_where_only_metrics_were_written(self, config, undisturbed, tmp_path):
        with interruption(3, "save"):
            train(config, tmp_path)
        assert len(read_metrics(tmp_path)) == 3
        train(config, tmp_path)
        assert_same_run(tmp_path, undisturbed)

    def test_of_a_torn_record(self, config, undisturbed, tmp_path):
        with interruption(8, "step"):
            train(config, tmp_path)
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
        train(config, tmp_path)
        assert_same_run(tmp_path, undisturbed)

    def test_of_another_config_is_refused(self, config, tmp_path):
        with interruption(5, "step"):
            train(config, tmp_path)
        before = snapshot(tmp_path)
        config.training.steps = 20
        config.data.mask_rate = 0.3
        with pytest.raises(UserError) as error:
            train(config, tmp_path)
        keys = "data.mask_rate (0.3, was 0.15), training.steps (20, was 12)"
        assert f"another config: {keys};" in str(error.value)
        assert snapshot(tmp_path) == before

    def test_with_another_evaluation_section_is_not(self, config, undisturbed, tmp_path):
        with interruption(5, "step"):
            train(config, tmp_path)
        config.eval.update(methods="softmax", lengths="16", bootstrap=7)
        train(config, tmp_path)
        assert_same_run(tmp_path, undisturbed)

    def test_on_other_data_is_refused(self, config, tmp_path, monkeypatch):
        with interruption(5, "step"):
            train(config, tmp_path)
        load = loop.open_split
        monkeypatch.setattr(
            loop, "open_split", lambda *args: dataclasses.replace(load(*args), fingerprint="other")
        )
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=r"has changed .* fingerprint other, was"):
            train(config, tmp_path)
        assert snapshot(tmp_path) == before

    def test_of_a_finished_run_says_so_and_does_nothing(self, config, tmp_path, capsys):
        train(config, tmp_path)
        before = snapshot(tmp_path)
        capsys.readouterr()
        train(config, tmp_path)
        assert f"{tmp_path} is trained to its last step, 12" in capsys.readouterr().out
        assert snapshot(tmp_path) == before


class TestNotFinite:
    @pytest.mark.parametrize("checkpoint_every", [1, 2, 100])
    def test_a_rate_beyond_all_bounds_saves_nothing(self, config, tmp_path, checkpoint_every):
        config.optimizer.update(learning_rate=1e30, warmup_steps=0)
        config.training.checkpoint_every = checkpoint_every
        with pytest.raises(TrainingError, match=r"^param_norm inf at step 1: stopped; no che"):
            train(config, tmp_path)
        assert saved_steps(tmp_path) == []

    @pytest.mark.parametrize(
        ("poisoned", "checkpoint_every", "kept"), [(5, 3, 3), (7, 3, 6), (6, 3, 3), (2, 3, None)]
    )
    def test_the_last_good_checkpoint_stays(
        self, config, tmp_path, monkeypatch, poisoned, checkpoint_every, kept
    ):
        """Step `poisoned` leaves parameters that are finite and too large to be squared."""
        make = loop.compile_step

        def make_poisoned(*args, **kwargs):
            take = make(*args, **kwargs)

            def step(state, batch, number):
                state, metrics = take(state, batch, number)
                if number == poisoned:
                    state["params"] = jax.tree.map(lambda x: x + 1e30, state["params"])
                    metrics = metrics | {"param_norm": optax.tree.norm(state["params"])}
                return state, metrics

            return step

        monkeypatch.setattr(loop, "compile_step", make_poisoned)
        config.training.update(checkpoint_every=checkpoint_every, eval_every=100)
        with pytest.raises(TrainingError) as error:
            train(config, tmp_path)
        place = f"the last good checkpoint is step {kept}" if kept else "no checkpoint was written"
        assert f"param_norm inf at step {poisoned}: stopped; {place}" in str(error.value)
        assert saved_steps(tmp_path)[-1:] == ([kept] if kept else [])
        if kept:
            state, _ = saved_state(tmp_path, kept)
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
        text = (tmp_path / "metrics.jsonl").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text

    def test_the_step_is_named_where_it_is_not_logged(self, config, tmp_path, monkeypatch):
        config.training.update(log_every=100, eval_every=100, checkpoint_every=100)
        shard = loop.shard_batch
        numbers = itertools.count()  # the first is what the step is compiled for

        def poison(batch, mesh):
            if next(numbers) == 5:
                batch = batch | {"weights": np.full_like(batch["weights"], np.nan)}
            return shard(batch, mesh)

        monkeypatch.setattr(loop, "shard_batch", poison)
        with pytest.raises(TrainingError, match=r"loss nan, .* at step 5: stopped"):
            train(config, tmp_path)

    def test_the_same_command_comes_to_the_same_end(self, config, tmp_path):
        config.optimizer.update(learning_rate=1e30, warmup_steps=0)
        errors = []
        for _ in range(2):
            with pytest.raises(TrainingError) as error:
                train(config, tmp_path)
            errors.append(str(error.value))
        assert errors[0] == errors[1]

    def test_a_figure_of_an_evaluator_counts(self, config, tmp_path, monkeypatch):
        figures = {"loss": float("nan"), "accuracy": 0.5}
        monkeypatch.setattr(loop, "make_evaluators", lambda *_: {"validation": lambda *_: figures})
        with pytest.raises(TrainingError, match="eval/validation/loss nan at step 6: stopped"):
            train(config, tmp_path)
        assert saved_steps(tmp_path) == [3]
        assert len(read_metrics(tmp_path)) == 5


class TestOtherMethods:
    @pytest.mark.parametrize(
        "method", ["lssar", "cosscale(cos_scale=16)", "windowed(window=4)|softmax"]
    )
    def test_are_trained_with(self, config, undisturbed, tmp_path, method):
        config.model.method = method
        config.training.eval_every = 4
        train(config, tmp_path)
        losses = [record["loss"] for record in read_metrics(tmp_path)]
        assert losses[-1] < losses[0]
        assert losses != [record["loss"] for record in read_metrics(undisturbed)]


def test_bfloat16_is_one_key(config, undisturbed, tmp_path):
    config.model.dtype = "bfloat16"
    train(config, tmp_path)
    state, _ = saved_state(tmp_path, 12)
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {np.dtype(np.float32)}
    ours, theirs = (
        np.array([record["loss"] for record in read_metrics(w)]) for w in (tmp_path, undisturbed)
    )
    assert np.all(ours != theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_the_best_checkpoint_is_kept(config, tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.9, 0.3, 0.2, 0.4, 0.5])
    monkeypatch.setattr(
        loop,
        "make_evaluators",
        lambda *_: {"validation": lambda *_: {"loss": 1.0, "accuracy": next(accuracies)}},
    )
    config.training.update(eval_every=2, checkpoint_every=2, keep_latest=1)
    with interruption(10, "step"):
        train(config, tmp_path)
    assert saved_steps(tmp_path) == [4, 8]
    train(config, tmp_path)
    assert saved_steps(tmp_path) == [4, 12]
