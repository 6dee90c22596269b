"""The runs of an experiment: each trained and evaluated once, and found again by what it is.

A model that was imported is a run that has no training: it is evaluated where it lies.

A training lies in a folder named by a hash of what its config changes of the defaults (but for the
sections `eval` and `mesh`) and of `TRAINING_VERSION`, so that experiments share trainings. In it
lies each method's evaluation, in a file named by the method, the section `eval` and
`FIGURES_VERSION`. A method that was registered from outside lenext counts by its source, a user's
texts and a tokeniser's file by what they hold; no other code does, see `lenext.workdirs.versions`.
"""

import contextlib
import copy
import dataclasses
import fcntl
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lenext.config import Config, base_config, plain, read_methods
from lenext.data.text_files import fingerprint_of
from lenext.errors import MISREAD, TrainingError, UserError
from lenext.evaluation import evaluate_run
from lenext.files import read_json, write_atomically
from lenext.reporting.records import Cell, is_of, read_cell
from lenext.training import train
from lenext.training.branch import spell_method
from lenext.workdirs.calibration import is_calibrated
from lenext.workdirs.checkpoints import newest_step, weights_identity
from lenext.workdirs.provenance import provenance
from lenext.workdirs.versions import FIGURES_VERSION, TRAINING_VERSION, changes, outside_sources

DIGITS = 12
NO_TRAINING = ("eval", "imports", "mesh")
"""Sections that have no part in a training: what imports register counts by its source."""
NO_FIGURES = (
    "model", "data", "optimizer", "training", "evaluators", "imports", "mesh", "seed",
)  # fmt: skip
"""Those that figures follow by the training alone."""


OUTCOME = {"stopped": str | None, "seconds": float, "provenance": dict[str, Any]}
"""What is kept of a training."""
EVALUATION = {"seconds": float, "provenance": dict[str, Any]}
"""What is kept of an evaluation, beside its cells."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training, and what is evaluated of it.

    Attributes:
      name: what it was trained as; runs that differ in nothing but the seed share it.
      config: all of it; of `config.eval` all but the methods counts.
      rows: the methods to evaluate, by the name that each has in tables.
      imported: the workdir of a model that is evaluated as it is, in place of a training.
    """

    name: str
    config: Config
    rows: Mapping[str, str]
    imported: Path | None = None

    @property
    def seed(self) -> int:
        """Of weights, batches and masks."""
        return self.config.seed

    @property
    def steps(self) -> int:
        """Of the training; 0 where there is none."""
        return 0 if self.imported else self.config.training.steps

    @property
    def tokens(self) -> int:
        """That the training goes through."""
        return self.steps * self.config.data.batch_size * self.config.data.train_length

    @functools.cached_property
    def key(self) -> str:
        """What it is trained with, or which weights it has."""
        changed = _changes(self.config, NO_TRAINING)
        known = [changed, TRAINING_VERSION, self._outside(), *self._files()]
        return _digest([*known, *self._weights()])

    def evaluation_key(self, method: str) -> str:
        """What is evaluated of a method."""
        settings = _changes(self.evaluation(method), NO_FIGURES)
        return _digest([settings, FIGURES_VERSION, self._outside(method)])

    def _files(self) -> list[str]:
        """What the files of a tokeniser and of text hold, for their paths say nothing of that."""
        data = self.config.data
        path = Path(data.tokenizer)
        found = [hashlib.sha256(path.read_bytes()).hexdigest()] if path.is_file() else []
        return found + ([fingerprint_of(data.files, data.field)] if data.files else [])

    def _weights(self) -> list[str]:
        """What tells imported ones from all others."""
        step = newest_step(self.imported) if self.imported else None
        return [] if step is None or not self.imported else [weights_identity(self.imported, step)]

    def _outside(self, *methods: str) -> dict[str, list[str]]:
        return outside_sources([self.config.model.method, *methods])

    def evaluation(self, method: str) -> Config:
        """The config of a method's evaluation."""
        config = copy.deepcopy(self.config)
        config.eval.methods = method
        return config

    def workdir(self, folder: Path) -> Path:
        """Where it is trained, and what is known of it is kept."""
        return folder / self.key

    def weights(self, folder: Path) -> Path:
        """The workdir that is evaluated."""
        return self.imported or self.workdir(folder)

    def results(self, folder: Path, method: str) -> Path:
        """What is kept of a method's evaluation."""
        return self.workdir(folder) / "evaluations" / f"{self.evaluation_key(method)}.json"

    def outcome(self, folder: Path) -> Path:
        """What is kept of the training once it is over."""
        return self.workdir(folder) / "outcome.json"


def _changes(config: Config, left_out: Sequence[str]) -> dict[str, Any]:
    ours, defaults = (
        {key: value for key, value in plain(x).items() if key not in left_out}
        for x in (config, base_config())
    )
    return changes(ours, defaults)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def over_seeds(
    name: str, config: Config, rows: Sequence[str] | Mapping[str, str], seeds: Sequence[int]
) -> list[Run]:
    """A run a seed.

    Args:
      name: see `Run`.
      config: whose seed is replaced.
      rows: methods, each named as it is, or by the name for tables.
      seeds: of the runs.
    """
    rows = dict(rows) if isinstance(rows, Mapping) else {method: method for method in rows}
    runs = []
    for seed in seeds:
        own = copy.deepcopy(config)
        own.seed = seed
        runs.append(Run(name, own, rows))
    return runs


def find_outcome(run: Run, folders: Sequence[Path]) -> tuple[Path, dict[str, Any]] | None:
    """The first of the folders in which a run's training is over, and how it ended, or None."""
    for folder in folders:
        if run.outcome(folder).exists():
            return folder, read_outcome(run.outcome(folder))
    return None


