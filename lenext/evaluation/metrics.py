"""Metrics of figures, summed over documents: what `lenext.reporting.records` makes records of."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from lenext.evaluation.figures import Figures, HeadFigures
from lenext.evaluation.protocols import Answers
from lenext.reporting.records import DEPTHS

FIRST_BUCKET = 16


class Metric(NamedTuple):
    """A ratio of sums over documents.

    Attributes:
      name: what it is called in records.
      numerator: one a document.
      denominator: one a document.
      positions: [from, to) where the metric is of these positions only.
      counted: the denominator counts predictions: it is not of all of them.
    """

    name: str
    numerator: Float[np.ndarray, " D"]
    denominator: Float[np.ndarray, " D"]
    positions: tuple[int, int] | None = None
    counted: bool = False


def metrics_of(
    figures: Figures,
    document: Int64[np.ndarray, " C"],
    *,
    causal: bool,
    by_position: bool,
    byte_level: bool,
    answers: Answers | None = None,
    far: Bool[np.ndarray, "C P"] | None = None,
) -> list[Metric]:
    """What there is to say of sequences, each metric summed over each document's sequences.

    Args:
      figures: of the sequences.
      document: which document each was cut from; documents are in ascending order in the metrics.
      causal: perplexity has a meaning, and bits per byte.
      by_position: prediction p was made from p + 1 tokens: loss by position has a meaning.
      byte_level: tokens are bytes.
      answers: of a task: what is "retrieved" has all of its tokens right.
      far: predictions that need the far context: "far_loss" is the loss on these, if there are any.
    """
    documents, place = np.unique(document, return_inverse=True)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=x, minlength=len(documents))

    weighted = figures.loss * figures.weights
    loss, count = total(weighted.sum(axis=1)), total(figures.weights.sum(axis=1))
    hits = total((figures.correct * figures.weights).sum(axis=1))
    rows = total(np.ones(len(document)))
    accuracy, mean_loss = Metric("accuracy", hits, count), Metric("loss", loss, count)
    found = [accuracy, mean_loss]
    if causal:
        found = [mean_loss, Metric("perplexity", loss, count), accuracy]
    if causal and byte_level:
        found.append(Metric("bits_per_byte", loss / math.log(2), count))
    if far is not None and np.any(far * figures.weights):
        some, counted = (total((x * far).sum(axis=1)) for x in (weighted, figures.weights))
        found.append(Metric("far_loss", some, counted, counted=True))
    if answers:
        right, asked = _right(figures.correct, answers), np.ones(answers.place.shape)
        found.append(Metric("retrieved", total(right.sum(axis=1)), total(asked.sum(axis=1))))
        for low, high in depths(int(answers.place.max()) + 1):
            here = (answers.place >= low) & (answers.place < high)
            some, counted = total((right * here).sum(axis=1)), total(here.sum(axis=1))
            if counted.any():
                where = (low, high)
                found.append(Metric("retrieved_by_place", some, counted, where, counted=True))
    found += _head_metrics(figures.heads, total, rows) if figures.heads else []
    for low, high in buckets(figures.loss.shape[1]) if by_position else []:
        some = total(weighted[:, low:high].sum(axis=1))
        counted = total(figures.weights[:, low:high].sum(axis=1))
        found.append(Metric("loss_by_position", some, counted, (low, high), counted=True))
    return found


def _head_metrics(heads: HeadFigures, total: Callable, rows: np.ndarray) -> list[Metric]:
    """Means over layers and heads; of the largest logit, the largest of all."""

    def mean(x: np.ndarray) -> np.ndarray:
        return total(x.mean(axis=(1, 2)))

    return [
        Metric("entropy", mean(heads.entropy), rows),
        Metric("dilution", mean(heads.dilution), rows),
        Metric("gap_scale", rows, mean(heads.gap)),
        Metric("max_logit", total(heads.max_logit.max(axis=(1, 2))), rows),
        Metric("sink_weight", mean(heads.sink_weight), rows),
    ]


def _right(correct: Float[np.ndarray, "C P"], answers: Answers) -> Float[np.ndarray, "C answers"]:
    """1 where all tokens of an answer are right."""
    numbers = range(answers.place.shape[1])
    parts = [np.where(answers.number == number, correct, 1.0).min(axis=1) for number in numbers]
    return np.stack(parts, axis=1)


def by_head(heads: HeadFigures) -> list[dict[str, Any]]:
    """A record a layer and head, of its figures over all sequences.

    `gap_scale` is the harmonic mean of the rows' Lambda, `max_logit` the largest of all.
    """
    means = {name: x.mean(axis=0) for name, x in heads._asdict().items()}
    means["max_logit"] = heads.max_logit.max(axis=0)
    means["gap_scale"] = 1 / means.pop("gap")
    return [
        {"layer": layer, "head": head} | {name: float(x[layer, head]) for name, x in means.items()}
        for layer, head in np.ndindex(heads.entropy.shape[1:])
    ]


def buckets(length: int) -> list[tuple[int, int]]:
    """Positions 0 … length - 1 in doublings: [0, 16), [16, 32), [32, 64) and on."""
    edges, edge = [0], FIRST_BUCKET
    while edge < length:
        edges.append(edge)
        edge *= 2
    return list(zip(edges, [*edges[1:], length], strict=True))


def depths(length: int) -> list[tuple[int, int]]:
    """Positions 0 … length - 1, where needles begin, in `DEPTHS` parts, all but equal."""
    edges = [length * part // DEPTHS for part in range(DEPTHS + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]
