"""All results in one page, and the page of the papers' claims.

    python -m experiments.report

Writes experiments/README.md, what the results say of each claim of the two abstracts, and
runs/report.html: every table and picture of experiments/results, in one file that needs no other.
"""

import argparse
import base64
import html
import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt

from experiments.claims import CLAIMS, INFOSCALE, SOFTPLUS, Contents, judged
from experiments.run import NAMES
from lenext.files import write_atomically
from lenext.reporting.tables import markdown_table

HERE = Path(__file__).parent
COMMANDS = """
python -m experiments.run NAME --dry-run     # what there is to do, and about how long it takes
python -m experiments.run NAME               # does it; stopped, it goes on where it was
python -m experiments.run NAME --size=gpu    # or paper: the paper's own model
python -m experiments.run NAME --tables      # tables and pictures anew, from the JSON
launch/slurm.sbatch --gpus=1 --array=0-20 -- experiments.run NAME --size=gpu
make report                                  # this page, and runs/report.html
"""
STYLE = """
:root { --ink: #1b1f24; --faint: #667; --line: #d8dce2; --back: #fff; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #9aa3ad; --line: #39414b; --back: #15191e; --mark: #56b4e9; }
  img { background: #fff; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back);
       font: 15px/1.5 system-ui, sans-serif; display: grid; grid-template-columns: 15rem 1fr; }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem;
      border-right: 1px solid var(--line); }
nav a { display: block; padding: .15rem 0; color: var(--ink); text-decoration: none; }
nav a:hover { color: var(--mark); }
main { padding: 1.5rem 2.5rem 4rem; max-width: 76rem; min-width: 0; }
section + section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: .5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; } h3 { font-size: 1.05rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
.words th, .words td { vertical-align: top; }
strong { color: var(--mark); } ul { color: var(--faint); font-size: 13px; }
details > summary { cursor: pointer; color: var(--mark); margin: .5rem 0; }
@media (max-width: 60rem) { body { display: block; } nav { position: static; height: auto; } }
"""


def load(results: Path) -> Contents:
    """What is there of the experiments' JSON files; those of size smoke can bear out no claim."""
    paths = {name: results / f"{name}.json" for name in NAMES}
    contents = {n: json.loads(path.read_text()) for n, path in paths.items() if path.exists()}
    return {n: c for n, c in contents.items() if "runs" in c and c["size"] != "smoke"}


def claims_page(contents: Contents) -> str:
    """The page of claims and of how to run what, Markdown."""
    lines = [
        "# Experiments",
        "",
        "Made by `make report` of the numbers in [`results`](results); a verdict is computed from "
        "its row's figures, by the rule in [`claims.py`](claims.py). None is about the papers' own "
        "models: those here are far smaller, and trained for minutes.",
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


def html_page(pages: Mapping[str, str], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    """One HTML file.

    Args:
      pages: Markdown by name, each with a heading of first level.
      pictures: PNGs by name of the page and of the file, shown below its heading.
    """
    links, sections = [], []
    for name, text in pages.items():
        place = name.replace(": ", "-")
        links.append(f'<a href="#{place}">{html.escape(name.replace("_", " "))}</a>')
        shown = "".join(
            f'<img alt="{html.escape(file)}" loading="lazy" src="data:image/png;base64,'
            f'{base64.b64encode(data).decode()}">'
            for file, data in pictures.get(name, {}).items()
        )
        heading, _, rest = _to_html(text).partition("</h1>")
        sections.append(f'<section id="{place}">{heading}</h1>{shown}{rest}</section>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>lenext: results</title>'
        f"<style>{STYLE}</style><nav><strong>lenext: results</strong>{''.join(links)}</nav>"
        f"<main>{''.join(sections)}</main></html>\n"
    )


def _to_html(text: str) -> str:
    """Markdown to HTML, tables wrapped so that a wide one scrolls; links to files dropped."""
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.add_render_rule("link_open", lambda *_: "")
    markdown.add_render_rule("link_close", lambda *_: "")
    out = markdown.render(text)
    words = '<div class="table words"><table>' if "| verdict |" in text else None
    out = out.replace("<table>", words or '<div class="table"><table>')
    return out.replace("</table>", "</table></div>")


def collect_pages(results: Path, readme: str) -> tuple[dict[str, str], dict[str, dict[str, bytes]]]:
    """The Markdown pages of a folder of results, by name, and the pictures of each.

    A picture belongs to the page whose name its own begins with; the longest such name.
    """
    pages = {"claims": readme}
    paths = sorted(results.glob("*.md")) + sorted(results.glob("benchmarks/*.md"))
    first = {name: i for i, name in enumerate(NAMES)}
    paths.sort(key=lambda path: (path.parent != results, first.get(path.stem, len(first))))
    pictures: dict[str, dict[str, bytes]] = {}
    for path in paths:
        name = path.stem if path.parent == results else f"{path.parent.name}: {path.stem}"
        pages[name] = path.read_text()
        stems = [other.stem for other in paths if other.parent == path.parent]
        pictures[name] = {
            picture.name: picture.read_bytes()
            for picture in sorted(path.parent.glob(f"{path.stem}*.png"))
            if path.stem == max((s for s in stems if picture.stem.startswith(s)), key=len)
        }
    return pages, pictures


def main() -> None:
    """Writes both pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    parser.add_argument("--html", type=Path, default=Path("runs/report.html"))
    arguments = parser.parse_args()
    readme = claims_page(load(arguments.results))
    write_atomically(arguments.readme, readme)
    arguments.html.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.html, html_page(*collect_pages(arguments.results, readme)))
    print(f"report: {arguments.html}, {arguments.readme}")


if __name__ == "__main__":
    main()
