"""What an experiment's runs left behind but their weights, in one file beside its table.

With NAME.runs.tar.xz another machine goes on where one stopped, or adds a row, and neither trains
nor evaluates anything twice.
"""

import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lenext.errors import UserError
from lenext.files import write_atomically
from lenext.sweeps.runs import Run, find_evaluation, find_outcome, make_folder

BESIDE = ("config.json", "metrics.jsonl")
"""Files of a training that are kept with how it ended, where it has them."""


def kept_path(name: str, results: Path) -> Path:
    """Where a folder of results has the file of an experiment."""
    return results / f"{name}.runs.tar.xz"


def keep(name: str, runs: Sequence[Run], folders: Sequence[Path], results: Path) -> list[Path]:
    """Writes what folders of runs have of those that are trained; the file's path, if there is any.

    Args:
      name: the experiment's.
      runs: of it.
      folders: where they are looked for.
      results: the folder to write into.
    """
    files = {member: path for run in runs for member, path in _files(run, folders)}
    if not files:
        return []
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:xz") as archive:
        for member, path in sorted(files.items()):
            content = path.read_bytes()
            entry = tarfile.TarInfo(member)  # dated 1970: the same runs make the same bytes
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    make_folder(results, "results")
    path = kept_path(name, results)
    write_atomically(path, written.getvalue())
    return [path]


def _files(run: Run, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The files to keep of a run, by their names in a folder of runs."""
    found = find_outcome(run, folders)
    if found is None:
        return
    outcome = run.outcome(found[0])
    for path in (outcome, *(outcome.with_name(name) for name in BESIDE)):
        if path.exists():
            yield f"{run.key}/{path.name}", path
    for method in run.rows.values():
        path = find_evaluation(run, method, folders)
        if path is not None:
            yield f"{run.key}/evaluations/{path.name}", path


def unpack(path: Path, folder: Path) -> int:
    """Puts what `keep` wrote where runs are looked for; files that are there stay as they are.

    Returns:
      how many evaluations were put there.

    Raises:
      UserError: there is no such file, or none that `keep` wrote; or the folder cannot be written.
    """
    if not path.is_file():
        raise UserError(f"{path}: should be a file that an experiment's runs were kept in")
    taken = 0
    try:
        with tarfile.open(path, mode="r:xz") as archive:
            for entry in archive.getmembers():
                target = folder / entry.name
                if not target.exists():
                    archive.extract(entry, folder, filter="data")
                    taken += target.parent.name == "evaluations"
    except (tarfile.TarError, lzma.LZMAError, EOFError):
        raise UserError(f"{path}: should be what an experiment kept; it is damaged") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    return taken
