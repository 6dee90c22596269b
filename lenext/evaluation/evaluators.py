"""Evaluators that run during training; their "type" in the config is a protocol's name."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lenext.config import Config
from lenext.data import Corpus, Tokenizer, open_split
from lenext.errors import UserError
from lenext.evaluation.figures import figures_of
from lenext.evaluation.protocols import CropSettings, get_protocol
from lenext.models import FAMILIES

Evaluator = Callable[[nnx.GraphDef, Any], dict[str, float]]
"""(graphdef, params) to figures by name."""

FIGURES = ("loss", "accuracy")
"""What every evaluator gives."""


def make_evaluators(
    config: Config,
    tokenizer: Tokenizer,
    mesh: Mesh | None = None,
    corpora: Mapping[str, Corpus] | None = None,
) -> dict[str, Evaluator]:
    """The evaluators of the section `evaluators`, by the names they have there.

    Their work is split over the mesh, and every process gets the whole result. `corpora` are the
    splits that they use, where they are open; None opens them.

    Raises:
      UserError: for an unknown type, or crops that the data does not hold; for a
        `training.best_metric` that none of them gives.
    """
    evaluators = {
        name: _make_evaluator(name, settings, config, tokenizer, mesh, corpora)
        for name, settings in config.evaluators.items()
    }
    kinds = ("", "_ema") if config.training.ema_decay else ("",)
    metrics = [
        f"eval/{name}{kind}/{figure}" for name in evaluators for kind in kinds for figure in FIGURES
    ]
    if config.training.best_metric not in metrics:
        raise UserError(
            f"config.training.best_metric={config.training.best_metric!r}: should be one of "
            f"{', '.join(metrics)}"
        )
    return evaluators


def _make_evaluator(
    name: str,
    settings: Config,
    config: Config,
    tokenizer: Tokenizer,
    mesh: Mesh | None,
    corpora: Mapping[str, Corpus] | None,
) -> Evaluator:
    """Loss and accuracy at one length."""
    objective = FAMILIES[config.model.family].objective
    protocol = get_protocol(settings.type, objective, f"config.evaluators.{name}.type")
    split = settings.split
    corpus = corpora[split] if corpora else open_split(config.data, split, tokenizer)
    crop_settings = CropSettings(
        documents=settings.documents,
        tokens=settings.tokens,
        seed=config.eval.seed,
        mask_rate=config.data.mask_rate,
        masks=config.eval.masks,
        needles=config.data.needles,  # what is trained on, whatever is asked in the end
        stride=config.eval.stride,
        key=f"config.evaluators.{name}.length",
    )
    sequences = protocol.prepare(corpus, tokenizer, settings.length, settings.length, crop_settings)
    batch_size = max(1, config.eval.batch_tokens // settings.length)

    def run(graphdef: nnx.GraphDef, params: Any) -> dict[str, float]:
        figures, _ = figures_of(
            graphdef, params, sequences.batch, batch_size=batch_size, probe_rows=0, mesh=mesh
        )
        count = float(np.sum(figures.weights))
        return {
            "loss": float(np.sum(figures.loss * figures.weights)) / count,
            "accuracy": float(np.sum(figures.correct * figures.weights)) / count,
        }

    return run
