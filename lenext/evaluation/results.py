"""What an evaluation of a workdir found, and the files that show it."""

import json
from typing import Any, NamedTuple

from lenext.attention import overruled_parts
from lenext.buckets import AnyPath
from lenext.errors import MISREAD, one_line
from lenext.evaluation.cells import CELLS
from lenext.files import write_atomically
from lenext.reporting.records import Cell, Record, Row, effective_lengths, make_records
from lenext.reporting.tables import markdown, text_table, to_csv

MOST_PANELS = 8
"""Of by_depth.png, which has one a method."""
COSTS = ("seconds", "compile_seconds", "peak_bytes", "flops", "cache_bytes")


class Evaluated(NamedTuple):
    """What an evaluation found.

    Attributes:
      provenance: configs, seeds, tokens, steps, data, code, versions and machine, as JSON values.
      cells: by method as typed, a cell a length.
      kept: of each of these, the file's name.
      headline: the metric that stands for the protocol.
      uncalibrated: methods with parts to calibrate that were not.
    """

    provenance: dict[str, Any]
    cells: dict[str, list[Cell]]
    kept: list[dict[str, Any]]
    headline: str
    uncalibrated: list[str]

    def rows(self) -> list[Row]:
        """A row a method."""
        trained, seed = self.provenance["trained"], self.provenance["seeds"][0]
        return [
            Row(name, trained["model"]["method"], name, {seed: cells})
            for name, cells in self.cells.items()
        ]

    def records(self) -> list[Record]:
        """A record a method, length and metric, with what it cost; differences are to the first."""
        settings = self.provenance["config"]["eval"]
        found = make_records(
            self.rows(), next(iter(self.cells)), times=settings["bootstrap"], seed=settings["seed"]
        )
        cells = {(name, cell.length): cell for name, own in self.cells.items() for cell in own}
        for record in found:
            cell = cells[record["method"], record["length"]]
            for key in ("trained", "evaluated", "by_seed"):  # of one run there is one of each
                del record[key]
            record |= {"sequences": cell.sequences, "tokens": cell.tokens}
            record |= {key: getattr(cell, key) for key in COSTS}
            record["tokens_per_second"] = cell.tokens / cell.seconds
        return found


def write_results(
    found: Evaluated, records: list[Record], workdir: AnyPath, folder: AnyPath
) -> None:
    """Tables, pictures and records into `folder`; the headline's table to the terminal."""
    # Not above: matplotlib would take half a second of every start, training's too.
    from lenext.reporting.pictures import plot, plot_by_depth, plot_by_position

    config, trained = found.provenance["config"], found.provenance["trained"]
    settings = config["eval"]
    train_length = trained["data"]["train_length"]
    heading = f"trained with {trained['model']['method']} at {train_length} tokens, " + (
        f"{found.provenance['steps']} steps" if found.provenance["steps"] else "imported"
    )
    heads = [
        {"method": name, "length": cell.length} | record
        for name, cells in found.cells.items()
        for cell in cells
        for record in cell.heads
    ]
    effective = effective_lengths(
        found.rows(), train_length, settings["margin"], times=settings["bootstrap"],
        seed=settings["seed"],
    )  # fmt: skip
    _tell_replaced(folder / "results.json", found.kept)
    results = {
        "provenance": found.provenance,
        "headline": found.headline,
        "cells": found.kept,
        "effective_lengths": effective,
        "records": records,
        "heads": heads,
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "results.csv", to_csv(records))
    write_atomically(folder / "heads.csv", to_csv(heads))
    about = [
        f"Data: {config['data']['dataset']}, split {settings['split']}; weights: "
        f"{settings['weights']}."
    ]
    if found.uncalibrated:
        unmeasured = ", ".join(found.uncalibrated)
        about.append(f"Not calibrated (lenext.evaluate --calibrate): {unmeasured}.")
    about += [f"{said}." for name in found.cells for said in overruled_parts(name)]
    text = markdown(records, heading, about, headline=found.headline, effective=effective)
    write_atomically(folder / "results.md", text)
    write_atomically(folder / "results.png", plot(records, found.headline, train_length, heading))
    metrics = {record["metric"] for record in records}
    shown = [*found.cells][:MOST_PANELS]
    few = [record for record in records if record["method"] in shown]
    pictures = {
        "by_position.png": ("loss_by_position", plot_by_position, records),
        "by_depth.png": ("retrieved_by_place", plot_by_depth, few),
    }
    for name, (metric, draw, some) in pictures.items():
        if metric in metrics:
            write_atomically(folder / name, draw(some, train_length, heading))
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier sweep's
    print(f"\n{workdir}: {heading}\n\n{text_table(records, found.headline)}\n")
    print("".join(f"{line}\n" for line in about[1:]), end="")
    print(f"all metrics, with intervals: {folder / 'results.md'}, .csv, .json")
    print(f"picture: {folder / 'results.png'}")


def _tell_replaced(path: AnyPath, kept: list[dict[str, Any]]) -> None:
    """Says which cells an earlier table showed that the one to come does not."""
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text())["cells"]
        gone = [cell for cell in earlier if cell not in kept]
        lengths: dict[str, list[str]] = {}
        for cell in gone:
            lengths.setdefault(cell["method"], []).append(str(cell["length"]))
    except (OSError, *MISREAD):
        print(f"{path}: was made before cells were kept; what it showed is replaced")
        return
    if gone:
        told = "; ".join(f"{method} at {', '.join(own)}" for method, own in lengths.items())
        print(
            one_line(
                f"{path.parent} showed {told}, and now shows what was asked; what was measured "
                f"stays in {CELLS}, and --name=NAME keeps a table apart"
            )
        )
