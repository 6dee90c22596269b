"""Records as tables: for terminals, in Markdown, as CSV; and pages of them."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def label(record: Record) -> str:
    """A method's name, marked where the weights were not trained for it."""
    return record["method"] + (f" {UNSUITED}" if record["unsuited"] else "")


def figure(value: float) -> str:
    """Three decimals; four digits where those are too many."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _around(shown: str, ends: Sequence[float] | None, say: Callable[[float, float], str]) -> str:
    """What is shown, with what is said of the ends of its interval, if it has one."""
    return f"{shown} {'–' if ends is None else say(*ends)}"


def with_interval(record: Record) -> str:
    """A figure with half its interval."""
    return _around(
        figure(record["value"]), record["interval"], lambda low, high: f"±{(high - low) / 2:.3f}"
    )


def with_ends(record: Record) -> str:
    """A figure with both ends of its interval."""
    return _around(
        figure(record["value"]),
        record["interval"],
        lambda low, high: f"[{figure(low)}, {figure(high)}]",
    )


def marked(record: Record) -> str:
    """A figure with half its interval, marked where it is of the best or the worst."""
    text = with_interval(record)
    if record.get("best") and not record.get("worst"):
        return f"**{text}**"
    return f"_{text}_" if record.get("worst") and not record.get("best") else text


def difference(record: Record) -> str:
    """The difference to the baseline, with its interval."""
    return _around(
        f"{record['difference']:+.3f}",
        record["difference_interval"],
        lambda low, high: f"[{low:+.3f}, {high:+.3f}]",
    )


def cost(record: Record) -> str:
    """Of one cell of a sweep: seconds, those of compiling in parentheses, and memory."""
    seconds, compiling = record["seconds"], record["compile_seconds"]
    return f"{seconds:.1f} s (+{compiling:.1f}), {record['peak_bytes'] / 1e6:.0f} MB"


def work(record: Record) -> str:
    """What a sequence asks for: operations, bytes of keys and values, and how fast they went."""
    cache = record["cache_bytes"]
    held = "" if cache is None else f"{cache / 1e6:.3g} MB, "
    return f"{record['flops'] / 1e9:.3g} GFLOP, {held}{record['tokens_per_second']:,.0f} tokens/s"


def by_length(records: Records, metric: str) -> tuple[list[str], dict[str, list[Record | None]]]:
    """A metric's lengths, ascending, and each row's records of them, None where it has none."""
    return _grid(select(records, metric=metric, positions=None), lambda r: r["length"], str)


def _grid(
    records: Records, column: Callable[[Record], Any], name: Callable[[Any], str]
) -> tuple[list[str], dict[str, list[Record | None]]]:
    found = sorted({column(record) for record in records})
    rows: dict[str, dict[Any, Record]] = {}
    for record in records:
        rows.setdefault(label(record), {})[column(record)] = record
    return [*map(name, found)], {row: [own.get(x) for x in found] for row, own in rows.items()}


def text_table(records: Records, metric: str) -> str:
    """Method by length, three decimals, for a terminal."""
    columns, rows = by_length(records, metric)
    cells = {name: [figure(r["value"]) if r else "" for r in row] for name, row in rows.items()}
    width = max(map(len, [*rows, metric]))
    lines = []
    for name, row in ({metric: columns} | cells).items():
        widths = [
            max(8, *(len(x) + 2 for x in column)) for column in zip(*cells.values(), strict=True)
        ]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{text:>{wide}}" for text, wide in zip(row, widths, strict=True))
        )
    return "\n".join([*lines, *footnotes(records)])


def footnotes(records: Records) -> list[str]:
    """What a table's reader has to know of its rows and columns."""
    protocol = records[0]["protocol"]
    told = f"{counted(protocol)} a length: {counts(records)}"
    return [f"{told}; protocol {protocol}", *unsuited_notes(records)]


def counted(protocol: str) -> str:
    """What `counts` gives."""
    return "prompts a task (in all)" if protocol == "ruler" else "documents (predicted tokens)"


def unsuited_notes(records: Records) -> list[str]:
    """What the mark of `label` means, where a record has it."""
    unsuited = {r["method"]: r["unsuited"] for r in records if r["unsuited"]}
    what = "; ".join(f"{method}: {', '.join(axes)}" for method, axes in unsuited.items())
    said = f"{UNSUITED} wants weights trained for it, which these were not ({what})"
    return [said] if unsuited else []


def counts(records: Records) -> str:
    """Documents, and in parentheses the first metric's predictions, by length."""
    by_length = {r["length"]: r for r in reversed(records) if not r["positions"]}
    return ", ".join(
        f"{r['documents']} ({r['predictions']:,})" for _, r in sorted(by_length.items())
    )


