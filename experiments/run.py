"""Trains, evaluates and tabulates an experiment; what is done already is not done again.

    python -m experiments.run NAME [--size=cpu]
    python -m experiments.run FILE.py [--size=cpu]

Runs are done one after the other; stopped at any time, the same command goes on where it was. At
the end the results' folder has NAME.json, with where it comes from and every figure, NAME.md and
pictures.
"""

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from experiments.sizes import SIZES, check_size
from lenext import cli
from lenext.config import base_config, read_methods
from lenext.config.imports import join_imports, load_file
from lenext.errors import MISREAD, Stopped, UserError
from lenext.files import read_json
from lenext.models import FAMILIES
from lenext.sweeps.experiment import Experiment, baseline_of, collect, write
from lenext.sweeps.kept import keep, kept_path, unpack
from lenext.sweeps.progress import Rates, duration
from lenext.sweeps.runs import (
    Run,
    alone,
    evaluate_method,
    fetch,
    find_outcome,
    make_folder,
    missing,
    train_run,
    trained_steps,
)
from lenext.training import validate
from lenext.training.branch import spell_method

NAMES = (
    "infoscale_table",
    "cosscale_sweep",
    "dilution",
    "entropy_matched",
    "softplus_table",
    "passkey",
    "associative_recall",
    "synthetic",
    "real_model",
    "needles",
)

FILE_END = ".py"
"""What tells a file of the user's own from a name."""

CHOICES = f"{', '.join(NAMES)}; or FILE{FILE_END}, a file of yours"

USAGE = f"""{__doc__}
  NAME             {", ".join(NAMES[:4])},
                   {", ".join(NAMES[4:])}
  FILE.py          a file of yours that ends on EXPERIMENT, a lenext.sweeps.experiment.Experiment;
                   it may register methods of its own
  --size=SIZE      {", ".join(SIZES)} (default: cpu); smoke takes seconds and shows nothing
  --runs=DIR       where runs are kept, for all experiments (default: runs/experiments)
  --results=DIR    where tables go (default: runs/results, and smoke's of a NAME to runs/smoke);
                   what is committed is in experiments/results
  --also=DIR,DIR   folders with runs of other machines; read, never written
  --from=DIR       takes what NAME.runs.tar.xz in this folder of results kept of runs, such as
                   experiments/results: what is missing is done, and nothing is done twice
  --dry-run        lists the runs: number, seed, state, and about how long each still takes
  --only=NUMBER    does this run alone, as numbered by --dry-run, and writes no table: for an array
                   of jobs
  --config.KEY=VALUE
                   overrides a key of all runs; paper's softplus_table wants a text of yours:
                   --config.data.files=FOLDER --config.data.tokenizer=FOLDER/tokenizer.json
  --tables         makes NAME.md and the pictures anew from NAME.json"""


def read(name: str) -> Experiment:
    """The experiment of a name, or of the user's own file.

    Raises:
      UserError: there is none.
    """
    if name.endswith(FILE_END):
        experiment = getattr(load_file(Path(name)), "EXPERIMENT", None)
        if not isinstance(experiment, Experiment):
            wanted = f"{Experiment.__module__}.{Experiment.__name__}"
            raise UserError(f"{name}: should end on EXPERIMENT, which is to be a {wanted}")
        return experiment
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"experiment {name!r}: {meant}choose from {CHOICES}")
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


