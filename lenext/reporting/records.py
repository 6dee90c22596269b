"""Runs of several seeds taken together: figures, intervals, differences, the best and the worst."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lenext.reporting.bootstrap import interval, ratios, resample

Record = dict[str, Any]

RESAMPLES = 2000
DEPTHS = 8
"""Parts of the places where needles begin, in records and pictures of what is retrieved."""
HIGHER_IS_BETTER = {"accuracy": True, "retrieved": True, "loss": False}
DERIVED = ("perplexity", "bits_per_byte")  # from the loss; a mean of perplexities is none


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      label: its name.
      trained: what its weights were trained as.
      method: what they were evaluated under.
      by_seed: seed to the records of `lenext.evaluation.evaluate_run`, each with its "sums".
    """

    label: str
    trained: str
    method: str
    by_seed: Mapping[int, Sequence[Record]]


class _Cell(NamedTuple):
    """A figure of a row: by seed, the sums whose ratio it is, by document."""

    first: Record
    documents: tuple[int, ...]
    numerator: Float[np.ndarray, "S D"]
    denominator: Float[np.ndarray, "S D"]


def pool(rows: Sequence[Row], baseline: str, metrics: Iterable[str]) -> list[Record]:
    """A record a row, length and metric, as `lenext.evaluation.sweep` makes of one run.

    A figure is the mean over seeds of each seed's own. Its interval is 95 %, by resampling the
    documents and, where there are several, the seeds; "difference" is to the row `baseline` under
    the same draws of both, and so is the difference to a column's best and worst row, of which
    "best" and "worst" say that it cannot be told from 0.

    Args:
      rows: of equal seeds, lengths and documents.
      baseline: label of the row that others are compared with.
      metrics: which ones; those of `DERIVED` cannot be pooled.

    Raises:
      ValueError: rows differ in seeds or documents, or a metric cannot be pooled.
    """
    wanted = set(metrics)
    if wanted & set(DERIVED):
        raise ValueError(f"{', '.join(wanted & set(DERIVED))}: cannot be pooled over seeds")
    seeds = sorted(rows[0].by_seed)
    for row in rows:
        if sorted(row.by_seed) != seeds:
            raise ValueError(f"{row.label}: seeds {sorted(row.by_seed)}, others {seeds}")
    cells = {row.label: _cells(row, wanted) for row in rows}
    records = []
    for key in cells[baseline]:
        column = {label: found[key] for label, found in cells.items() if key in found}
        records += _column(column, {row.label: row for row in rows}, baseline, seeds)
    order = {row.label: i for i, row in enumerate(rows)}
    return sorted(records, key=lambda record: order[record["method"]])


def _cells(row: Row, metrics: set[str]) -> dict[Any, _Cell]:
    """A row's figures by (length, metric, positions)."""
    found: dict[Any, list[Record]] = {}
    for seed in sorted(row.by_seed):
        for record in row.by_seed[seed]:
            if record["metric"] in metrics:
                positions = record["positions"] and tuple(record["positions"])
                key = record["length"], record["metric"], positions
                found.setdefault(key, []).append(record)
    cells = {}
    for key, records in found.items():
        sums = [record["sums"] for record in records]
        documents = {tuple(x["documents"]) for x in sums}
        if len(documents) > 1 or len(records) != len(row.by_seed):
            raise ValueError(f"{row.label} at {key}: seeds were evaluated on other documents")
        cells[key] = _Cell(
            records[0],
            documents.pop(),
            np.array([x["numerator"] for x in sums], float),
            np.array([x["denominator"] for x in sums], float),
        )
    return cells


def _column(
    column: Mapping[str, _Cell], rows: Mapping[str, Row], baseline: str, seeds: Sequence[int]
) -> list[Record]:
    """The records of all rows at a length and metric."""
    documents = column[baseline].documents
    draws = resample(len(documents), RESAMPLES, seed=0)
    seed_draws = resample(len(seeds), RESAMPLES, seed=1)
    values, samples = {}, {}
    for label, cell in column.items():
        if cell.documents != documents:
            raise ValueError(f"{label}: evaluated on other documents than {baseline}")
        by_seed = cell.numerator.sum(axis=1) / cell.denominator.sum(axis=1)
        values[label] = by_seed
        drawn = np.stack(
            [ratios(n, d, draws) for n, d in zip(cell.numerator, cell.denominator, strict=True)]
        )
        samples[label] = np.take_along_axis(drawn.T, seed_draws, axis=1).mean(axis=1)
    means = {label: float(np.mean(x)) for label, x in values.items()}
    metric = column[baseline].first["metric"]
    ranked = sorted(column, key=lambda label: means[label])
    if metric in HIGHER_IS_BETTER and not HIGHER_IS_BETTER[metric]:
        ranked.reverse()
    records = []
    for label, cell in column.items():
        record: Record = {
            key: cell.first[key]
            for key in ("length", "metric", "positions", "protocol", "documents")
        }
        record |= {
            "method": label,
            "trained": rows[label].trained,
            "evaluated": rows[label].method,
            "predictions": cell.first["predictions"],
            "value": means[label],
            "interval": list(interval(samples[label])),
            "by_seed": values[label].tolist(),
            "difference": means[label] - means[baseline],
            "difference_interval": list(interval(samples[label] - samples[baseline])),
            "unsuited": cell.first["unsuited"],
        }
        if metric in HIGHER_IS_BETTER:
            for name, end in (("best", ranked[-1]), ("worst", ranked[0])):
                low, high = interval(samples[label] - samples[end])
                record[name] = low <= 0 <= high
        records.append(record)
    return records
