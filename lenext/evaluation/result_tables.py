"""Records as a table for people and a CSV for spreadsheets."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]
Records = Sequence[Record]

UNSUITED = "†"
ONE_DOCUMENT = " –: of one document, from which no interval follows."


class Table:
    """Figures by method and column, from records of one metric.

    Attributes:
      columns: their headings, ascending.
      rows: method as shown, and its records by column.
    """

    def __init__(self, records: Records, column: Callable[[Record], Any], name: Callable):
        found = sorted({column(record) for record in records})
        cells = {(record["method"], column(record)): record for record in records}
        self.columns = [name(x) for x in found]
        self.rows: list[tuple[str, list[Record]]] = [
            (label(cells[method, found[0]]), [cells[method, x] for x in found])
            for method in dict.fromkeys(record["method"] for record in records)
        ]


def by_length(records: Records, metric: str) -> Table:
    """A metric's table: columns are lengths."""
    return Table([r for r in records if r["metric"] == metric], lambda r: r["length"], str)


def by_position(records: Records) -> tuple[int, Table] | None:
    """The longest length and its loss by position; None where there is none."""
    chosen = [record for record in records if record["metric"] == "loss_by_position"]
    if not chosen:
        return None
    longest = max(record["length"] for record in chosen)
    chosen = [record for record in chosen if record["length"] == longest]
    return longest, Table(chosen, lambda r: tuple(r["positions"]), lambda x: f"{x[0]} … {x[1] - 1}")


def label(record: Record) -> str:
    """A method's name, marked where the weights were not trained for it."""
    return record["method"] + (f" {UNSUITED}" if record["unsuited"] else "")


def text_table(records: Records, metric: str) -> str:
    """Method by length, three decimals, for a terminal."""
    table = by_length(records, metric)
    width = max(len(text) for text in [*(name for name, _ in table.rows), metric])
    lines = [f"{metric:<{width}}" + "".join(f"{length:>8}" for length in table.columns)]
    for name, row in table.rows:
        lines.append(f"{name:<{width}}" + "".join(f"{figure(r['value']):>8}" for r in row))
    return "\n".join([*lines, *footnotes(records)])


def figure(value: float) -> str:
    """Three decimals; four digits where those are too many."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def footnotes(records: Records) -> list[str]:
    """What a table's reader has to know of its rows and columns."""
    lengths = {r["length"]: r for r in records if not r["positions"]}
    counts = ", ".join(
        f"{r['documents']} ({r['predictions']:,})" for _, r in sorted(lengths.items())
    )
    notes = [f"documents (predicted tokens) a length: {counts}; protocol {records[0]['protocol']}"]
    unsuited = {r["method"]: r["unsuited"] for r in records if r["unsuited"]}
    if unsuited:
        what = "; ".join(f"{method}: {', '.join(axes)}" for method, axes in unsuited.items())
        notes.append(f"{UNSUITED} wants weights trained for it, which these were not ({what})")
    return notes


def markdown(records: Records, heading: str, about: Sequence[str] = ()) -> str:
    """All metrics as Markdown tables, figures with their 95 % intervals; `about`: further notes."""
    parts = [f"# {heading}"]
    for metric in dict.fromkeys(r["metric"] for r in records if not r["positions"]):
        parts += _markdown_table(metric, by_length(records, metric))
    positions = by_position(records)
    if positions:
        longest, table = positions
        parts += _markdown_table(f"loss by position, at length {longest}", table)
    parts += _table_lines("cost", by_length(records, records[0]["metric"]), cost)
    notes = [
        "Brackets: 95 % interval by bootstrap over documents."
        + (ONE_DOCUMENT if any(r["interval"] is None for r in records) else ""),
        "Cost: seconds of running, in parentheses of compiling (0 where a length shares its bucket "
        "with another); peak memory of the compiled pass.",
        *footnotes(records),
        *about,
    ]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes), ""])


def cost(record: Record) -> str:
    """Of one cell of a sweep: seconds, those of compiling in parentheses, and memory."""
    seconds, compiling = record["seconds"], record["compile_seconds"]
    return f"{seconds:.1f} s (+{compiling:.1f}), {record['peak_bytes'] / 1e6:.0f} MB"


def _markdown_table(title: str, table: Table) -> list[str]:
    def interval(record: Record) -> str:
        if record["interval"] is None:
            return f"{figure(record['value'])} –"
        low, high = record["interval"]
        return f"{figure(record['value'])} [{figure(low)}, {figure(high)}]"

    return _table_lines(title, table, interval)


def _table_lines(title: str, table: Table, cell: Callable[[Record], str]) -> list[str]:
    lines = ["", f"## {title}", ""]
    lines.append("| method | " + " | ".join(table.columns) + " |")
    lines.append("|---|" + "---:|" * len(table.columns))
    for name, row in table.rows:
        cells = [cell(record) for record in row]
        escaped = name.replace("|", r"\|")  # a pattern of methods is no border of cells
        lines.append(f"| {escaped} | " + " | ".join(cells) + " |")
    return lines


def to_csv(records: Records) -> str:
    """A line a record; intervals in two columns, lists joined by spaces."""
    out = io.StringIO()
    flat = [_flat(record) for record in records]
    writer = csv.DictWriter(out, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(record: Record) -> Record:
    flat = {}
    for key, value in record.items():
        if key.endswith("interval"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value or ("", "")
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
