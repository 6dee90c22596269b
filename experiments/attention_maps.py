"""What length does to attention: maps of rows, and entropy and dilution by layer.

    python -m experiments.attention_maps

On the model that infoscale_table trains with softmax and the first seed, trained if it is missing;
entropy_matched is calibrated on it. Writes attention_maps.json (entropy and dilution by method,
length, layer and head), .md, and two pictures:

attention_maps.png       weights of one validation document's middle rows, by layer and method
entropy_by_length.png    mean row entropy and dilution of each layer
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments import attention_pictures as pictures
from experiments import infoscale_table
from experiments.windows import validation_crops
from lenext.files import write_atomically
from lenext.models import attention_maps
from lenext.reporting.tables import markdown_table
from lenext.sweeps.experiment import rounded
from lenext.sweeps.runs import Run, evaluate_method, find_evaluation, read_evaluation, train_run
from lenext.workdirs.calibration import under_method
from lenext.workdirs.pretrained import load_run

METHODS = (
    "softmax",
    "infoscale",
    "log_length",
    "rerope",
    "rerope_log",
    "rerope+entropy_matched",
    "leaky_rerope",
    "self_extend",
    "lm_infinite",
)


def middle_rows(run: Run, workdir: Path) -> list[pictures.Strip]:
    """Weights of the middle L rows of a document: alone, and in a longer text by method."""
    trained, tokens = load_run(workdir), validation_crops(run.config)
    train_length = run.config.data.train_length
    first = (tokens.shape[1] - train_length) // 2
    rows = np.arange(first, first + train_length)
    alone = attention_maps(trained.model, tokens[:1, rows])
    strips = [pictures.Strip(f"softmax,\n{train_length} bytes only", np.asarray(alone), first)]
    for name in METHODS:
        model, _ = under_method(trained, workdir, trained.read_methods(name))
        maps = attention_maps(model, tokens[:1], rows=rows)
        strips.append(pictures.Strip(name.replace("+", "\n+"), np.asarray(maps), 0))
    return strips


def markdown(content: dict[str, Any], heading: str) -> str:
    """Entropy and dilution of each layer by method."""
    heads = content["heads"]
    lengths = sorted({r["length"] for r in heads})
    layers = sorted({r["layer"] for r in heads})
    shown = [lengths[0], lengths[len(lengths) // 3], lengths[-1]]
    headings = [f"entropy at {n}" for n in shown] + [f"dilution at {shown[-1]}"]

    def cell(method: str, figure: str, length: int) -> str:
        return " / ".join(f"{x:.2f}" for x in pictures.by_layer(heads, method, figure, length))

    rows = [
        [m, *(cell(m, "entropy", n) for n in shown), cell(m, "dilution", shown[-1])]
        for m in METHODS
    ]
    return "\n".join(
        [
            f"# {heading}",
            "",
            f"Figures by layer: {' / '.join(str(1 + layer) for layer in layers)}. Entropy: mean "
            "over rows, in nats. Dilution: weight on keys beyond the training length.",
            "",
            *markdown_table(["method", *headings], rows),
            "",
        ]
    )


def run(folder: Path, results: Path, size: str) -> None:
    """Trains and evaluates what is missing; writes attention_maps.json, .md and the pictures."""
    model = infoscale_table.softmax_runs(size)[0]
    train_run(model, folder)
    heads: list[dict[str, Any]] = []
    for method in METHODS:
        if find_evaluation(model, method, [folder]) is None:
            evaluate_method(model, method, folder)
        found, cells = read_evaluation(model.results(folder, method))
        heads += [
            {"method": method, "length": cell.length} | head
            for cell in cells
            for head in cell.heads
        ]
    content = rounded(found["provenance"] | {"heads": heads})
    config = model.config
    train_length = config.data.train_length
    heading = (
        f"GAU of {config.model.num_layers} layers, trained at {train_length} bytes for "
        f"{model.steps} steps with softmax"
    )
    results.mkdir(parents=True, exist_ok=True)
    files = {
        "attention_maps.json": json.dumps(content, indent=1) + "\n",
        "attention_maps.md": markdown(content, heading),
        "attention_maps.png": pictures.draw_maps(
            middle_rows(model, model.workdir(folder)), heading
        ),
        "entropy_by_length.png": pictures.draw_layers(heads, train_length, heading),
    }
    for name, text in files.items():
        write_atomically(results / name, text)
    print(f"results: {', '.join(str(results / name) for name in files)}")


def main() -> None:
    """Parses the flags, runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=Path("runs/results"))
    parser.add_argument("--size", default="cpu", help="of experiments/sizes.py")
    arguments = parser.parse_args()
    run(arguments.runs, arguments.results, arguments.size)


if __name__ == "__main__":
    main()
