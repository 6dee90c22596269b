"""All results in one page, those of your own runs too; and the page of the papers' claims.

    python -m experiments.report

Writes runs/report.html, one file that needs no other: what the results say of each claim of the
two abstracts, every table and picture of experiments/results, and after them what is found of your
own: runs/results, where experiments.run writes, runs/compare, where lenext.compare does, and the
evaluations runs/NAME/eval. It writes
nothing else; with --readme also experiments/README.md, the page of claims, which is committed.
"""

import argparse
import importlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.claims import CLAIMS, INFOSCALE, SOFTPLUS, Contents, judged
from experiments.run import NAMES
from lenext.errors import MISREAD, UserError
from lenext.files import read_json, write_atomically
from lenext.reporting.pages import Page, html_page
from lenext.reporting.tables import markdown_table
from lenext.workdirs.provenance import git_revision
from lenext.workdirs.versions import results_version

HERE = Path(__file__).parent
RUNS = Path("runs")
EVALUATION = "eval"  # the folder of a workdir that lenext.evaluate writes to
COMMANDS = """
python -m experiments.run NAME --dry-run     # what there is to do, and about how long it takes
python -m experiments.run NAME               # does it, into runs/results; stopped, it goes on
python -m experiments.run NAME --size=gpu    # or paper: the paper's own model
python -m experiments.run NAME --tables      # tables and pictures anew, from the JSON
launch/slurm.sbatch --gpus=1 --array=0-20 -- experiments.run NAME --size=gpu
make report                                  # runs/report.html: this page, all tables, your own
"""
CLAIMED, COMMITTED, BENCHMARKS, OWN = "claims", "Committed results", "Benchmarks", "Your runs"
OTHERS = "# Pictures of no table here"


def load(results: Path) -> Contents:
    """What is there of the experiments' JSON files; those of size smoke can bear out no claim."""
    paths = {name: results / f"{name}.json" for name in NAMES}
    contents = {n: read_json(path) for n, path in paths.items() if path.exists()}
    return {n: c for n, c in contents.items() if "runs" in c and c["size"] != "smoke"}


def judge(results: Path) -> tuple[str, list[tuple[str, str]]]:
    """The page of claims that a folder of results bears out, and what `about` says of them.

    Raises:
      UserError: a JSON file there is none that its experiment wrote.
    """
    try:
        contents = load(results)
        return claims_page(contents), about(contents)
    except UserError:
        raise
    except MISREAD as error:
        raise UserError(f"{results}: should hold what experiments.run wrote ({error!r})") from None


def claims_page(contents: Contents) -> str:
    """The page of claims and of how to run what, Markdown."""
    lines = [
        "# Experiments",
        "",
        "Made of the numbers in [`results`](results) by `python -m experiments.report --readme`; a "
        "verdict is computed from its row's figures, by the rule in [`claims.py`](claims.py). None "
        "is about the papers' own models: those here are far smaller, and trained for minutes.",
    ]
    for paper in (INFOSCALE, SOFTPLUS):
        rows = judged([claim for claim in CLAIMS if claim.paper == paper], contents)
        headings = ["claim", "the paper's figure", "its source", "ours", "verdict", "numbers"]
        table = markdown_table(headings, rows, words=len(headings))
        lines += ["", f"## {paper}", "", *table]
    lines += [
        "",
        "## Running them",
        "",
        *(f"    {line}" for line in COMMANDS.strip().splitlines()),
        "",
    ]
    rows = []
    for name in NAMES:
        doc = _summary(name)
        if name in contents:
            content = contents[name]
            seconds = sum(
                run["training_seconds"] + run["evaluation_seconds"] for run in content["runs"]
            )
            done = f"{len(content['runs'])} runs, {seconds / 3600:.1f} h"
            rows.append([f"[`{name}`](results/{name}.md)", doc, done])
        else:
            rows.append([f"`{name}`", doc, "not run"])
    table = markdown_table(["NAME", "what it shows", "on two cores"], rows, words=3)
    return "\n".join([*lines, *table, ""])


def _summary(name: str) -> str:
    """The first line of an experiment's file."""
    doc = str(importlib.import_module(f"experiments.{name}").__doc__)
    return doc.splitlines()[0].rstrip(".")


def result_pages(results: Path, claims: str) -> list[Page]:
    """The page of claims, and those of a folder of results and of its benchmarks.

    Their links find each other as they stand in experiments/, wherever the folder is.
    """
    called = COMMITTED if _is_committed(results) else f"Results in {results}"
    pages = [Page(CLAIMED, claims, path="README.md")]
    first = {name: i for i, name in enumerate(NAMES)}
    for folder, group in ((results, called), (results / "benchmarks", BENCHMARKS)):
        paths = sorted(folder.glob("*.md"))
        paths.sort(key=lambda path: first.get(path.stem, len(first)))
        pictures = _pictures(folder, paths)
        for path in paths:
            place = Path("results") / path.relative_to(results)
            pages.append(
                Page(path.stem, _text(path), pictures.pop(path.stem), place.as_posix(), group)
            )
        if "" in pictures:
            pages.append(Page("pictures", OTHERS, pictures[""], group=group))
    return pages


