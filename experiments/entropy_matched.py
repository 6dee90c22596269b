"""Does holding the entropy of attention hold the model? A GAU trained at 64 bytes, up to 4096.

    python -m experiments.entropy_matched --runs=runs --results=experiments/results

Trains the quickstart's model (or resumes it under --runs), calibrates entropy_matched on training
documents at 64, 128, 512, 2048 and 8192 bytes, and evaluates it beside infoscale and log_length:
alone and on top of rerope, yarn and lm_infinite, all on the same weights, documents and masks.
Writes entropy_matched.json, .md and .png.
"""

import argparse
import json
from pathlib import Path

from configs.quickstart import get_config
from lenext.config import Config
from lenext.evaluation import evaluate
from lenext.evaluation.plot import plot
from lenext.evaluation.report import markdown
from lenext.files import write_atomically
from lenext.provenance import provenance
from lenext.training import train

POSITIONS = ("softmax", "rerope", "yarn", "lm_infinite")
TEMPERATURES = ("", "infoscale", "log_length", "entropy_matched")
TITLE = "GAU of 3 layers, trained at 64 bytes for 1200 steps with softmax: temperatures"


def methods() -> list[str]:
    """Every temperature on every position, grouped by position."""
    return [
        "+".join(part for part in (position, temperature) if part)
        for position in POSITIONS
        for temperature in TEMPERATURES
    ]


def run(config: Config, workdir: Path) -> list[dict]:
    """Trains what is missing, calibrates, evaluates; the records."""
    config.eval.methods = ",".join(methods())
    train(config, workdir)
    return evaluate(config, workdir, calibrate_first=True)


def write(records: list[dict], results: Path, workdir: Path, train_length: int) -> None:
    """Writes entropy_matched.json, .md and .png."""
    results.mkdir(parents=True, exist_ok=True)
    calibrations = json.loads((workdir / "calibration.json").read_text())["calibrations"]
    off = [
        f"{entry['method']}: heads' entropies on the training documents off by at most "
        + ", ".join(f"{value:.1%} at {length}" for length, value in entry["off"].items())
        for entry in calibrations
    ]
    content = {"provenance": provenance(), "records": records, "calibrations": calibrations}
    write_atomically(results / "entropy_matched.json", json.dumps(content, indent=1) + "\n")
    write_atomically(results / "entropy_matched.md", markdown(records, TITLE, off))
    write_atomically(
        results / "entropy_matched.png", plot(records, "accuracy", train_length, TITLE)
    )


def main() -> None:
    """Parses the flags, runs, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results"))
    parser.add_argument("--size", default="", help='"smoke" for seconds')
    arguments = parser.parse_args()
    config = get_config(arguments.size)
    workdir = arguments.runs / ("quickstart" + (f"_{arguments.size}" if arguments.size else ""))
    records = run(config, workdir)
    write(records, arguments.results, workdir, config.data.train_length)
    print(f"results: {arguments.results / 'entropy_matched.md'}, .json, .png")


if __name__ == "__main__":
    main()