def check(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Checks before hours of training what would otherwise fail after them.

    Raises:
      UserError: a config or method is off, or nothing is there to compare with.
    """
    for run in runs:
        config = spell_method(run.config)
        validate(config)
        length = config.data.train_length
        trained = read_methods(config.model.method, length)
        causal = FAMILIES[config.model.family].objective == "causal_lm"
        for method in run.rows.values():
            read_methods(method, length, trained, causal=causal)
    rows = dict.fromkeys(label for run in runs for label in run.rows)
    # Without rows there is nothing that a baseline may be asked of.
    baselines = {baseline_of(experiment, label): None for label in rows or ("",)}
    for baseline in baselines:
        if baseline not in rows:
            has = f"rows are {', '.join(rows)}" if rows else "its runs have no rows"
            raise UserError(f"{experiment.name}: baseline {baseline!r} is no row; {has}")


def default_results(name: str, size: str) -> str:
    """Where results go that are to go nowhere in particular."""
    # Never experiments/results, which is committed: who makes it anew says so by --results.
    if size == "smoke" and not name.endswith(FILE_END):
        return "runs/smoke"  # what shows nothing is not to take the place of what does
    return "runs/results"


def listing(runs: Sequence[Run], folders: Sequence[Path]) -> list[str]:
    """A line a run: number, name, seed, how far it is and how long the rest takes."""
    seconds_left = Rates.measured(folders).seconds_left(runs, folders)
    width = max(len(run.name) for run in runs)
    lines = []
    for number, (run, left) in enumerate(zip(runs, seconds_left, strict=True)):
        lines.append(
            f"{number:>3}  {run.name:<{width}}  seed {run.seed}  {run.key}  "
            f"{state(run, folders)}" + (f", about {duration(left)}" if left else "")
        )
    lines.append(f"{len(runs)} runs, about {duration(sum(seconds_left))} left")
    return lines


def state(run: Run, folders: Sequence[Path]) -> str:
    """How far a run is, in words."""
    found = find_outcome(run, folders)
    if found is None and run.imported:
        return f"imported, {len(run.rows)} methods to evaluate"
    if found is None:
        steps = max(trained_steps(run, folder) for folder in folders)
        return f"step {steps:,} of {run.steps:,}" if steps else "to be trained"
    if found[1]["stopped"]:
        return "diverged"
    left = missing(run, folders)
    known = "imported" if run.imported else "trained"
    return f"{known}, {len(left)} of {len(run.rows)} methods to evaluate" if left else "done"


def remake(experiment: Experiment, folder: Path) -> list[Path]:
    """Writes the files of the report anew from the folder's JSON.

    Raises:
      UserError: there is none, or it is no such JSON.
    """
    path = folder / f"{experiment.name}.json"
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; run without --tables") from None
    try:
        return write(experiment, content, folder)
    except MISREAD as error:
        raise UserError(f"{path}: should be what this experiment wrote ({error!r})") from None


def complete(run: Run, folder: Path, folders: Sequence[Path]) -> None:
    """Trains and evaluates what none of the folders has of a run."""
    if find_outcome(run, folders) is not None and not missing(run, folders):
        return
    with alone(run, folder):
        fetch(run, folder, folders)
        outcome = train_run(run, folder)
        if outcome["stopped"]:
            print(f"{run.name}, seed {run.seed}: {outcome['stopped']}")
        left = missing(run, folders)
        for number, method in enumerate(left):
            print(f"evaluating {method} ({number + 1} of {len(left)})", flush=True)
            evaluate_method(run, method, folder)


def main() -> None:
    """Parses the flags and does what they say."""
    size = flags.DEFINE_string("size", "cpu", "")
    runs_folder = flags.DEFINE_string("runs", "runs/experiments", "")
    results = flags.DEFINE_string("results", None, "")
    also = flags.DEFINE_list("also", [], "")
    kept = flags.DEFINE_string("from", None, "")
    dry_run = flags.DEFINE_bool("dry_run", False, "")
    only = flags.DEFINE_integer("only", None, "")
    tables = flags.DEFINE_bool("tables", False, "")
    sys.argv[1:] = [word.replace("--dry-run", "--dry_run") for word in sys.argv[1:]]
    config = base_config()
    cli.check_overrides(config, sys.argv)
    config_flags.DEFINE_config_dict("config", config)
    names = cli.parse_flags(words=True)
    if len(names) != 1:
        raise UserError(f"should be given the name of one experiment: {CHOICES}")
    check_size(size.value)
    experiment = read(names[0])
    folder = Path(runs_folder.value)
    into = Path(results.value or default_results(names[0], size.value))
    if tables.value:
        say(remake(experiment, into))
        return
    runs = experiment.runs(size.value)
    for run in runs:
        run.config.update_from_flattened_dict(
            config_flags.get_override_values(flags.FLAGS["config"])
        )
        if names[0].endswith(FILE_END):  # a run's folder alone is enough to go on from
            run.config.imports = join_imports(run.config.imports, names[0])
    check(experiment, runs)
    folders = [folder, *map(Path, also.value)]
    for other in folders[1:]:
        if not other.is_dir():
            raise UserError(f"--also={other}: should be a folder with runs")
    make_folder(folder, "runs")
    if kept.value:
        source = kept_path(experiment.name, Path(kept.value))
        print(f"{source}: {unpack(source, folder)} evaluations taken")
    if dry_run.value:
        print("\n".join(listing(runs, folders)))
        if all(state(run, folders) == "done" for run in runs):
            print("nothing is left to do; without --dry-run the tables are made anew")
        return
    if only.value is not None:
        if not 0 <= only.value < len(runs):
            raise UserError(f"--only={only.value}: should be from 0 to {len(runs) - 1}")
        complete(runs[only.value], folder, folders)
        return
    # Trainings listen for themselves, and stop at a checkpoint.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        for number, run in enumerate(runs):
            left = sum(Rates.measured(folders).seconds_left(runs[number:], folders))
            now = f"[{number + 1}/{len(runs)}] {run.name}, seed {run.seed}: {state(run, folders)}"
            print(f"{now}; about {duration(left)} to go" if left else now, flush=True)
            complete(run, folder, folders)
    finally:  # however it ends, what is done can be taken elsewhere
        signal.signal(signal.SIGTERM, before)
        paths = keep(experiment.name, runs, folders, into)
    say([*write(experiment, collect(experiment, runs, size.value, folders), into), *paths])


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped("stopped by SIGTERM; the same command goes on from what is written")


def say(paths: Sequence[Path]) -> None:
    """Where results were written."""
    print(f"results: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    cli.guard(USAGE, main, interrupted="interrupted; the same command goes on where this stopped")
