"""Intervals by resampling documents."""

import functools

import numpy as np
from jaxtyping import Float, Int

Interval = tuple[float, float]


@functools.lru_cache(maxsize=16)  # rows and metrics of a length share it
def resample(documents: int, times: int, seed: int) -> Int[np.ndarray, "times documents"]:
    """Indices of documents drawn with replacement. The same for the same arguments, so figures of
    two methods on the same documents can be compared resample by resample."""
    rng = np.random.default_rng(seed)
    return rng.integers(documents, size=(times, documents))


def ratios(
    numerator: Float[np.ndarray, " D"],
    denominator: Float[np.ndarray, " D"],
    draws: Int[np.ndarray, "times D"],
) -> Float[np.ndarray, " times"]:
    """sum(numerator) / sum(denominator) of each resample; NaN for one that has nothing to count."""
    below = denominator[draws].sum(axis=1)
    nothing = np.full(len(draws), np.nan)
    return np.divide(numerator[draws].sum(axis=1), below, out=nothing, where=below != 0)


def interval(samples: Float[np.ndarray, " times"], level: float = 0.95) -> Interval:
    """The central share `level` of the samples that are no NaN."""
    method = "nearest" if np.isinf(samples).any() else "linear"  # nothing is between infinities
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], method=method)
    return float(low), float(high)
