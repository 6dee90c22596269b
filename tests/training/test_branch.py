"""Runs that branch off others."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from configs import drope
from lenext.attention import make_method
from lenext.errors import UserError
from lenext.training import loop, train, validate
from lenext.training.branch import spell_method
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.workdir import write_run_config
from tests.training.common import read_metrics, snapshot, tiny_config
from tests.training.runs import interruption, saved_state, saved_steps


def stable_config(data_dir):
    """9 steps, of which the last 6 are at the peak, with all that a state may hold."""
    config = tiny_config(data_dir)
    config.model.dropout = 0.2
    config.optimizer.update(schedule="wsd", decay_steps=0)
    config.training.update(steps=9, ema_decay=0.9, keep_latest=9)
    return config


def with_decay(config):
    """The same over 12 steps, of which the last 6 decay."""
    config.optimizer.decay_steps = 6
    config.training.steps = 12
    return config


@pytest.fixture(scope="module")
def origin(data_dir, tmp_path_factory):
    """The workdir of the stable run, with checkpoints at 3, 6 and 9."""
    workdir = tmp_path_factory.mktemp("origin")
    train(stable_config(data_dir), workdir)
    return workdir


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """The workdir of a run that had the decay from the start."""
    workdir = tmp_path_factory.mktemp("whole")
    train(with_decay(stable_config(data_dir)), workdir)
    return workdir


@pytest.fixture
def branch(data_dir, origin):
    """The config of a branch at step 6."""
    config = with_decay(stable_config(data_dir))
    config.training.update(branch_from=str(origin), branch_step=6)
    return config


def lines_after(workdir, step):
    """Text of the records after a step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = zip(lines, read_metrics(workdir), strict=True)
    return [line for line, record in records if record["step"] > step]


def test_trained_is_the_origins_method_with_options_of_its_own(config, tmp_path):
    config.model.method = "pi(scale=2)+infoscale"
    write_run_config(tmp_path / "origin", config)
    config.training.branch_from = str(tmp_path / "origin")
    for text, spelt in (("trained(scale=8)", "pi(scale=8)+infoscale"), ("softmax", "softmax")):
        config.model.method = text
        found = spell_method(config)
        assert found.model.method == spelt
        validate(found)
    config.model.method, config.training.branch_from = "trained(scale=8)", str(tmp_path / "none")
    with pytest.raises(UserError, match=r"branch_from=.*none': holds no run, whose method config"):
        spell_method(config)


def test_ends_as_a_run_with_its_decay_from_the_start(branch, origin, whole, tmp_path, capsys):
    before = snapshot(origin)
    train(branch, tmp_path)
    assert snapshot(origin) == before
    assert f"branching off step 6 of {origin}" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(tmp_path)] == [*range(7, 13)]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines_after(whole, 6)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path)]
    assert rates == pytest.approx([2e-3 * left / 6 for left in (6, 5, 4, 3, 2, 1)])
    # Step 7 is at the peak still; step 8 is shorter than the origin's, and step 9 finds it so.
    assert read_metrics(origin)[7]["loss"] == read_metrics(tmp_path)[1]["loss"]
    assert read_metrics(origin)[8]["loss"] != read_metrics(tmp_path)[2]["loss"]
    (state, data), (whole_state, whole_data) = (saved_state(w, 12) for w in (tmp_path, whole))
    jax.tree.map(np.testing.assert_array_equal, state, whole_state)
    assert state.keys() == {"params", "optimizer", "ema"}
    assert data == whole_data


def test_at_no_step_is_at_the_newest(branch, origin, tmp_path):
    branch.training.branch_step = 0
    branch.optimizer.decay_steps = 3
    train(branch, tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 11, 12]
    assert saved_steps(tmp_path) == [9, 12]
    assert read_metrics(tmp_path)[-1]["learning_rate"] == pytest.approx(2e-3 / 3)


@pytest.mark.parametrize(("step", "where"), [(7, "step"), (9, "save"), (11, "step")])
def test_resumes_when_its_origin_is_gone(branch, origin, whole, tmp_path, step, where):
    shutil.copytree(origin, tmp_path / "origin")
    branch.training.branch_from = str(tmp_path / "origin")
    with interruption(step, where):
        train(branch, tmp_path / "branch")
    shutil.rmtree(tmp_path / "origin")
    train(branch, tmp_path / "branch")
    lines = (tmp_path / "branch" / "metrics.jsonl").read_text().splitlines()
    assert lines == lines_after(whole, 6)


