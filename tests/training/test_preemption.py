"""A training that is told to stop; as a process: test_kill.py, and several in test_faults.py."""

import signal

import pytest

from lenext.errors import Stopped
from lenext.training import loop, train
from lenext.training.preemption import Preemption
from tests.training.runs import assert_same_run, saved_steps


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_while_the_step_compiles(
    config, tmp_path, undisturbed, monkeypatch, number, error
):
    compile_step = loop.compile_step

    def while_compiling(*args):
        signal.raise_signal(number)
        return compile_step(*args)

    monkeypatch.setattr(loop, "compile_step", while_compiling)
    with pytest.raises(error, match="at step 1, whose checkpoint is written; the same command"):
        train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [1]
    monkeypatch.undo()
    train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_second_interruption_is_one():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGINT)
        assert preemption.interrupted
        assert preemption.reached()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
