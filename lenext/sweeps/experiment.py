"""An experiment: runs to train, and what is made of their results."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lenext.config import differences, plain
from lenext.errors import UserError
from lenext.files import write_atomically
from lenext.reporting.records import Row, make_records
from lenext.sweeps.runs import (
    Run,
    find_evaluation,
    find_outcome,
    make_folder,
    read_evaluation,
)
from lenext.workdirs.provenance import joined
from lenext.workdirs.versions import results_version

Content = dict[str, Any]
"""What an experiment's JSON holds: where it comes from (config, seeds, tokens, steps, git,
results_version, fingerprint, versions, hardware), "runs", and "records" as of `make_records`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What a file of this folder declares.

    Attributes:
      name: of its files in the results.
      runs: of a size, the runs; those of a name differ in the seed alone.
      baseline: the row that others are compared with; or gives it of a row's label, where rows
        were asked different things.
      metrics: what is kept of the evaluations.
      report: files to write, by the end of their names (".md", "_depth.png"), from the content.
      details: what else is to be kept of a run, from its workdir.
    """

    name: str
    runs: Callable[[str], list[Run]]
    baseline: str | Callable[[str], str]
    metrics: Sequence[str]
    report: Callable[[Content], Mapping[str, str | bytes]]
    details: Callable[[Run, Path], Mapping[str, Any]] = lambda run, workdir: {}


def collect(
    experiment: Experiment, runs: Sequence[Run], size: str, folders: Sequence[Path]
) -> Content:
    """The content of an experiment whose runs, of a size, are all done in some of the folders."""
    rows: dict[str, Row] = {}
    described, sources = [], []
    for run in runs:
        found = find_outcome(run, folders)
        assert found is not None  # all runs are done
        folder, outcome = found
        sources.append(outcome["provenance"])
        seconds = 0.0
        for label, method in run.rows.items() if not outcome["stopped"] else ():
            path = find_evaluation(run, method, folders)
            assert path is not None
            results, cells = read_evaluation(path)
            sources.append(results["provenance"])
            seconds += results["seconds"]
            row = rows.setdefault(label, Row(label, run.name, method, {}))
            # What was asked in two ways is one row.
            both = [*row.by_seed.get(run.seed, ()), *cells]
            row.by_seed[run.seed] = both  # pyright: ignore[reportIndexIssue]
        described.append(
            {
                "name": run.name,
                "seed": run.seed,
                "key": run.key,
                "changes": differences(plain(run.config), plain(runs[0].config), "config"),
                "tokens": run.tokens,
                "steps": run.steps,
                "stopped": outcome["stopped"],
                "training_seconds": round(outcome["seconds"], 1),
                "evaluation_seconds": round(seconds, 1),
            }
            | dict(experiment.details(run, run.workdir(folder)))
        )
    content: Content = {
        "experiment": experiment.name,
        "size": size,
        "config": plain(runs[0].config),
        "seeds": sorted({run.seed for run in runs}),
        "tokens": _one({run.tokens for run in runs}),
        "steps": _one({run.steps for run in runs}),
    }
    for key in ("git", "fingerprint", "versions", "hardware"):
        content[key] = joined([source[key] for source in sources if key in source])
    content["results_version"] = results_version()  # no other is found under the runs' keys
    content["runs"] = described
    content["records"] = _pooled(list(rows.values()), experiment)
    return rounded(content)


def baseline_of(experiment: Experiment, label: str) -> str:
    """The row that one is compared with."""
    own = experiment.baseline
    return own if isinstance(own, str) else own(label)


def _pooled(rows: Sequence[Row], experiment: Experiment) -> list[dict[str, Any]]:
    """The rows' records, beside the baselines that they have."""
    beside: dict[str, list[Row]] = {}
    for row in rows:
        beside.setdefault(baseline_of(experiment, row.label), []).append(row)
    return [
        record
        for label, those in beside.items()
        for record in _pooled_beside(label, those, experiment.metrics)
    ]


def _pooled_beside(label: str, rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The rows' records: those of equal seeds together, beside the baseline's same seeds."""
    baseline = next((row for row in rows if row.label == label), None)
    if baseline is None:
        raise UserError(f"{label}: diverged with every seed; nothing to compare with")
    groups: dict[frozenset[int], list[Row]] = {}
    for row in rows:
        groups.setdefault(frozenset(row.by_seed), []).append(row)
    records = []
    for seeds, group in groups.items():
        together = group
        if baseline not in group:
            if not seeds <= baseline.by_seed.keys():
                raise UserError(
                    f"{baseline.label}, seed {min(seeds - baseline.by_seed.keys())}: diverged, and "
                    f"{group[0].label} is to be compared with it; give another learning rate"
                )
            same = {seed: baseline.by_seed[seed] for seed in seeds}
            together = [baseline._replace(by_seed=same), *group]
        labels = {row.label for row in group}
        pooled = make_records(together, label, metrics)
        records += [record for record in pooled if record["method"] in labels]
    return records


def write(experiment: Experiment, content: Content, folder: Path) -> list[Path]:
    """Writes NAME.json and the files of the report; returns their paths."""
    make_folder(folder, "results")
    files = {".json": json.dumps(content, indent=1) + "\n"} | dict(experiment.report(content))
    # All encoded, and so known to be text, before any is written.
    encoded = {end: x.encode() if isinstance(x, str) else x for end, x in files.items()}
    paths = []
    for end, data in encoded.items():
        paths.append(folder / f"{experiment.name}{end}")
        write_atomically(paths[-1], data)
    return paths


def _one(values: set[int]) -> Any:
    """The one value that there is, or all of them."""
    return values.pop() if len(values) == 1 else sorted(values)


def rounded(value: Any) -> Any:
    """A JSON value with floats of six digits, which are enough and keep files small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
