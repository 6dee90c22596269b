"""Markdown of pooled records: tables with the best and the worst marked, and their origins."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lenext.evaluation.result_tables import figure
from lenext.sweeps.pool import Record
from lenext.workdirs.versions import results_version

MARKS = (
    "± half the 95 % interval, by resampling documents and seeds. **Bold** and _italic_: in its "
    "column not to be told from the best, or from the worst, by the interval of their difference."
)


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
