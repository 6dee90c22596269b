import contextlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lenext.errors import UserError
from lenext.workdirs.checkpoints import Checkpoints, newest_step
from tests.training.common import snapshot

ACCURACY = "eval/validation/accuracy"
LOSS = "eval/validation/loss"


def state(value=0.0, hidden=3):
    """Parameters as models have them, two layers stacked, and an optimiser state of some kind."""
    params = {
        "layers": {"kernel": jnp.full((2, 4, hidden), value), "scale": jnp.full((2, 4), value)},
        "embedding": jnp.full((5, 2), -value),
    }
    return {
        "params": params,
        "optimizer": (jnp.full((), value), {"mu": jax.tree.map(jnp.copy, params)}),
    }


@contextlib.contextmanager
def opened(workdir, *, keep_latest=1, best_metric=ACCURACY):
    checkpoints = Checkpoints(workdir, keep_latest=keep_latest, best_metric=best_metric)
    yield checkpoints
    checkpoints.close()


def save(workdir, metrics, *, first=1, **options):
    """Saves one step for each figure, of which None is a step that was not evaluated."""
    with opened(workdir, **options) as checkpoints:
        for step, figure in enumerate(metrics, first):
            scalars = {"loss": 1.0} if figure is None else {ACCURACY: figure, LOSS: figure}
            checkpoints.save(step, state(float(step)), {"place": step}, scalars)


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("_CHECKPOINT_METADATA", b'{"item_handlers": 1}'),
        ("params/_METADATA", b"{"),
        ("params/_METADATA", b"\xff"),
        ("data/metadata", b"{"),
    ],
)
def test_a_damaged_checkpoint_without_a_seal_is_told_in_a_line(tmp_path, file, content):
    save(tmp_path, [0.5])
    (tmp_path / "checkpoints" / "1" / file).write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoints(/1)?: cannot be read as a checkpoint \("):
        look_at(tmp_path)


def look_at(workdir):
    """All that is read of a checkpoint before its arrays."""
    checkpoints = Checkpoints(workdir)
    with contextlib.closing(checkpoints):
        checkpoints.check_depth(1, 2)
        assert checkpoints.rows(1, "embedding") == 5
        assert checkpoints.restore_data(1) == {"place": 1}


@pytest.mark.parametrize(
    ("options", "metrics", "kept"),
    [
        ({"keep_latest": 1}, [0.1, 0.2, 0.3], [3]),
        ({"keep_latest": 2}, [0.1, 0.2, 0.3, 0.4], [3, 4]),
        ({"keep_latest": 2}, [0.9, 0.2, 0.3, 0.4], [1, 3, 4]),
        ({"keep_latest": 1}, [0.1, 0.9, 0.3, 0.4], [2, 4]),
        ({"keep_latest": 1, "best_metric": LOSS}, [0.9, 0.1, 0.3, 0.4], [2, 4]),
        ({"keep_latest": 1, "best_metric": LOSS}, [0.9, 0.8, 0.7], [3]),
        ({"keep_latest": 1}, [0.9, None, 0.3, None], [1, 4]),
        ({"keep_latest": 2}, [None, None, None], [2, 3]),
    ],
)
def test_keeps_the_newest_and_the_best(tmp_path, options, metrics, kept):
    save(tmp_path, metrics, **options)
    assert steps(tmp_path) == kept


def test_the_best_of_an_earlier_process_is_kept(tmp_path):
    save(tmp_path, [0.2, 0.9, 0.3])
    save(tmp_path, [0.4, 0.5], first=4)
    assert steps(tmp_path) == [2, 5]


def test_restores_what_was_saved(tmp_path):
    save(tmp_path, [0.1, 0.2], keep_latest=2)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2
        for step in (1, 2):
            restored, data = checkpoints.restore(step, state())
            expected = state(float(step))
            assert jax.tree.structure(restored) == jax.tree.structure(expected)
            jax.tree.map(np.testing.assert_array_equal, restored, expected)
            assert data == {"place": step}
            params = checkpoints.restore_params(step, state()["params"])
            jax.tree.map(np.testing.assert_array_equal, params, expected["params"])


def test_no_checkpoint_is_none(tmp_path):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() is None


def test_reading_makes_and_drops_nothing(tmp_path):
    save(tmp_path, [0.9, 0.1, 0.2], keep_latest=2)
    before = snapshot(tmp_path)
    with opened(tmp_path, best_metric=None) as checkpoints:
        checkpoints.restore_params(3, state()["params"])
    assert snapshot(tmp_path) == before


class TestAverage:
    @pytest.fixture
    def workdir(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            averaged = state(1.0) | {"ema": state(2.0)["params"]}
            checkpoints.save(1, averaged, {"place": 1}, {ACCURACY: 0.5})
        return tmp_path

    def test_is_restored_beside_the_parameters(self, workdir):
        with opened(workdir, best_metric=None) as checkpoints:
            like = state()
            restored, _ = checkpoints.restore(1, like | {"ema": like["params"]})
            params = checkpoints.restore_params(1, like["params"])
            average = checkpoints.restore_params(1, like["params"], item="ema")
            with pytest.raises(ValueError, match="item 'mean': should be params or ema"):
                checkpoints.restore_params(1, like["params"], item="mean")
        for tree, value in [
            (restored["params"], 1.0),
            (restored["ema"], 2.0),
            (params, 1.0),
            (average, 2.0),
        ]:
            jax.tree.map(np.testing.assert_array_equal, tree, state(value)["params"])

    def test_may_be_left_where_it_is(self, workdir):
        with opened(workdir, best_metric=None) as checkpoints:
            assert checkpoints.restore(1, state())[0].keys() == {"params", "optimizer"}

    @pytest.mark.parametrize(
        "restore",
        [
            lambda c: c.restore(1, state() | {"ema": state()["params"]}),
            lambda c: c.restore_params(1, state()["params"], item="ema"),
        ],
    )
    def test_that_was_not_kept_is_one_line(self, tmp_path, restore):
        save(tmp_path, [0.1])
        with opened(tmp_path, best_metric=None) as checkpoints, pytest.raises(UserError) as error:
            restore(checkpoints)
        assert str(error.value) == (
            f"{tmp_path / 'checkpoints' / '1'}: holds no average of the parameters; "
            "config.training.ema_decay of its run was 0"
        )


def test_a_run_without_an_average_has_no_place_for_one(tmp_path):
    save(tmp_path, [0.1])
    folders = {path.name for path in (tmp_path / "checkpoints" / "1").iterdir() if path.is_dir()}
    assert folders == {"params", "optimizer", "data", "metrics"}


def test_another_optimizer_is_named(tmp_path):
    save(tmp_path, [0.1])
    like = state()
    like["optimizer"] = (like["optimizer"][0], like["optimizer"][1] | {"nu": like["params"]})
    with opened(tmp_path, best_metric=None) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(1, like)
    assert "written by another optimizer" in str(error.value)
    assert "1.nu.embedding as none and the config's as [5, 2]" in str(error.value)


def test_steps_and_the_newest(tmp_path):
    assert newest_step(tmp_path) is None
    assert snapshot(tmp_path) == {}
    save(tmp_path, [0.9, 0.1, 0.2], keep_latest=1)
    before = snapshot(tmp_path)
    assert newest_step(tmp_path) == 3
    with opened(tmp_path, best_metric=None) as checkpoints:
        assert checkpoints.steps() == [1, 3]
    assert snapshot(tmp_path) == before


def test_the_service_that_stops_all_is_asked_by_nobody_else(tmp_path, monkeypatch):
    """Whoever asked it by a step's number would have all stop at a number that never comes."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save(tmp_path, [0.9, 0.1])
    assert newest_step(tmp_path) == 2
    assert not asked


def half_written(path):
    """What a killed process leaves: Orbax renames a checkpoint's folder when it is complete."""
    return path.with_name(f"{path.name}.orbax-checkpoint-tmp")


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    save(tmp_path, [0.1, 0.2], keep_latest=2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", half_written(folder / "3"))
    shutil.rmtree(half_written(folder / "3") / "optimizer")
    assert newest_step(tmp_path) == 2
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(3, state(3.0), {"place": 3}, {ACCURACY: 0.3})
        checkpoints.wait()
        restored, data = checkpoints.restore(3, state())
    assert data == {"place": 3}
    np.testing.assert_array_equal(restored["params"]["embedding"], np.full((5, 2), -3.0))


def test_a_save_in_progress_has_the_name_of_an_incomplete_one(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1.0), {"place": 1}, {})
        # Written in the background: it may not have begun, or be done already.
        while not (names := [path.name for path in (tmp_path / "checkpoints").iterdir()]):
            time.sleep(0.001)
        assert names in ([half_written(tmp_path / "1").name], ["1"])
        checkpoints.wait()
        assert steps(tmp_path) == [1]


@pytest.mark.parametrize("left", ["nothing", "params", "_CHECKPOINT_METADATA"])
def test_a_half_deleted_old_checkpoint_is_no_trouble(tmp_path, left):
    save(tmp_path, [0.1, 0.2], keep_latest=2)
    old = tmp_path / "checkpoints" / "1"
    for path in [path for path in old.iterdir() if path.name != left]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with opened(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.restore(2, state())
        checkpoints.save(3, state(3.0), {"place": 3}, {ACCURACY: 0.1})
    assert steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("restore", ["restore", "restore_params"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"embedding": jnp.ones((5, 4))}, "embedding is [5, 2] there and [5, 4] in"),
        (lambda p: p | {"head": jnp.ones(3)}, "head is none there and [3] in"),
        (lambda p: {"layers": p["layers"]}, "embedding is [5, 2] there and none in"),
        (
            lambda p: p | {"layers": jax.tree.map(lambda x: x[:1], p["layers"])},
            "layers.kernel is [2, 4, 3] there and [1, 4, 3] in",
        ),
    ],
)
def test_other_parameters_are_named(tmp_path, restore, change, message):
    save(tmp_path, [0.1])
    like = state()
    like["params"] = change(like["params"])
    with opened(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        getattr(checkpoints, restore)(1, like if restore == "restore" else like["params"])
    assert f"parameter {message}" in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "checkpoints" / "1"))


def test_the_first_that_differs_is_named(tmp_path):
    save(tmp_path, [0.1])
    with opened(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(1, state(hidden=7))
    assert "parameter layers.kernel is [2, 4, 3] there and [2, 4, 7] in" in str(error.value)
