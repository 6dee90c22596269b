"""Records as a table for people and a CSV for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Records = Sequence[dict[str, Any]]

UNSUITED = "†"


def _columns(records: Records, metric: str) -> tuple[list[str], list[int], dict[tuple, dict]]:
    chosen = {(r["method"], r["length"]): r for r in records if r["metric"] == metric}
    methods = list(dict.fromkeys(method for method, _ in chosen))
    lengths = sorted({length for _, length in chosen})
    return methods, lengths, chosen


def label(record: dict[str, Any]) -> str:
    """A method's name, marked where the weights were not trained for it."""
    return record["method"] + (f" {UNSUITED}" if record["unsuited"] else "")


def text_table(records: Records, metric: str) -> str:
    """Method by length, three decimals, for a terminal."""
    methods, lengths, cells = _columns(records, metric)
    names = [label(cells[method, lengths[0]]) for method in methods]
    width = max(map(len, [*names, metric]))
    lines = [f"{metric:<{width}}" + "".join(f"{length:>8}" for length in lengths)]
    for method, name in zip(methods, names, strict=True):
        values = (cells[method, length]["value"] for length in lengths)
        lines.append(f"{name:<{width}}" + "".join(f"{value:>8.3f}" for value in values))
    return "\n".join([*lines, *footnotes(records)])


def footnotes(records: Records) -> list[str]:
    """What a table's reader has to know of its rows and columns."""
    lengths = {r["length"]: r for r in records}
    counts = ", ".join(
        f"{r['documents']} ({r['predictions']:,})" for _, r in sorted(lengths.items())
    )
    notes = [f"documents (predicted tokens) a length: {counts}; protocol {records[0]['protocol']}"]
    unsuited = {r["method"]: r["unsuited"] for r in records if r["unsuited"]}
    if unsuited:
        what = "; ".join(f"{method}: {', '.join(axes)}" for method, axes in unsuited.items())
        notes.append(f"{UNSUITED} wants weights trained for it, which these were not ({what})")
    return notes


def markdown(records: Records, heading: str) -> str:
    """All metrics as Markdown tables, each figure with its 95 % interval."""
    parts = [f"# {heading}"]
    for metric in dict.fromkeys(r["metric"] for r in records):
        methods, lengths, cells = _columns(records, metric)
        parts += ["", f"## {metric}", ""]
        parts.append("| method | " + " | ".join(map(str, lengths)) + " |")
        parts.append("|---|" + "---:|" * len(lengths))
        for method in methods:
            row = [cells[method, length] for length in lengths]
            figures = (
                f"{r['value']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]" for r in row
            )
            name = label(row[0]).replace("|", r"\|")  # a pattern of methods is no border of cells
            parts.append(f"| {name} | " + " | ".join(figures) + " |")
    notes = ["Brackets: 95 % interval by bootstrap over documents.", *footnotes(records)]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes), ""])


def to_csv(records: Records) -> str:
    """A line a record; intervals in two columns, lists joined by spaces."""
    out = io.StringIO()
    flat = [_flat(record) for record in records]
    writer = csv.DictWriter(out, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in record.items():
        if key.endswith("interval"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value
        else:
            flat[key] = " ".join(value) if isinstance(value, list) else value
    return flat