def test_may_go_without_the_average_and_with_another_decay_mask(branch, tmp_path):
    branch.training.ema_decay = 0.0
    branch.optimizer.decay_mask = "all"
    branch.training.update(steps=7, eval_every=7, checkpoint_every=7)
    branch.optimizer.decay_steps = 1
    train(branch, tmp_path)
    (record,) = read_metrics(tmp_path)
    assert not any("_ema" in name for name in record)


class TestMistakes:
    @pytest.fixture
    def refused(self, branch, tmp_path):
        """Returns a caller that gives the one line, and checks that nothing is left behind."""

        def refused():
            with pytest.raises(UserError) as error:
                train(branch, tmp_path / "runs" / "branch")
            assert list(tmp_path.iterdir()) == []
            assert "\n" not in str(error.value)
            return str(error.value)

        return refused

    @pytest.mark.parametrize("place", ["nowhere", "README.md", "configs"])
    def test_no_such_run(self, branch, refused, place):
        branch.training.branch_from = place
        assert refused() == f"config.training.branch_from='{place}': holds no run's checkpoint"

    def test_no_such_step(self, branch, refused, origin):
        branch.training.branch_step = 7
        assert refused() == (
            f"config.training.branch_step=7: {origin} holds no checkpoint of that step, "
            "only of 3, 6, 9"
        )

    @pytest.mark.parametrize("steps", [5, 6])
    def test_no_step_left(self, branch, refused, origin, steps):
        branch.training.steps = steps
        branch.optimizer.decay_steps = 0
        assert refused() == (
            f"config.training.steps={steps}: should be above 6, the step at which this run "
            f"branches off {origin}"
        )

    def test_another_model(self, branch, refused):
        branch.model.hidden_size = 24
        assert refused().startswith("config.model.hidden_size (24, was 16): should be as ")

    @pytest.mark.parametrize("name", ["lion", "muon"])
    def test_another_optimizer(self, branch, refused, name):
        branch.optimizer.name = name
        assert "written by another optimizer, whose state has 1." in refused()

    def test_an_average_that_was_not_kept(self, branch, refused, undisturbed):
        branch.training.branch_from = str(undisturbed)
        branch.training.branch_step = 9
        assert "9: holds no average of the parameters" in refused()

    def test_another_dataset(self, branch, refused, monkeypatch):
        load = loop.open_split
        monkeypatch.setattr(
            loop, "open_split", lambda *args: dataclasses.replace(load(*args), fingerprint="other")
        )
        message = refused()
        assert "dataset stdlib_source has changed since " in message
        assert "fingerprint other, was " in message

    def test_packing_more_or_less(self, branch, refused):
        branch.data.packing = True
        assert "config.data.packing=True: should be False as in " in refused()

    def test_a_step_of_no_run(self, branch, refused):
        branch.training.branch_from = ""
        assert refused() == "config.training.branch_step=6: should be 0 without branch_from"


def test_drope_goes_on_without_positions(data_dir, tmp_path, capsys):
    """A fifth of the run's steps more, at its peak rate, and down from there in the second half."""
    plain = stable_config(data_dir)
    plain.model.method = "softmax+infoscale"
    plain.training.steps = 20
    train(plain, tmp_path / "rope")
    config = drope.get_config(str(tmp_path / "rope"))
    train(config, tmp_path / "drope")
    stored = json.loads((tmp_path / "drope" / "config.json").read_text())
    assert stored["model"]["method"] == "softmax+infoscale+nope"
    records = [record for record in read_metrics(tmp_path / "drope") if "loss" in record]
    assert [record["step"] for record in records] == [21, 22, 23, 24]
    rates = np.array([record["learning_rate"] for record in records])
    np.testing.assert_allclose(rates / plain.optimizer.learning_rate, [1, 1, 1, 0.5], rtol=1e-6)
    (was,) = load_run(tmp_path / "drope").read_methods("trained")[:1]
    assert was == make_method("softmax+infoscale+nope", train_length=plain.data.train_length)


@pytest.mark.parametrize("arg", [None, "nowhere"])
def test_drope_of_no_run(arg):
    with pytest.raises(UserError, match="should be the workdir of a run to go on from"):
        drope.get_config(arg)
