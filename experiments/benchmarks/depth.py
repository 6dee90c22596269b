"""What depth costs: seconds to compile a training step, and the memory it takes beside its state.

    python -m experiments.benchmarks.depth

With and without rematerialisation. Compilation includes tracing; the median of three. Memory is the
compiled step's temporaries; parameters are counted too, as the scan over layers stacks a copy.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state, make_train_step

BATCH, LENGTH, VOCABULARY = 16, 256, 257
SIZES = {"hidden_size": 128, "intermediate_size": 256, "key_size": 32, "num_heads": 4}
DEPTHS = (6, 12, 24)
RUNS = 3


def compiled_step(family: str, depth: int, remat: bool) -> tuple[float, Any]:
    """Seconds to trace and compile, and the program."""
    config = base_config()
    config.model.update(family=family, num_layers=depth, remat=remat, dropout=0.1, **SIZES)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 100))
    model = build_model(config.model, read_methods("softmax", LENGTH), VOCABULARY, seed=0)
    state = jax.eval_shape(lambda: init_state(model, optimizer))
    whole = jnp.zeros((BATCH, LENGTH), jnp.int32)
    batch = {"tokens": whole, "targets": whole, "weights": whole.astype(jnp.float32)}
    if family == "gau":
        batch["positions"] = whole[:, : LENGTH // 8]
        batch |= {name: batch[name][:, : LENGTH // 8] for name in ("targets", "weights")}
    step = make_train_step(nnx.graphdef(model), optimizer, seed=0, dropout=True)
    jax.clear_caches()
    start = time.perf_counter()
    program = step.lower(state, batch, np.int32(1)).compile()
    return time.perf_counter() - start, program


def main() -> None:
    """Prints a Markdown table."""
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; batch {[BATCH, LENGTH]}, {SIZES}"
    )
    print("\n| model | remat |" + "".join(f" {depth} layers |" for depth in DEPTHS) + " 24 : 6 |")
    print("|---|---|" + "---:|" * (len(DEPTHS) + 1))
    for family in ("gau", "decoder"):
        for remat in (False, True):
            times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
            held: dict[int, float] = {}
            for _ in range(RUNS):
                for depth in DEPTHS:
                    seconds, program = compiled_step(family, depth, remat)
                    times[depth].append(seconds)
                    held[depth] = program.memory_analysis().temp_size_in_bytes / 1e6
            medians = {depth: statistics.median(x) for depth, x in times.items()}
            cells = (f"{medians[depth]:.1f} s, {held[depth]:.0f} MB" for depth in DEPTHS)
            ratio = medians[DEPTHS[-1]] / medians[DEPTHS[0]]
            print(f"| {family} | {remat} | " + " | ".join(cells) + f" | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
