"""The runs of an experiment: each trained and evaluated once, and found again by what it is.

A training lies in a folder named by a hash of its config (but for the section `eval`) and of the
code that trains, so that experiments share trainings, and a change to either trains anew. In it
lies each method's evaluation, in a file named by the method, the section `eval` and the code that
evaluates. Comments and docstrings are no part of the code's hash.
"""

import ast
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

from lenext.config import Config, plain, read_methods
from lenext.errors import TrainingError, UserError
from lenext.evaluation import evaluate_run
from lenext.files import write_atomically
from lenext.models.calibration import is_calibrated
from lenext.provenance import provenance
from lenext.training import train

PACKAGE = Path(__file__).parent.parent / "lenext"
# Files and folders that have no part in a training, and those that have none in figures either.
NO_TRAINING = ("evaluation", "evaluate.py", "methods.py", "generate.py")
NO_FIGURES = ("evaluation/plot.py", "evaluation/report.py", "methods.py", "generate.py")
DIGITS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training, and what is evaluated of it.

    Attributes:
      name: what it was trained as; runs that differ in nothing but the seed share it.
      config: all of it; of `config.eval` all but the methods counts.
      rows: the methods to evaluate, by the name that each has in tables.
    """

    name: str
    config: Config
    rows: Mapping[str, str]

    @property
    def seed(self) -> int:
        """Of weights, batches and masks."""
        return self.config.seed

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.config.training.steps

    @property
    def tokens(self) -> int:
        """That the training goes through."""
        return self.steps * self.config.data.batch_size * self.config.data.train_length

    @functools.cached_property
    def key(self) -> str:
        """What it is trained with, and by which code."""
        config = {name: value for name, value in plain(self.config).items() if name != "eval"}
        return _digest([config, code_version(NO_TRAINING)])

    def evaluation_key(self, method: str) -> str:
        """What is evaluated of a method, and by which code."""
        return _digest([plain(self.evaluation(method))["eval"], code_version(NO_FIGURES)])

    def evaluation(self, method: str) -> Config:
        """The config of a method's evaluation."""
        config = copy.deepcopy(self.config)
        config.eval.methods = method
        return config

    def workdir(self, folder: Path) -> Path:
        """Where it is trained."""
        return folder / self.key

    def results(self, folder: Path, method: str) -> Path:
        """What is kept of a method's evaluation."""
        return self.workdir(folder) / "evaluations" / f"{self.evaluation_key(method)}.json"

    def outcome(self, folder: Path) -> Path:
        """What is kept of the training once it is over."""
        return self.workdir(folder) / "outcome.json"


@functools.cache
def code_version(left_out: Sequence[str] = ()) -> str:
    """A hash of lenext's code as Python reads it, without the files and folders `left_out`.

    Those are relative to the package.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if not any(name.is_relative_to(other) for other in left_out):
            digest.update(f"{name}\n{_without_docstrings(path.read_text())}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # pyright: ignore[reportAttributeAccessIssue]
                line
                for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return ast.dump(tree)


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
            return folder, json.loads(run.outcome(folder).read_text())
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
        return json.loads(path.read_text())
    first, start, stopped = trained_steps(run, folder), time.perf_counter(), None
    try:
        train(run.config, run.workdir(folder))
    except TrainingError as error:
        stopped = str(error)
    seconds = time.perf_counter() - start
    outcome = {
        "stopped": stopped,
        "seconds": seconds * run.steps / max(1, run.steps - first),
        "provenance": provenance(),
    }
    write_atomically(path, json.dumps(outcome, indent=1) + "\n")
    return outcome


def evaluate_method(run: Run, method: str, folder: Path) -> None:
    """Evaluates a method on a run's weights, calibrated before if that is what it wants."""
    config, workdir = run.evaluation(method), run.workdir(folder)
    wants = is_calibrated(read_methods(method, config.data.train_length))
    start = time.perf_counter()
    found = evaluate_run(config, workdir, calibrate_first=wants)
    results = {
        "seconds": time.perf_counter() - start,
        "provenance": found.provenance,
        "records": [
            record | {"sums": sums}
            for record, sums in zip(found.swept.records, found.swept.sums, strict=True)
        ],
        "heads": found.swept.heads,
    }
    path = run.results(folder, method)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(results) + "\n")


def make_folder(folder: Path, flag: str) -> None:
    """Makes a folder that a flag names, if need be.

    Raises:
      UserError: it cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag}={folder}: should be a folder ({error.strerror})") from None