def markdown(
    records: Records,
    heading: str,
    about: Sequence[str] = (),
    *,
    headline: str | None = None,
    effective: Records = (),
) -> str:
    """A page of all metrics of a sweep, with their 95 % intervals.

    Args:
      records: of the sweep.
      heading: of the page.
      about: further notes.
      headline: a metric whose differences to the first row are shown too.
      effective: of `lenext.reporting.records.effective_lengths`.
    """
    sections = [
        (metric, metric_table(records, metric, with_ends))
        for metric in dict.fromkeys(r["metric"] for r in records if not r["positions"])
    ]
    first = records[0]
    if headline:
        title = f"{headline} less {first['method']}'s"
        sections.insert(1, (title, metric_table(records, headline, difference)))
    buckets = select(records, metric="loss_by_position")
    if buckets:
        longest = max(lengths(buckets))
        columns, rows = _grid(
            select(buckets, length=longest),
            lambda r: tuple(r["positions"]),
            lambda x: f"{x[0]} … {x[1] - 1}",
        )
        title = f"loss by position, at length {longest}"
        sections.append((title, _metric_table(columns, rows, with_ends)))
    notes = [
        "Brackets: 95 % interval by bootstrap over documents."
        + (ONE_DOCUMENT if any(r["interval"] is None for r in records) else "")
    ]
    if far := select(records, metric="far_loss"):
        notes.append(
            "far_loss: the loss on tokens that need the far context, which are the same for every "
            f"method: {counts(far)} documents (tokens) a length."
        )
    if effective:
        sections.append(("effective length", effective_table(effective)))
        notes.append(
            "Effective length: the longest up to which the loss exceeds that at the training "
            f"length by no more than {effective[0]['margin']:.3g} of it; ≥ where that is the "
            "longest measured."
        )
    if "seconds" in first:
        sections.append(("cost", metric_table(records, first["metric"], cost)))
        notes.append(
            "Cost: seconds of running, in parentheses of compiling (0 where a length shares its "
            "bucket with another); peak memory of the compiled pass."
        )
    if "flops" in first:
        sections.append(("work", metric_table(records, first["metric"], work)))
        notes.append(
            "Work: operations of a sequence's forward pass, in products with matrices and of "
            "queries with the keys that they see; the keys and values that generating it holds, in "
            "models that generate; tokens a second of the run."
        )
    return page(heading, sections, [*notes, *footnotes(records), *about])


def effective_table(effective: Records) -> list[str]:
    """Rows of how far each method holds."""
    rows = []
    for record in effective:
        reaches, longest = record["effective_length"], record["longest"]
        ends = "–" if record["interval"] is None else "[{}, {}]".format(*record["interval"])
        reached = f"{'≥ ' if reaches == longest else ''}{'–' if reaches is None else reaches}"
        rows.append([record["method"], str(record["from"]), reached, ends])
    return markdown_table(["method", "from", "effective length", "95 % interval"], rows)


def to_csv(records: Records) -> str:
    """A line a record; intervals in two columns, lists joined by spaces."""
    out = io.StringIO()
    flat = [_flat(record) for record in records]
    names = dict.fromkeys(key for record in flat for key in record)
    writer = csv.DictWriter(out, fieldnames=list(names), lineterminator="\n")
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


def metric_table(
    records: Records, metric: str, cell: Callable[[Record], str] = marked
) -> list[str]:
    """Rows by length of a metric; a column says how weights were trained, where records do."""
    return _metric_table(*by_length(records, metric), cell)


def _metric_table(
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Record | None]],
    cell: Callable[[Record], str],
) -> list[str]:
    lines, told = [], False
    for name, row in rows.items():
        first = next(record for record in row if record)
        told = "trained" in first
        about = [name, first["trained"]] if told else [name]
        lines.append([*about, *(cell(record) if record else "" for record in row)])
    headings = ["method", "trained with"] if told else ["method"]
    return markdown_table([*headings, *columns], lines, words=len(headings))


def accuracy_and_loss(records: Records) -> list[tuple[str, list[str]]]:
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
    seconds = sum(r["training_seconds"] + r["evaluation_seconds"] for r in content["runs"])
    hardware = content["hardware"]
    machines = hardware if isinstance(hardware, list) else [hardware]
    tokens, steps = (
        f"{x:,}" if isinstance(x, int) else " or ".join(f"{y:,}" for y in x)
        for x in (content["tokens"], content["steps"])
    )
    trained = (
        f"{steps} steps, {tokens} tokens a training; seeds "
        f"{', '.join(map(str, content['seeds']))}; {len(content['runs'])} trainings"
    )
    notes = [f"Size {content['size']}: {trained if content['steps'] else 'no training'}."]
    if told := counts(content["records"]):
        protocol = content["records"][0]["protocol"]
        what = counted(protocol)
        notes.append(f"{what[0].upper()}{what[1:]} a length and seed: {told}; protocol {protocol}.")
    notes.append(
        f"{seconds / 3600:.1f} hours on "
        + " and ".join(f"{m['cores']} cores of {m['cpu']} ({m['backend']})" for m in machines)
        + f"; git {_short(content['git'])}; every figure: {content['experiment']}.json."
    )
    notes += [f"{note}." for note in unsuited_notes(content["records"])]
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
