"""Runs that are stopped, and what they leave."""

import contextlib
import itertools

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lenext.training import loop
from lenext.workdirs.checkpoints import Checkpoints


class Interrupted(Exception):
    """What stops a run in these tests."""


@contextlib.contextmanager
def interruption(step, where):
    """Stops the run that is made within, at a step, in the middle of something."""

    def stopping_at(function, number_of):
        def stopping(*args, **kwargs):
            if number_of(*args) == step:
                raise Interrupted
            return function(*args, **kwargs)

        return stopping

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interrupted):
        if where == "step":
            make = loop.compile_step

            def compile_step(*args, **kwargs):
                return stopping_at(make(*args, **kwargs), lambda state, batch, number: number)

            patch.setattr(loop, "compile_step", compile_step)
        elif where == "evaluation":
            make = loop.make_evaluators

            def make_evaluators(config, *args):
                evaluations = itertools.count(1)
                (evaluator,) = make(config, *args).values()
                every = config.training.eval_every
                return {"validation": stopping_at(evaluator, lambda *_: next(evaluations) * every)}

            patch.setattr(loop, "make_evaluators", make_evaluators)
        elif where == "save":  # the step's record is written, its checkpoint is not
            save = stopping_at(Checkpoints.save, lambda self, number, *_: number)
            patch.setattr(Checkpoints, "save", save)
        yield
        pytest.fail("the run was not interrupted")


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def saved_state(workdir, step):
    """A checkpoint as Orbax reads it without being told what to expect, and its data."""
    trees = ("params", "optimizer", "ema")
    handlers: dict = {name: ocp.PyTreeCheckpointHandler() for name in trees}
    with ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        item_handlers=handlers | {"data": ocp.JsonCheckpointHandler()},
    ) as manager:
        metadata = manager.item_metadata(step)
        args = {
            name: ocp.args.PyTreeRestore(restore_args=_as_numpy(metadata[name].tree))
            for name in trees
            if metadata.get(name) is not None
        }
        out = manager.restore(step, args=ocp.args.Composite(**args, data=ocp.args.JsonRestore()))
        return {name: out[name] for name in args}, out["data"]


def _as_numpy(tree):
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def assert_same_run(workdir, other):
    assert (workdir / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert saved_steps(workdir) == saved_steps(other)
    (state, data), (other_state, other_data) = (saved_state(w, 12) for w in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert data == other_data
