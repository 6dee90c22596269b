"""Several evaluations side by side: python -m lenext.compare DIR DIR…"""

import json
from collections.abc import Sequence

from absl import flags

from lenext import cli
from lenext.buckets import AnyPath, as_path, resolved
from lenext.errors import UserError, reason_of
from lenext.evaluation.compare import paired, read_results, short_names
from lenext.files import make_folder, write_atomically
from lenext.reporting.pictures import plot
from lenext.reporting.records import effective_lengths, make_records
from lenext.reporting.tables import markdown, text_table, to_csv

USAGE = f"""{__doc__}

  DIR               workdirs that were evaluated; or of one of their tables, DIR/eval/NAME
  --target=DIR      where the comparison goes (default: runs/compare)

Every method of each is a row. Differences are to the first row, paired on the same documents and
masks, so all must have been asked the same: data, tokenizer, protocol, settings. Lengths that not
all have are left out."""


def main() -> None:
    """Parses the command line, and compares.

    Raises:
      UserError: for folders that hold no evaluations, or such as cannot be paired.
    """
    target = flags.DEFINE_string("target", "runs/compare", "Where it goes.")
    folders = [as_path(word) for word in cli.parse_flags(words=True)]
    if len(folders) < 2 or len({resolved(folder) for folder in folders}) < len(folders):
        raise UserError("should be given two different folders or more: DIR DIR…")
    compare(folders, as_path(target.value))


def compare(folders: Sequence[AnyPath], into: AnyPath) -> None:
    """Writes and prints the comparison of the evaluations that folders hold.

    Raises:
      UserError: as `main`.
    """
    names = short_names(folders)
    evaluations = [read_results(folder, name) for folder, name in zip(folders, names, strict=True)]
    by_evaluation = paired(evaluations)
    first, rows = evaluations[0], [row for own in by_evaluation for row in own]
    draws = {"times": first.settings["bootstrap"], "seed": first.settings["seed"]}
    records = make_records(rows, rows[0].label, **draws)
    train_lengths = [found.trained["data"]["train_length"] for found in evaluations]
    effective = [
        record
        for own, length in zip(by_evaluation, train_lengths, strict=True)
        for record in effective_lengths(own, length, first.settings["margin"], **draws)
    ]
    asked = {length for found in evaluations for length in found.asked}
    left_out = sorted(asked - {record["length"] for record in records})
    heading = f"{', '.join(names)}: differences to {rows[0].label}"
    about = [
        f"{name}: trained at {length} tokens."
        for name, length in zip(names, train_lengths, strict=True)
    ]
    if left_out:
        about.append(f"Left out, as not all have them: lengths {', '.join(map(str, left_out))}.")
    try:
        make_folder(into)
    except OSError as error:
        raise UserError(f"--target={into}: should be a folder ({reason_of(error)})") from None
    content = {
        "folders": [str(folder) for folder in folders],
        "effective_lengths": effective,
        "records": records,
    }
    write_atomically(into / "compare.json", json.dumps(content, indent=1) + "\n")
    write_atomically(into / "compare.csv", to_csv(records))
    text = markdown(records, heading, about, headline=first.headline, effective=effective)
    write_atomically(into / "compare.md", text)
    picture = plot(records, first.headline, min(train_lengths), heading)
    write_atomically(into / "compare.png", picture)
    print(f"{text_table(records, first.headline)}\n" + "\n".join(about))
    print(f"all metrics, with intervals and differences: {into / 'compare.md'}, .csv, .json")
    print(f"picture: {into / 'compare.png'}")


if __name__ == "__main__":
    cli.guard(USAGE, main, interrupted="interrupted")
