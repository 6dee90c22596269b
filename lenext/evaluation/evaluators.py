"""Evaluators that run during training, named in the config by "type"."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from lenext.config import Config
from lenext.data import Tokenizer, evaluation_crops, load_corpus, masked_crops
from lenext.errors import UserError
from lenext.evaluation.masked import figures_of_crops

Evaluator = Callable[[nnx.GraphDef, Any], dict[str, float]]
"""(graphdef, params) to figures by name."""


def make_evaluators(config: Config, tokenizer: Tokenizer) -> dict[str, Evaluator]:
    """The evaluators of the section `evaluators`, by the names they have there.

    Raises:
      UserError: for an unknown type, or crops that the data does not hold; for a
        `training.best_metric` that none of them gives.
    """
    evaluators = {}
    metrics = []
    for name, settings in config.evaluators.items():
        if settings.type not in EVALUATORS:
            raise UserError(
                f"config.evaluators.{name}.type={settings.type!r}: should be one of "
                f"{', '.join(EVALUATORS)}"
            )
        make, figures = EVALUATORS[settings.type]
        evaluators[name] = make(settings, config, tokenizer)
        metrics += [f"eval/{name}/{figure}" for figure in figures]
    if config.training.best_metric not in metrics:
        raise UserError(
            f"config.training.best_metric={config.training.best_metric!r}: should be one of "
            f"{', '.join(metrics)}"
        )
    return evaluators


def mlm15(settings: Config, config: Config, tokenizer: Tokenizer) -> Evaluator:
    """Masked-LM loss and accuracy at one length, masks as in training."""
    data = config.data
    corpus = load_corpus(data.dataset, settings.split, tokenizer, data.data_dir or None)
    crops = evaluation_crops(
        corpus, length=settings.length, documents=settings.documents, tokens=settings.tokens
    )
    batches = masked_crops(crops, seed=config.eval.seed, tokenizer=tokenizer, rate=data.mask_rate)
    batch_size = max(1, config.eval.batch_tokens // settings.length)

    def run(graphdef: nnx.GraphDef, params: Any) -> dict[str, float]:
        figures, _ = figures_of_crops(
            graphdef, params, batches, batch_size=batch_size, probe_rows=0
        )
        count = float(np.sum(figures.count))
        return {
            "loss": float(np.sum(figures.loss)) / count,
            "accuracy": float(np.sum(figures.correct)) / count,
        }

    return run


EVALUATORS: dict[str, tuple[Callable[..., Evaluator], tuple[str, ...]]] = {
    "mlm15": (mlm15, ("loss", "accuracy")),
}
"""Type to its maker and the figures that it gives."""
