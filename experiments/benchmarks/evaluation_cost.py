"""What an evaluation costs by length: time and memory of one forward pass, and how they grow.

    python -m experiments.benchmarks.evaluation_cost

One sequence through the quickstart's GAU and the tiny decoder, with random weights, under methods
that see all keys and one that sees a window. The pass is that of `lenext.evaluate` without its look
at attention rows: hidden states, and the loss of each prediction. Writes evaluation_cost.md, .json
and .png under --results.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from configs import decoder, quickstart
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, megabytes, number
from experiments.benchmarks.training_step import make_batch, make_model
from lenext.config import Config, list_methods, plain, read_methods
from lenext.models import token_figures, with_method

TITLE = "One forward evaluation by length"
METHODS = ("softmax", "lssar", "windowed")  # the window is the training length
LENGTHS = (1024, 2048, 4096, 8192, 16384)
QUICK = (256, 512, 1024)


def configs() -> dict[str, Config]:
    """What is evaluated, by name."""
    return {"quickstart GAU": quickstart.get_config(), "tiny decoder": decoder.get_config("tiny")}


def one_sequence(config: Config, length: int) -> dict[str, np.ndarray]:
    """A batch of one sequence."""
    config = config.copy_and_resolve_references()
    config.data.update(train_length=length, batch_size=1)
    return make_batch(config)


def run_length(
    name: str, config: Config, methods: Sequence[str], length: int, runs: int
) -> list[Record]:
    """Compiles and times all methods at a length."""
    batch = jax.tree.map(jax.numpy.asarray, one_sequence(config, length))
    model = make_model(config)

    def forward(graphdef, params, batch):
        figures = token_figures(nnx.merge(graphdef, params), batch)
        return figures.loss, figures.correct

    passes: dict[str, measure.Compiled] = {}
    calls = {}
    for method in methods:
        pattern = read_methods(method, config.data.train_length)
        graphdef, params = nnx.split(with_method(model, pattern))
        passes[method] = measure.compiled(functools.partial(forward, graphdef), params, batch)
        calls[method] = passes[method].bound(params, batch)
    times = measure.interleaved(calls, runs)
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, methods[0])
    return [
        {
            "model": name, "method": method, "length": length, "seconds": seconds[method],
            "ratio": relative[method], "times": times[method],
            "peak_bytes": passes[method].peak_bytes, "compile_seconds": passes[method].seconds,
        }
        for method in methods
    ]  # fmt: skip


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of ln y over ln x by least squares; None for a single point."""
    if len(points) < 2:
        return None
    x, y = np.log(np.asarray(points, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def exponents(records: Sequence[Record]) -> list[Record]:
    """Of time and of peak memory, by model and method."""
    kinds = dict.fromkeys((r["model"], r["method"]) for r in records)
    return [
        {"model": model, "method": method}
        | {
            figure: exponent(
                [
                    (r["length"], r[figure])
                    for r in records
                    if (r["model"], r["method"]) == (model, method)
                ]
            )
            for figure in ("seconds", "peak_bytes")
        }
        for model, method in kinds
    ]


def markdown(records: Sequence[Record], slopes: Sequence[Record]) -> list[str]:
    """A table a model, and one of exponents."""
    lines: list[str] = []
    first = records[0]["method"]
    for model in dict.fromkeys(r["model"] for r in records):
        lines += [f"## {model}", ""]
        lines += measure.table(
            ["method", "length", "s", f"x {first}", "peak, MB", "compile, s"],
            [
                [
                    r["method"], f"{r['length']:,}", number(r["seconds"]), number(r["ratio"]),
                    megabytes(r["peak_bytes"]), number(r["compile_seconds"]),
                ]
                for r in records
                if r["model"] == model
            ],
        )  # fmt: skip
        lines.append("")
    lines += ["## Exponents", ""]
    lines += measure.table(
        ["model", "method", "time", "peak memory"],
        [[s["model"], s["method"], number(s["seconds"]), number(s["peak_bytes"])] for s in slopes],
        names=2,
    )
    return [
        *lines,
        "",
        "- One sequence, random weights and bytes, float32.",
        "- Peak: arguments, outputs and what the compiled program holds between.",
        "- Exponents: slopes of the logarithm over that of the length, by least squares.",
    ]


def picture(records: Sequence[Record]) -> bytes:
    """Time against length, a panel a model."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for r in records:
        points = panels.setdefault(r["model"], {}).setdefault(r["method"], [])
        points.append((r["length"], r["seconds"]))
    return measure.draw(panels, ("length (tokens)", "seconds"), TITLE)


def run(
    models: Mapping[str, Config],
    methods: Sequence[str],
    lengths: Sequence[int],
    runs: int,
    results: Path,
) -> None:
    """Measures, and writes evaluation_cost.md, .json and .png."""
    config = {name: plain(config) for name, config in models.items()}
    config |= {"methods": list(methods), "lengths": list(lengths)}
    inputs = [one_sequence(config, length) for config in models.values() for length in lengths]
    about = measure.describe(
        config, inputs, seeds=sorted({config.seed for config in models.values()}),
        tokens=max(lengths), steps=runs,
    )  # fmt: skip
    records: list[Record] = []
    for name, model_config in models.items():
        for length in lengths:
            print(f"{name} at {length:,} …", flush=True)
            records += run_length(name, model_config, methods, length, runs)
    slopes = exponents(records)
    measure.write(
        results, "evaluation_cost", TITLE, markdown(records, slopes),
        about | {"exponents": slopes}, records, picture(records),
    )  # fmt: skip


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=5)
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="with commas (default %(default)s)"
    )
    words = ",".join(map(str, LENGTHS))
    parser.add_argument("--lengths", type=measure.counts, help=f"with commas (default {words})")
    given = parser.parse_args()
    lengths = given.lengths or (QUICK if given.quick else LENGTHS)
    run(configs(), list_methods(given.methods, "--methods"), lengths, given.runs, given.results)


if __name__ == "__main__":
    main()
