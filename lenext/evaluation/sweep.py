"""Length x method over the same weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from tqdm import tqdm

from lenext.attention import Method, unsuited_axes
from lenext.data import Crops, Tokenizer, masked_crops
from lenext.evaluation.bootstrap import interval, ratios, resample
from lenext.evaluation.masked import CropFigures, figures_of_crops
from lenext.models import GAUEncoder, model_methods, with_method


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sweep; what each means stands in `lenext.config.base_config`, section `eval`."""

    batch_tokens: int
    probe_rows: int
    bootstrap: int
    seed: int
    mask_rate: float


def sweep(
    model: GAUEncoder,
    methods: Mapping[str, Sequence[Method]],
    crops_by_length: Mapping[int, Crops],
    tokenizer: Tokenizer,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Evaluates a model under every method at every length.

    Args:
      model: as trained; its own methods say what its weights suit.
      methods: patterns of methods by the name to report. Differences are to the first.
      crops_by_length: from `lenext.data.evaluation_crops`, by length.
      tokenizer: of the crops.
      settings: see `Settings`.

    Returns:
      One record a method, length and metric. Intervals are 95 %, by bootstrap over documents;
      "difference" is to the first method, paired on the same documents and masks. "unsuited" lists
      the axes in which the method wants weights trained for it and these were not.
    """
    records = []
    with tqdm(total=len(methods) * len(crops_by_length), unit="cell", dynamic_ncols=True) as bar:
        for length, crops in crops_by_length.items():
            masked = masked_crops(
                crops, seed=settings.seed, tokenizer=tokenizer, rate=settings.mask_rate
            )
            documents = np.unique(crops.document)
            draws = resample(len(documents), settings.bootstrap, settings.seed)
            baseline: dict[str, Estimate] = {}
            for name, pattern in methods.items():
                bar.set_postfix_str(f"{name} at {length}", refresh=False)
                graphdef, params = nnx.split(with_method(model, pattern))
                figures, cost = figures_of_crops(
                    graphdef,
                    nnx.to_pure_dict(params),
                    masked,
                    batch_size=max(1, settings.batch_tokens // length),
                    probe_rows=settings.probe_rows,
                )
                shared = {
                    "protocol": "mlm15",
                    "documents": len(documents),
                    "sequences": len(crops.tokens),
                    "tokens": int(crops.tokens.size),
                    "predictions": int(np.sum(figures.count)),
                    **cost._asdict(),
                    "unsuited": _unsuited(pattern, model_methods(model)),
                }
                sums = _by_document(figures, crops.document, documents)
                for metric, (numerator, denominator) in sums.items():
                    estimate = Estimate(
                        float(numerator.sum() / denominator.sum()),
                        ratios(numerator, denominator, draws),
                    )
                    record = {"method": name, "length": length, "metric": metric}
                    first = baseline.setdefault(metric, estimate)
                    records.append(record | estimate.describe(first) | shared)
                bar.update()
    return records


class Estimate(NamedTuple):
    """A figure, and what it comes to in each resample of the documents."""

    value: float
    samples: np.ndarray

    def describe(self, baseline: "Estimate") -> dict[str, Any]:
        """The figure with its interval, and its difference to a baseline on the same resamples."""
        return {
            "value": self.value,
            "interval": list(interval(self.samples)),
            "difference": self.value - baseline.value,
            "difference_interval": list(interval(self.samples - baseline.samples)),
        }


Sums = tuple[np.ndarray, np.ndarray]


def _by_document(
    figures: CropFigures, document: np.ndarray, documents: np.ndarray
) -> dict[str, Sums]:
    """Numerator and denominator of each metric, summed over each document's crops."""
    place = np.searchsorted(documents, document)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=x, minlength=len(documents))

    crops = total(np.ones(len(document)))
    return {
        "accuracy": (total(figures.correct), total(figures.count)),
        "loss": (total(figures.loss), total(figures.count)),
        "entropy": (total(figures.entropy), crops),
        "dilution": (total(figures.dilution), crops),
    }


def _unsuited(pattern: Sequence[Method], trained: Sequence[Method]) -> list[str]:
    axes = [
        axis
        for depth, method in enumerate(trained)
        for axis in unsuited_axes(pattern[depth % len(pattern)], method)
    ]
    return list(dict.fromkeys(axes))
