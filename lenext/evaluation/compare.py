"""Several evaluations side by side, paired on the same documents."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from lenext.buckets import AnyPath, resolved
from lenext.config.checks import check_least, check_seed
from lenext.errors import MISREAD, UserError
from lenext.reporting.records import Cell, Row, is_of, read_cell

WHAT_IS_READ = {
    "headline": str,
    "provenance": {
        "config": {"eval": {"bootstrap": int, "seed": int, "margin": float}},
        "trained": {"model": {"method": str}, "data": {"train_length": int}},
    },
    "cells": list[dict[str, Any]],
}
"""Of results.json."""
MOST_DRAWS = 2**27
"""Documents drawn in all resamples, which are in memory together."""


class Found(NamedTuple):
    """What an evaluation left.

    Attributes:
      name: what it is called beside others.
      headline: the metric that stands for its protocol.
      trained: the config of the run.
      settings: the config of the evaluation, section `eval`.
      cells: of each method as typed, in the order of its table: cells by length.
      asked: of each length, a digest of the sequences, the rows of attention looked at, and the
        documents.
    """

    name: str
    headline: str
    trained: dict[str, Any]
    settings: dict[str, Any]
    cells: dict[str, dict[int, Cell]]
    asked: dict[int, list[Any]]


def read_results(folder: AnyPath, name: str) -> Found:
    """The table of an evaluation, with the cells that it is made of.

    Args:
      folder: a workdir, or the folder of one of its tables: DIR, DIR/eval, DIR/eval/NAME.
      name: what to call it.

    Raises:
      UserError: there is none, or not all of it.
    """
    path = next((f for f in (folder / "eval", folder) if (f / "results.json").exists()), None)
    if path is None:
        raise UserError(f"{folder}: holds no evaluation; python -m lenext.evaluate makes one")
    try:
        results = json.loads((path / "results.json").read_text())
        if not is_of(results, WHAT_IS_READ):
            raise ValueError
        source = results["provenance"]
        settings = source["config"]["eval"]
        check_least(settings, "eval", 1, "bootstrap")
        check_seed(settings["seed"], "eval.seed")
        if not source["trained"]["model"]["method"].isprintable():
            raise ValueError
        kept = next(f for f in (path / "cells", path.parent / "cells") if f.is_dir())
        cells: dict[str, dict[int, Cell]] = {}
        asked = {}
        for entry in results["cells"]:
            found = json.loads((kept / entry["cell"]).read_text())
            cell = read_cell(found["cell"])
            cells.setdefault(entry["method"], {})[cell.length] = cell
            names = [sums["metric"] for sums in cell.sums]
            if results["headline"] not in names or not entry["method"].isprintable():
                raise ValueError
            own = [found["key"][key] for key in ("sequences", "probe_rows")] + [cell.documents]
            draws = settings["bootstrap"] * len(cell.documents)
            if asked.setdefault(cell.length, own) != own or draws > MOST_DRAWS:
                raise ValueError
        if not all(own.keys() == asked.keys() for own in cells.values()):
            raise ValueError
        return Found(name, results["headline"], source["trained"], settings, cells, asked)
    except (OSError, StopIteration, *MISREAD):
        raise UserError(
            f"{path / 'results.json'}: some of what it shows is not there; evaluate again"
        ) from None


def paired(evaluations: Sequence[Found]) -> list[list[Row]]:
    """Of each evaluation a row a method, at the lengths that all of them have.

    Raises:
      UserError: they were asked other things: no length in common, or other documents or masks.
    """
    first = evaluations[0]
    lengths = set(first.asked).intersection(*(found.asked for found in evaluations))
    if not lengths:
        said = "; ".join(f"{f.name}: {', '.join(map(str, sorted(f.asked)))}" for f in evaluations)
        raise UserError(f"no length is common to all: {said}")
    for found in evaluations:
        other = sorted(n for n in lengths if found.asked[n] != first.asked[n])
        if other:
            raise UserError(
                f"{found.name}: was asked other sequences than {first.name} at {other[0]}; same "
                "data, tokenizer, protocol and settings (config.eval) pair them, and under "
                "sliding_window the same longest length"
            )
    return [
        [
            Row(
                f"{found.name}: {method}",
                found.trained["model"]["method"],
                method,
                {0: [by_length[n] for n in sorted(lengths)]},
            )
            for method, by_length in found.cells.items()
        ]
        for found in evaluations
    ]


def short_names(folders: Sequence[AnyPath]) -> list[str]:
    """What tells folders apart: the fewest last parts of their paths."""
    parts = [resolved(folder).parts for folder in folders]
    count = 1
    while len({p[-count:] for p in parts}) < len(set(parts)):
        count += 1
    return ["/".join(p[-count:]) for p in parts]