def _is_committed(results: Path) -> bool:
    return results.resolve() == (HERE / "results").resolve()


def own_pages(folders: Iterable[Path]) -> list[Page]:
    """What folders have of runs: as workdirs, as folders of workdirs, as folders of results.

    A page is named by its path, so that runs of one name are told apart.
    """
    pages: dict[Path, Page] = {}
    for folder in folders:
        workdirs = [folder, *sorted(folder.glob("*/"))]
        found = [(path, path / EVALUATION) for path in workdirs]
        # And the tables that were kept apart, by evaluate's --name.
        found += [(x / t.name, t) for x, path in found for t in sorted(path.glob("*/"))]
        found = [(name, path) for name, path in found if (path / "results.md").is_file()]
        for name, path in found:
            # All of a workdir's pictures are of its one page.
            every = {p.name: p.read_bytes() for p in sorted(path.glob("*.png"))}
            _add(pages, name, path / "results.md", every)
        paths = sorted(folder.glob("*.md"))
        pictures = _pictures(folder, paths)
        for path in paths:
            _add(pages, path.with_suffix(""), path, pictures[path.stem])
        if paths and "" in pictures:
            page = Page(f"{folder}/pictures", OTHERS, pictures[""], group=OWN)
            pages.setdefault(folder.resolve(), page)
    return list(pages.values())


def _add(pages: dict[Path, Page], name: Path, path: Path, pictures: dict[str, bytes]) -> None:
    """Adds a page, unless it was found by another way already."""
    place = path.resolve()
    pages.setdefault(place, Page(str(name), _text(path), pictures, place.as_posix(), OWN))


def _text(path: Path) -> str:
    """A file's text; of a user's own not all need be UTF-8."""
    return path.read_text(encoding="utf-8", errors="replace")


def _pictures(folder: Path, paths: Sequence[Path]) -> dict[str, dict[str, bytes]]:
    """The PNGs of a folder by the page that they belong to, "" where there is none.

    A picture belongs to the page whose name its own begins with; the longest such name.
    """
    found: dict[str, dict[str, bytes]] = {path.stem: {} for path in paths}
    for picture in sorted(folder.glob("*.png")):
        names = [path.stem for path in paths if picture.stem.startswith(path.stem)]
        of = found.setdefault(max(names, key=len, default=""), {})
        of[picture.name] = picture.read_bytes()
    return found


def about(contents: Contents) -> list[tuple[str, str]]:
    """When and of which code the report was made, and which versions its results are of."""
    now = _version(results_version())
    of = sorted({_version(content.get("results_version", {})) for content in contents.values()})
    commit, changes, _ = (git_revision() or "unknown").partition("+changes")
    return [
        ("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Revision", commit[:12] + (", with changes that are not committed" if changes else "")),
        ("Results", f"of {'; '.join(of) if of else 'no experiment'} (the code is at {now})"),
    ]


def _version(versions: dict[str, int]) -> str:
    told = ", ".join(f"{kind} version {number}" for kind, number in versions.items())
    return told or "no version"


def main() -> None:
    """Writes the report; the page of claims where it is asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", metavar="DIR",
        help="whose claims and tables come first (default: experiments/results);\n"
        "runs/results has claims judged by your own runs",
    )  # fmt: skip
    parser.add_argument(
        "--also", type=lambda text: [Path(x) for x in text.split(",") if x], metavar="DIR,DIR",
        help="your runs: workdirs, folders of them, or of results\n"
        "(default: those of runs, runs/results and runs/compare)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, default=RUNS / "report.html", metavar="FILE",
        help="(default: runs/report.html)",
    )  # fmt: skip
    parser.add_argument(
        "--readme", action="store_true",
        help="also write experiments/README.md anew, of experiments/results",
    )  # fmt: skip
    given = parser.parse_args()
    if given.readme and not _is_committed(given.results):
        parser.error("--readme is made of experiments/results, so give no other --results")
    for folder in [given.results, *(given.also or ())]:
        if not folder.is_dir():
            parser.error(f"{folder}: should be a folder")
    for folder in given.also or ():
        if not own_pages([folder]):
            parser.error(f"--also={folder}: has no results, nor has a run in it")
    try:
        claims, made = judge(given.results)
    except UserError as error:
        parser.error(str(error))
    own = [RUNS, RUNS / "results", RUNS / "compare"] if given.also is None else given.also
    own = [folder for folder in own if folder.resolve() != given.results.resolve()]
    pages = [*result_pages(given.results, claims), *own_pages(own)]
    given.html.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.html, html_page("lenext: results", pages, made))
    written = [str(given.html)]
    if given.readme:
        write_atomically(HERE / "README.md", claims)
        written.append(str(HERE / "README.md"))
    print(f"report: {', '.join(written)}")


if __name__ == "__main__":
    main()
