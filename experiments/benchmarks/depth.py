"""What depth costs: seconds to compile a training step, and the memory it takes beside its state.

    python -m experiments.benchmarks.depth

With and without rematerialisation. Compilation includes tracing. Memory is the compiled step's
temporaries; parameters are counted too, as the scan over layers stacks a copy. Writes depth.md,
.json and .png under --results.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, megabytes, number
from experiments.benchmarks.training_step import make_batch, make_model
from lenext.config import Config, base_config, plain
from lenext.models import kinds_of
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state, make_train_step

TITLE = "Depth of a training step"
FAMILIES = ("gau", "decoder")
DEPTHS = (6, 12, 24)
QUICK = (2, 4)


def configured(family: str, depth: int, remat: bool) -> Config:
    """A small model of a family."""
    config = base_config()
    config.data.update(train_length=256, batch_size=16)
    config.model.update(
        family=family, num_layers=depth, remat=remat, dropout=0.1, hidden_size=128,
        intermediate_size=256, key_size=32, num_heads=4,
    )  # fmt: skip
    return config


def compiled_step(config: Config, batch: dict[str, np.ndarray]) -> measure.Compiled:
    """A training step, compiled anew."""
    model = make_model(config)
    schedule = make_schedule(config.optimizer, 100)
    optimizer = make_optimizer(config.optimizer, schedule, kinds_of(model))
    state = jax.eval_shape(lambda: init_state(model, optimizer))
    step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=True)
    jax.clear_caches()
    return measure.compiled(step, state, batch, np.int32(1))


def run_model(family: str, remat: bool, depths: Sequence[int], runs: int) -> list[Record]:
    """Compiles at all depths, in turn."""
    configs = {depth: configured(family, depth, remat) for depth in depths}
    batches = {depth: make_batch(config) for depth, config in configs.items()}
    done: dict[int, list[Any]] = {depth: [] for depth in depths}
    for _ in range(runs):
        for depth, config in configs.items():
            done[depth].append(compiled_step(config, batches[depth]))
    times = {depth: [step.seconds for step in steps] for depth, steps in done.items()}
    seconds = {depth: statistics.median(values) for depth, values in times.items()}
    return [
        {
            "model": family, "remat": remat, "layers": depth, "compile_seconds": seconds[depth],
            "ratio": seconds[depth] / seconds[depths[0]], "times": times[depth],
            "temp_bytes": done[depth][0].temp_bytes,
        }
        for depth in depths
    ]  # fmt: skip


def markdown(records: Sequence[Record], config: Config) -> list[str]:
    """One table."""
    model, data = config.model, config.data
    lines = measure.table(
        ["model", "remat", "layers", "compile, s", f"x {records[0]['layers']} layers",
         "temporary, MB"],
        [
            [
                r["model"], str(r["remat"]), str(r["layers"]), number(r["compile_seconds"]),
                number(r["ratio"]), megabytes(r["temp_bytes"]),
            ]
            for r in records
        ],
        names=2,
    )  # fmt: skip
    return [
        *lines,
        "",
        f"- {data.batch_size} sequences of {data.train_length}, width {model.hidden_size}, "
        "dropout, AdamW.",
        "- Compilation with tracing, of a step in a process that has compiled nothing like it.",
    ]


def picture(records: Sequence[Record]) -> bytes:
    """Time of compilation against depth."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        name = f"{r['model']}, rematerialised" if r["remat"] else r["model"]
        curves.setdefault(name, []).append((r["layers"], r["compile_seconds"]))
    return measure.draw({"compilation": curves}, ("layers", "seconds"), TITLE, log=False)


def run(depths: Sequence[int], runs: int, results: Path) -> None:
    """Measures, and writes depth.md, .json and .png."""
    configs = {family: configured(family, max(depths), False) for family in FAMILIES}
    config = {family: plain(config) for family, config in configs.items()}
    about = measure.describe(
        config | {"depths": list(depths)}, {f: make_batch(c) for f, c in configs.items()},
        seeds=[configs["gau"].seed], tokens=16 * 256, steps=runs,
    )  # fmt: skip
    records: list[Record] = []
    for family in FAMILIES:
        for remat in (False, True):
            name = f"{family}, rematerialised" if remat else family
            print(f"{name} …", flush=True)
            records += run_model(family, remat, depths, runs)
    measure.write(
        results, "depth", TITLE, markdown(records, configs["gau"]), about, records, picture(records)
    )


def main() -> None:
    """Parses the flags, runs."""
    given = measure.parser(__doc__, runs=3).parse_args()
    run(QUICK if given.quick else DEPTHS, given.runs, given.results)


if __name__ == "__main__":
    main()
