"""The entry points, called in this process: a start of their own costs seconds."""

import logging
import runpy
import sys

import pytest
from absl import logging as absl_logging
from absl.testing import flagsaver

from lenext.config import read_methods
from lenext.data import ByteTokenizer
from lenext.models import build_model, kinds_of
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state
from lenext.workdirs.checkpoints import Checkpoints
from lenext.workdirs.workdir import write_run_config
from tests.training.common import REPOSITORY, Outcome, arguments, tiny_config, tiny_decoder_config


@pytest.fixture
def call(monkeypatch, capsys):
    """Returns a caller of `python -m lenext.PROGRAM ARGUMENTS` from the repository."""

    def call(program, *words):
        monkeypatch.setattr(sys, "argv", [f"lenext.{program}", *map(str, words)])
        monkeypatch.chdir(REPOSITORY)
        # Of which runpy warns: another test may have imported it.
        monkeypatch.delitem(sys.modules, f"lenext.{program}", raising=False)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back at the end
        monkeypatch.setattr("lenext.interrupts.end", sys.exit)
        verbosity = absl_logging.get_verbosity()
        levels = {logger: logger.level for logger in map(logging.getLogger, ("", "asyncio"))}
        capsys.readouterr()
        code = 0
        try:
            # A process defines its flags once; here they are dropped again.
            with flagsaver.flagsaver():
                runpy.run_module(f"lenext.{program}", run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
            absl_logging.set_verbosity(verbosity)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def fails(call):
    """Returns a caller that checks for one line on stderr, exit code 2, and gives the line."""

    def fails(program, *words, code=2):
        outcome = call(program, *words)
        assert outcome.code == code, outcome.err
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1
        assert outcome.err.endswith("\n")
        return outcome.err.removeprefix("error: ").rstrip("\n")

    return fails


@pytest.fixture
def words(config, tmp_path):
    """The words of a good command line; its workdir is tmp_path/run."""
    return [*arguments(config), f"--workdir={tmp_path / 'run'}"]


def untrained_run(config, workdir):
    """Writes a checkpoint of a model as it is initialised."""
    config.training.update(steps=2, eval_every=2, checkpoint_every=2)
    methods = read_methods(config.model.method, config.data.train_length)
    size = config.model.vocab_size or ByteTokenizer().vocab_size
    model = build_model(config.model, methods, size, seed=0)
    optimizer = make_optimizer(
        config.optimizer, make_schedule(config.optimizer, 2), kinds_of(model)
    )
    write_run_config(workdir, config)
    checkpoints = Checkpoints(workdir, best_metric=config.training.best_metric)
    checkpoints.save(2, init_state(model, optimizer), {}, {})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="package")
def trained(data_dir, tmp_path_factory):
    """A workdir that holds a checkpoint; not to be written to."""
    return untrained_run(tiny_config(data_dir), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="package")
def decoder(data_dir, tmp_path_factory):
    """A workdir that holds a decoder's checkpoint; not to be written to."""
    return untrained_run(tiny_decoder_config(data_dir), tmp_path_factory.mktemp("decoder"))
