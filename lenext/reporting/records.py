"""From sums over documents to records: figures, intervals, differences, the best and the worst."""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np
from jaxtyping import Float, Int

from lenext.reporting.bootstrap import interval, ratios, resample

Record = dict[str, Any]

RESAMPLES = 2000
DEPTHS = 8
"""Parts of the places where needles begin, in records and pictures of what is retrieved."""
HIGHER_IS_BETTER = {
    "accuracy": True, "retrieved": True, "preferred": True, "loss": False, "far_loss": False,
}  # fmt: skip
"""By metric; "retrieved:vt" is as "retrieved"."""
TRANSFORMS = {"perplexity": np.exp}
"""What is made of a ratio of sums, of metrics where that is something else."""
DERIVED = ("perplexity", "bits_per_byte")  # from the loss; a mean of perplexities is none


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was measured of a method at a length. All are JSON values.

    Attributes:
      length: in tokens.
      protocol: by which the sequences were prepared.
      documents: indices in the corpus of the documents that sequences were cut from, ascending.
      sequences: how many there are.
      tokens: in all of them.
      seconds: of running, compilation apart.
      compile_seconds: of compiling; 0 where that was done for a length of the same bucket.
      peak_bytes: of the compiled pass: arguments, outputs and everything between.
      flops: of a sequence's forward pass, see `lenext.models.forward_flops`.
      cache_bytes: of a sequence's keys and values, in a model that generates; else None.
      unsuited: axes in which the method wants weights trained for it, and these were not.
      sums: one a metric and bucket of positions: "metric", "positions" ([from, to) or None),
        "predictions", and a number a document of "numerator" and "denominator", whose ratio of sums
        the metric is.
      heads: one a layer and head: how it attends, see `lenext.evaluation.metrics.by_head`.
      provenance: where it was measured, see `lenext.workdirs.provenance`.
    """

    length: int
    protocol: str
    documents: list[int]
    sequences: int
    tokens: int
    seconds: float
    compile_seconds: float
    peak_bytes: int
    flops: float
    cache_bytes: int | None
    unsuited: list[str]
    sums: list[dict[str, Any]]
    heads: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


SUMS = {
    "metric": str,
    "positions": list[int] | None,
    "predictions": int,
    "numerator": list[float],
    "denominator": list[float],
}


def read_cell(content: Any) -> Cell:
    """The cell of a JSON value, such as `dataclasses.asdict` makes.

    Raises:
      ValueError: it is none.
    """
    try:
        cell = Cell(**content)
    except TypeError:
        raise ValueError("should have a cell's keys") from None
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Cell)}
    if not is_of(vars(cell), kinds):
        raise ValueError("should be a cell")
    for sums in cell.sums:
        if not is_of(sums, SUMS) or (sums["positions"] is not None and len(sums["positions"]) != 2):
            raise ValueError("should be sums of a metric")
        if not f"{sums['metric']}{cell.protocol}".isprintable():
            raise ValueError("should be names")
        if not len(sums["numerator"]) == len(sums["denominator"]) == len(cell.documents) > 0:
            raise ValueError("should be a number a document")
        if any(2.0**500 < abs(x) < math.inf for x in sums["numerator"] + sums["denominator"]):
            raise ValueError("should be sums of float32 numbers")
    return cell


def is_of(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type; of a dict of types, has those keys of those types.

    An int is a float, too; a bool is no int.
    """
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            key in value and is_of(value[key], own) for key, own in kind.items()
        )
    parts = get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(is_of(value, part) for part in parts)
    if parts:  # list[float], dict[str, Any]
        members = value.values() if isinstance(value, dict) else value
        return type(value) is get_origin(kind) and all(is_of(x, parts[-1]) for x in members)
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      label: its name.
      trained: what its weights were trained as.
      method: what they were evaluated under.
      by_seed: seed to what was measured, a cell a length.
    """

    label: str
    trained: str
    method: str
    by_seed: Mapping[int, Sequence[Cell]]


class _Sums(NamedTuple):
    """A figure of a row: by seed, the sums whose ratio it is, by document."""

    first: Cell
    predictions: int
    documents: tuple[int, ...]
    numerator: Float[np.ndarray, "S D"]
    denominator: Float[np.ndarray, "S D"]

    def by_seed(self, metric: str) -> Float[np.ndarray, " S"]:
        """Each seed's own figure."""
        ratio = self.numerator.sum(axis=1) / self.denominator.sum(axis=1)
        return TRANSFORMS.get(metric, np.positive)(ratio)

    def samples(self, metric: str, times: int, seed: int) -> Float[np.ndarray, " times"] | None:
        """The mean over seeds in each resample of documents and seeds.

        None where one document alone counts, of which there is nothing to resample.
        """
        if min(np.count_nonzero(self.denominator, axis=1)) < 2:
            return None
        draws = resample(len(self.documents), times, seed)
        seed_draws = resample(len(self.numerator), times, seed + 1)
        drawn = np.stack(
            [ratios(n, d, draws) for n, d in zip(self.numerator, self.denominator, strict=True)]
        )
        drawn = TRANSFORMS.get(metric, np.positive)(drawn)
        return np.take_along_axis(drawn.T, seed_draws, axis=1).mean(axis=1)