def find_evaluation(run: Run, method: str, folders: Sequence[Path]) -> Path | None:
    """A method's evaluation in the first of the folders that has it; None where none has."""
    paths = (run.results(folder, method) for folder in folders)
    return next((path for path in paths if path.exists()), None)


def missing(run: Run, folders: Sequence[Path]) -> list[str]:
    """The methods of a run that none of the folders has evaluated; none of a run that diverged."""
    found = find_outcome(run, folders)
    if found and found[1]["stopped"]:
        return []
    return [m for m in run.rows.values() if find_evaluation(run, m, folders) is None]


def fetch(run: Run, folder: Path, folders: Sequence[Path]) -> None:
    """Copies a training that is over in another of the folders, to be evaluated in this one."""
    found = find_outcome(run, folders)
    if found and found[0] != folder and not run.outcome(folder).exists():
        shutil.copytree(run.workdir(found[0]), run.workdir(folder), dirs_exist_ok=True)


def read_outcome(path: Path) -> dict[str, Any]:
    """How a training ended, as `train_run` wrote it; of an imported model in 0 seconds.

    Raises:
      UserError: it is not what was written.
    """
    outcome = read_json(path)
    if not is_of(outcome, OUTCOME) or not outcome["seconds"] >= 0:
        raise UserError(f"{path}: should say how a training ended; remove it to end it again")
    return outcome


def trained_steps(run: Run, folder: Path) -> int:
    """How far a training has come, by its last checkpoint."""
    checkpoints = run.workdir(folder) / "checkpoints"
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
    return max(steps, default=0)


@contextlib.contextmanager
def alone(run: Run, folder: Path) -> Iterator[None]:
    """Waits until no other process is at work on the same training; jobs of an array may share one.

    The lock goes with the process, however it ends.
    """
    workdir = run.workdir(folder)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{workdir}: waiting for another process that is at work there", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def train_run(run: Run, folder: Path) -> dict[str, Any]:
    """Trains what is missing of a run, from its last checkpoint; how that ended.

    Returns:
      "stopped": None, or the message where a loss or gradient was not finite; "seconds": of the
      whole training, at the speed of what was left of it; and where it ran.
    """
    path = run.outcome(folder)
    if path.exists():
        known = read_outcome(path)
        if known["stopped"] or newest_step(run.weights(folder)) is not None:
            return known
        # Another machine's, which kept no weights: to be evaluated once more, it is trained again.
    first, start, stopped = trained_steps(run, folder), time.perf_counter(), None
    try:
        if run.imported is None:
            train(run.config, run.workdir(folder))
    except TrainingError as error:
        stopped = str(error)
    seconds = 0.0 if run.imported else time.perf_counter() - start
    outcome = {
        "stopped": stopped,
        "seconds": seconds * run.steps / max(1, run.steps - first),
        "provenance": provenance(),
    }
    write_atomically(path, json.dumps(outcome, indent=1) + "\n")
    return outcome


def evaluate_method(run: Run, method: str, folder: Path) -> None:
    """Evaluates a method on a run's weights, calibrated before if that is what it wants."""
    config, workdir = run.evaluation(method), run.weights(folder)
    length = config.data.train_length
    trained = read_methods(spell_method(config).model.method, length)
    wants = is_calibrated(read_methods(method, length, trained))
    found = evaluate_run(config, workdir, calibrate_first=wants)
    cells = found.cells[method]
    results = {
        "seconds": sum(cell.seconds + cell.compile_seconds for cell in cells),
        "provenance": found.provenance,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    path = run.results(folder, method)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(results) + "\n")


def read_evaluation(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """A method's evaluation as `evaluate_method` wrote it: all but its cells, and those.

    Of evaluations that hold records with sums, as they did up to version 0.2, cells are made.

    Raises:
      UserError: it is not what was written.
    """
    results = read_json(path)
    try:
        cells = _cells(results)
        if not is_of(results, EVALUATION) or not results["seconds"] > 0:
            raise ValueError
    except MISREAD:
        raise UserError(f"{path}: should be an evaluation; remove it to evaluate again") from None
    return results, cells


def _cells(results: dict[str, Any]) -> list[Cell]:
    """Takes the cells out of an evaluation."""
    if "cells" in results:
        return [read_cell(cell) for cell in results.pop("cells")]
    by_length: dict[int, list[dict[str, Any]]] = {}
    for record in results.pop("records"):
        by_length.setdefault(record["length"], []).append(record)
    heads = results.pop("heads", [])
    return [
        _cell(records, [x for x in heads if x["length"] == length])
        for length, records in by_length.items()
    ]


def _cell(records: Sequence[dict[str, Any]], heads: Sequence[dict[str, Any]]) -> Cell:
    """What a method's records of one length were made of."""
    names = {field.name for field in dataclasses.fields(Cell)}
    first = {key: value for key, value in records[0].items() if key in names}
    sums = [
        {key: record[key] for key in ("metric", "positions", "predictions")} | record["sums"]
        for record in records
    ]
    own = [{k: x for k, x in head.items() if k not in ("method", "length")} for head in heads]
    unknown = {"flops": 0.0, "cache_bytes": None}
    found = {"documents": sums[0]["documents"], "sums": sums, "heads": own}
    return read_cell(unknown | first | found)


def make_folder(folder: Path, flag: str) -> None:
    """Makes a folder that a flag names, if need be.

    Raises:
      UserError: it cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag}={folder}: should be a folder ({error.strerror})") from None
