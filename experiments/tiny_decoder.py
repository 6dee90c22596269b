"""A tiny decoder trained at 128 bytes with softmax, LSSA and LSSAR, evaluated to 2048.

    python -m experiments.tiny_decoder --runs=runs --results=experiments/results

Three trainings of equal steps, tokens and seed (resumed where they are found under --runs), each
evaluated under its own method and some others; one table and two pictures of them all. It took an
hour on two CPU cores, at low priority beside other work. Rows are named by the method evaluated,
and "a → b" for weights trained with a and evaluated as b.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from configs.decoder import get_config
from lenext.evaluation import evaluate
from lenext.evaluation.plot import plot, plot_by_position
from lenext.evaluation.report import markdown
from lenext.files import write_atomically
from lenext.training import train

TRAINED = ("softmax", "lssa", "lssar")
TITLE = "decoder of 4 layers, trained at 128 bytes for 1000 steps with each method"


def run(runs: Path, size: str = "tiny") -> tuple[list[dict], dict[str, Any]]:
    """Trains and evaluates what is missing.

    Args:
      runs: holds a workdir for each method.
      size: of `configs/decoder.py`, with ",smoke" for seconds.

    Returns:
      The records of all evaluations, in the order of `TRAINED`, and where those of the first are
      from: its provenance, which but for the method is that of all.
    """
    records, about = [], {}
    for method in TRAINED:
        config = get_config(f"{method},{size}")
        workdir = runs / f"{size.replace(',', '_')}_{method}"
        train(config, workdir)
        for record in evaluate(config, workdir):
            if record["method"] != method and method != "softmax":
                record["method"] = f"{method} → {record['method']}"
            records.append(record)
        results = json.loads((workdir / "eval" / "results.json").read_text())
        about = about or results["provenance"]
    return records, about


def write(records: list[dict], about: dict[str, Any], results: Path, train_length: int) -> None:
    """Writes tiny_decoder.json, .md, .png and tiny_decoder_by_position.png."""
    results.mkdir(parents=True, exist_ok=True)
    content = about | {"records": records}
    write_atomically(results / "tiny_decoder.json", json.dumps(content, indent=1) + "\n")
    write_atomically(results / "tiny_decoder.md", markdown(records, TITLE))
    write_atomically(results / "tiny_decoder.png", plot(records, "loss", train_length, TITLE))
    write_atomically(
        results / "tiny_decoder_by_position.png", plot_by_position(records, train_length, TITLE)
    )


def main() -> None:
    """Parses the flags, runs, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results"))
    parser.add_argument(
        "--size", default="tiny", help='of configs/decoder.py; "tiny,smoke" for seconds'
    )
    arguments = parser.parse_args()
    records, about = run(arguments.runs, arguments.size)
    train_length = get_config(arguments.size).data.train_length
    write(records, about, arguments.results, train_length)
    print(f"results: {arguments.results / 'tiny_decoder.md'}, .json, .png")


if __name__ == "__main__":
    main()