_Key = tuple[int, str, tuple[int, int] | None]
"""Length, metric, positions."""


def make_records(
    rows: Sequence[Row],
    baseline: str,
    metrics: Iterable[str] | None = None,
    *,
    times: int = RESAMPLES,
    seed: int = 0,
) -> list[Record]:
    """A record a row, length and metric (and bucket of positions, where a metric has any).

    A figure is the mean over seeds of each seed's own. Its interval is 95 %, by resampling the
    documents and, where there are several, the seeds; None where one document alone counts.
    "difference" is to the row `baseline` under the same draws of both, and so is the difference to
    a column's best and worst row, of which "best" and "worst" say that it cannot be told from 0.

    Args:
      rows: of equal seeds, lengths and documents.
      baseline: label of the row that others are compared with.
      metrics: which ones; default: all that there are. Those of `DERIVED` are of one seed alone.
      times: resamples.
      seed: of the resamples.

    Raises:
      ValueError: rows differ in seeds or documents, or a metric cannot be pooled.
    """
    seeds = sorted(rows[0].by_seed)
    there = {
        s["metric"] for row in rows for own in row.by_seed.values() for c in own for s in c.sums
    }
    derived = set(DERIVED) if len(seeds) > 1 else set()
    wanted = there - derived if metrics is None else set(metrics)
    if wanted & derived:
        raise ValueError(f"{', '.join(wanted & derived)}: cannot be pooled over seeds")
    for row in rows:
        if sorted(row.by_seed) != seeds:
            raise ValueError(f"{row.label}: seeds {sorted(row.by_seed)}, others {seeds}")
    sums = {row.label: _sums_of(row, wanted) for row in rows}
    records = []
    for key in sums[baseline]:
        column = [(row, sums[row.label][key]) for row in rows if key in sums[row.label]]
        records += _column(column, key, baseline, times, seed)
    order = {row.label: i for i, row in enumerate(rows)}
    return sorted(records, key=lambda record: order[record["method"]])


def _sums_of(row: Row, metrics: set[str]) -> dict[_Key, _Sums]:
    """A row's figures."""
    found: dict[_Key, list[tuple[Cell, dict[str, Any]]]] = {}
    for seed in sorted(row.by_seed):
        for cell in row.by_seed[seed]:
            for sums in cell.sums:
                if sums["metric"] in metrics:
                    positions = sums["positions"] and tuple(sums["positions"])
                    key = cell.length, sums["metric"], positions
                    found.setdefault(key, []).append((cell, sums))
    joined = {}
    for key, of_seeds in found.items():
        documents = {tuple(cell.documents) for cell, _ in of_seeds}
        if len(documents) > 1 or len(of_seeds) != len(row.by_seed):
            raise ValueError(f"{row.label} at {key}: seeds were evaluated on other documents")
        joined[key] = _Sums(
            of_seeds[0][0],
            of_seeds[0][1]["predictions"],
            documents.pop(),
            np.array([sums["numerator"] for _, sums in of_seeds], float),
            np.array([sums["denominator"] for _, sums in of_seeds], float),
        )
    return joined


