"""How long runs take: by their floating-point operations, at the speed of those that are done."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lenext.config import Config, read_lengths, read_methods, to_config
from lenext.config.checks import check_least
from lenext.errors import UserError
from lenext.models import build_model, check_sizes, forward_flops
from lenext.sweeps.runs import (
    Run,
    find_outcome,
    missing,
    read_evaluation,
    read_outcome,
    trained_steps,
)
from lenext.workdirs.checkpoints import MANY_LAYERS
from lenext.workdirs.workdir import read_run_config

ASSUMED = 2e10  # operations a second, of two CPU cores, where nothing was measured
BYTES = 258  # vocabulary that is assumed


class Rates(NamedTuple):
    """Floating-point operations a second, and where that was measured.

    Attributes:
      training: of trainings.
      evaluation: of evaluations, which run at lengths of their own.
    """

    training: float
    evaluation: float

    @classmethod
    def measured(cls, folders: Sequence[Path]) -> "Rates":
        """Medians over all that is done in the folders."""
        training, evaluation = [], []
        for folder in folders:
            for path in folder.glob("*/outcome.json"):
                outcome = read_outcome(path)
                if not outcome["seconds"]:  # of a model that was imported
                    continue
                config = to_config(read_run_config(path.parent) or {})
                if not outcome["stopped"]:
                    training.append(training_operations(config) / outcome["seconds"])
            for path in folder.glob("*/evaluations/*.json"):
                results, _ = read_evaluation(path)
                config = to_config(results["provenance"].get("config", {}))
                evaluation.append(evaluation_operations(config) / results["seconds"])
        return cls(*(float(np.median(x)) if x else ASSUMED for x in (training, evaluation)))

    def seconds_left(self, runs: Sequence[Run], folders: Sequence[Path]) -> list[float]:
        """About how long the rest of each run takes; a training that several share counts once."""
        found, trained = [], set()
        for run in runs:
            seconds = len(missing(run, folders)) * evaluation_operations(run.config)
            seconds /= self.evaluation
            if run.steps and run.key not in trained and find_outcome(run, folders) is None:
                left = 1 - max(trained_steps(run, folder) for folder in folders) / run.steps
                seconds += left * training_operations(run.config) / self.training
            trained.add(run.key)
            found.append(seconds)
        return found


def training_operations(config: Config) -> float:
    """Of all steps: backward passes take twice what forward passes take.

    Raises:
      UserError: for a config that no run has.
    """
    check_least(config.data, "data", 2, "train_length")
    sequences = config.training.steps * config.data.batch_size
    return 3 * sequences * _forward(config.model.to_json(), config.data.train_length)


def evaluation_operations(config: Config) -> float:
    """Of one method at all lengths, taken as one that sees every key."""
    settings = config.eval
    return sum(
        max(settings.tokens / length, settings.documents) * _forward(config.model.to_json(), length)
        for length in read_lengths(settings.lengths)
    )


@functools.cache
def _forward(model: str, length: int) -> float:
    """Of a sequence, with logits at every token."""
    config: Config = ConfigDict(json.loads(model))
    check_sizes(config)
    if config.num_layers > MANY_LAYERS:  # a model of them takes hours to describe
        raise UserError(f"config.model.num_layers={config.num_layers}: no run has so many")
    methods = read_methods("nope", train_length=2)
    shapes = nnx.eval_shape(lambda: build_model(config, methods, config.vocab_size or BYTES, 0))
    return forward_flops(shapes, length, length)


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
