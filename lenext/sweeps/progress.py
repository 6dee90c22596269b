"""How long runs take: by their floating-point operations, at the speed of those that are done."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lenext.config import Config, read_lengths, read_methods, to_config
from lenext.models import build_model
from lenext.sweeps.runs import Run, find_outcome, missing, trained_steps

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
                outcome = json.loads(path.read_text())
                config = to_config(json.loads((path.parent / "config.json").read_text()))
                if not outcome["stopped"]:
                    training.append(training_operations(config) / outcome["seconds"])
            for path in folder.glob("*/evaluations/*.json"):
                results = json.loads(path.read_text())
                config = to_config(results["provenance"]["config"])
                evaluation.append(evaluation_operations(config) / results["seconds"])
        return cls(*(float(np.median(x)) if x else ASSUMED for x in (training, evaluation)))

    def seconds_left(self, runs: Sequence[Run], folders: Sequence[Path]) -> list[float]:
        """About how long the rest of each run takes; a training that several share counts once."""
        found, trained = [], set()
        for run in runs:
            seconds = len(missing(run, folders)) * evaluation_operations(run.config)
            seconds /= self.evaluation
            if run.key not in trained and find_outcome(run, folders) is None:
                left = 1 - max(trained_steps(run, folder) for folder in folders) / run.steps
                seconds += left * training_operations(run.config) / self.training
            trained.add(run.key)
            found.append(seconds)
        return found


def training_operations(config: Config) -> float:
    """Of all steps: backward passes take twice what forward passes take."""
    data = config.data
    tokens = config.training.steps * data.batch_size * data.train_length
    return 3 * tokens * _operations(config, data.train_length)


def evaluation_operations(config: Config) -> float:
    """Of one method at all lengths."""
    return sum(
        max(config.eval.tokens, config.eval.documents * length) * _operations(config, length)
        for length in read_lengths(config.eval.lengths)
    )


def _operations(config: Config, length: int) -> float:
    """Of a token's forward pass: two a parameter, and four a channel and key of attention."""
    model = config.model
    if model.family == "gau":
        channels = (model.key_size + model.intermediate_size) / 2
    else:
        channels = model.num_heads * model.key_size
    return 2 * _parameters(model.to_json()) + 4 * model.num_layers * channels * length


@functools.cache
def _parameters(model: str) -> int:
    config: Config = ConfigDict(json.loads(model))
    methods = read_methods("nope", train_length=2)
    shapes = nnx.eval_shape(lambda: build_model(config, methods, config.vocab_size or BYTES, 0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(shapes)))


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