def _column(
    column: Sequence[tuple[Row, _Sums]], key: _Key, baseline: str, times: int, seed: int
) -> list[Record]:
    """The records of all rows at a length and metric."""
    length, metric, positions = key
    by_label = {row.label: sums for row, sums in column}
    documents = by_label[baseline].documents
    for label, sums in by_label.items():
        if sums.documents != documents:
            raise ValueError(f"{label}: evaluated on other documents than {baseline}")
    values = {label: sums.by_seed(metric) for label, sums in by_label.items()}
    means = {label: float(np.mean(x)) for label, x in values.items()}
    samples = {label: sums.samples(metric, times, seed) for label, sums in by_label.items()}

    def ends(drawn: np.ndarray | None) -> list[float] | None:
        return None if drawn is None or np.isnan(drawn).all() else list(interval(drawn))

    def apart(label: str, other: str) -> list[float] | None:
        """The interval of their difference."""
        ours, theirs = samples[label], samples[other]
        if ours is None or theirs is None:
            return None
        with np.errstate(invalid="ignore"):  # of two infinite figures it is no number
            return ends(ours - theirs)

    def alike(label: str, other: str) -> bool:
        low, high = apart(label, other) or [means[label] - means[other]] * 2
        return bool(low <= 0 <= high)

    # What is no number is neither the best nor what others are the worst against.
    ranked = sorted((x for x in by_label if np.isfinite(means[x])), key=lambda label: means[label])
    higher = HIGHER_IS_BETTER.get(metric.partition(":")[0])
    if higher is False:
        ranked.reverse()
    records = []
    for row, sums in column:
        label = row.label
        record: Record = {
            "method": label,
            "length": length,
            "metric": metric,
            "positions": positions and list(positions),
            "protocol": sums.first.protocol,
            "documents": len(documents),
            "predictions": sums.predictions,
            "trained": row.trained,
            "evaluated": row.method,
            "value": means[label],
            "interval": ends(samples[label]),
            "by_seed": values[label].tolist(),
            "difference": means[label] - means[baseline],
            "difference_interval": apart(label, baseline),
            "unsuited": sums.first.unsuited,
        }
        if higher is not None:
            for name, end in (("best", -1), ("worst", 0)):
                record[name] = label in ranked and alike(label, ranked[end])
        records.append(record)
    return records


def effective_lengths(
    rows: Sequence[Row],
    train_length: int,
    margin: float,
    *,
    times: int = RESAMPLES,
    seed: int = 0,
) -> list[Record]:
    """How far each row holds: the longest length up to which its loss stays near that at L.

    Args:
      rows: as for `make_records`.
      train_length: L; where it was not measured, the shortest length beyond it stands for it, or
        the shortest of all.
      margin: share of the loss at L by which the loss may exceed it, at this length and at every
        shorter one from L on.
      times: resamples.
      seed: of the resamples.

    Returns:
      A record a row: "effective_length", None where the loss at L is no number; its 95 %
      "interval", by resampling documents and seeds, None where one document alone counts; "from",
      the length that stands for L; "longest", the longest one measured, so that where the two are
      equal the row may hold further. Of a row without a loss there is none.
    """
    found = []
    for row in rows:
        if not _sums_of(row, {"loss"}):
            continue
        columns = {
            key[0]: sums
            for key, sums in sorted(_sums_of(row, {"loss"}).items(), key=lambda x: x[0][0])
        }
        lengths = [n for n in columns if n >= train_length] or [*columns]
        first = train_length if train_length in columns else lengths[0]
        values = np.array([np.mean(columns[n].by_seed("loss")) for n in lengths])
        drawn = [columns[n].samples("loss", times, seed) for n in lengths]
        reached, ends = _reach(values[:, None], margin)[0], None
        if all(x is not None for x in drawn):
            drawn_ends = _reach(np.array(drawn), margin)
            drawn_ends = drawn_ends[drawn_ends >= 0]  # a draw may have nothing to count
            if reached >= 0:
                quantiles = np.quantile(drawn_ends, (0.025, 0.975), method="nearest")
                ends = [lengths[int(x)] for x in quantiles]
        found.append(
            {
                "method": row.label,
                "effective_length": None if reached < 0 else lengths[reached],
                "interval": ends,
                "margin": margin,
                "from": first,
                "longest": lengths[-1],
            }
        )
    return found


def _reach(
    losses: Float[np.ndarray, "lengths samples"], margin: float
) -> Int[np.ndarray, " samples"]:
    """The number of the last length up to which no loss exceeds the first one's by the margin.

    -1 where the first one is no number.
    """
    within = losses / (1 + margin) <= losses[0]
    return np.cumprod(within, axis=0).sum(axis=0) - 1
