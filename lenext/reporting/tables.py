"""Records as a table for people and a CSV for spreadsheets."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lenext.workdirs.versions import results_version

Record = dict[str, Any]
Records = Sequence[Record]

UNSUITED = "†"
MARKS = (
    "± half the 95 % interval, by resampling documents and seeds. **Bold** and _italic_: in its "
    "column not to be told from the best, or from the worst, by the interval of their difference."
)
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


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records whose keys have these values, or one of those in a tuple."""

    def fits(record: Record, key: str, value: Any) -> bool:
        return record[key] in value if isinstance(value, tuple) else record[key] == value

    return [r for r in records if all(fits(r, key, value) for key, value in wanted.items())]


def one(records: Iterable[Record], **wanted: Any) -> Record:
    """The one record whose keys have these values."""
    (record,) = select(records, **wanted)
    return record


def lengths(records: Iterable[Record]) -> list[int]:
    """Those of the records, ascending."""
    return sorted({record["length"] for record in records})


def half(record: Record) -> float:
    """Half the width of the interval."""
    low, high = record["interval"]
    return (high - low) / 2


def with_interval(record: Record) -> str:
    """A figure with half its interval."""
    return f"{figure(record['value'])} ±{half(record):.3f}"


def marked(record: Record) -> str:
    """A figure with half its interval, marked where it is of the best or the worst."""
    text = with_interval(record)
    if record.get("best") and not record.get("worst"):
        return f"**{text}**"
    return f"_{text}_" if record.get("worst") and not record.get("best") else text


def difference(record: Record) -> str:
    """The difference to the baseline, with its interval."""
    low, high = record["difference_interval"]
    return f"{record['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def metric_table(
    records: Sequence[Record], metric: str, cell: Callable[[Record], str] = marked
) -> list[str]:
    """Rows by length of a metric; a column says how the weights were trained where that varies."""
    chosen = select(records, metric=metric, positions=None)
    columns = lengths(chosen)
    rows = []
    for method in dict.fromkeys(r["method"] for r in chosen):
        row = {r["length"]: r for r in chosen if r["method"] == method}
        trained = next(iter(row.values()))["trained"]
        rows.append([method, trained, *(cell(row[n]) if n in row else "" for n in columns)])
    return markdown_table(["method", "trained with", *map(str, columns)], rows, words=2)


def accuracy_and_loss(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Sections of both by length, and of the accuracy's difference to the baseline, softmax."""
    return [
        ("accuracy (higher is better)", metric_table(records, "accuracy")),
        ("accuracy less softmax's", metric_table(records, "accuracy", difference)),
        ("loss in nats (lower is better)", metric_table(records, "loss")),
    ]


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> list[str]:
    """A Markdown table, its first `words` columns to the left; | is escaped in cells."""
    lines = [
        f"| {' | '.join(headings)} |",
        "|" + "---|" * words + "---:|" * (len(headings) - words),
    ]
    for row in rows:
        escaped = [cell.replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(escaped)} |")
    return lines


def provenance_notes(content: dict[str, Any]) -> list[str]:
    """What a reader has to know of where figures come from."""
    one_length = {}
    for record in content["records"]:
        if not record["positions"]:
            one_length[record["length"]] = record
    counts = ", ".join(
        f"{r['documents']} ({r['predictions']:,})" for _, r in sorted(one_length.items())
    )
    seconds = sum(r["training_seconds"] + r["evaluation_seconds"] for r in content["runs"])
    hardware = content["hardware"]
    machines = hardware if isinstance(hardware, list) else [hardware]
    tokens, steps = (
        f"{x:,}" if isinstance(x, int) else " or ".join(f"{y:,}" for y in x)
        for x in (content["tokens"], content["steps"])
    )
    notes = [
        f"Size {content['size']}: {steps} steps, {tokens} tokens a training; seeds "
        f"{', '.join(map(str, content['seeds']))}; {len(content['runs'])} trainings.",
    ]
    if one_length:
        protocol = content["records"][0]["protocol"]
        notes.append(
            f"Documents (predicted tokens) a length and seed: {counts}; protocol {protocol}."
        )
    notes.append(
        f"{seconds / 3600:.1f} hours on "
        + " and ".join(f"{m['cores']} cores of {m['cpu']} ({m['backend']})" for m in machines)
        + f"; git {_short(content['git'])}; every figure: {content['experiment']}.json."
    )
    notes.append(results_version_note(content))
    return notes


def results_version_note(content: dict[str, Any]) -> str:
    """Which version of results the figures are of, and whether that is still the present one."""
    versions, now = content["results_version"], results_version()
    told = [f"{kind} version {versions[kind]}" for kind in now]
    old = [kind for kind in now if versions[kind] != now[kind]]
    later = f" (now at {', '.join(f'{kind} {now[kind]}' for kind in old)})" if old else ""
    return f"Results of {' and '.join(told)}{later}."


def _short(git: Any) -> str:
    revisions = git if isinstance(git, list) else [git]
    return ", ".join(
        str(x)[:10] + ("+changes" if str(x).endswith("+changes") else "") for x in revisions
    )


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]], notes: Sequence[str]) -> str:
    """A Markdown page of headed sections and notes."""
    parts = [f"# {title}"]
    for heading, lines in sections:
        parts += ["", f"## {heading}", "", *lines] if heading else ["", *lines]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes), ""])
