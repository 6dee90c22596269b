"""Forward time of attention by query-block size, beside the definition: whence the defaults.

    python -m experiments.benchmarks.block_size

Medians of interleaved runs; the last line of each shape says what "auto" takes there.
"""

import statistics
import time

import jax

from lenext.attention import attend, choose_implementation, make_method
from lenext.attention.blockwise import default_block_size

SHAPES = [(64, 64), (16, 256), (4, 1024), (1, 4096), (1, 16384)]  # batch, length
HEADS, KEY_SIZE, VALUE_SIZE = 1, 64, 256
BLOCKS = (16, 32, 64, 128, 256, 512)
NAIVE_ENTRIES = 2**25  # larger rows are left to the blocks
RUNS = 7


def candidates(batch: int, length: int) -> dict[str, dict]:
    """Arguments of `attend` by the name to print."""
    found: dict[str, dict] = {}
    if batch * HEADS * length**2 <= NAIVE_ENTRIES:
        found["naive"] = {"implementation": "naive"}
    for size in BLOCKS:
        if size < length:
            found[f"block {size}"] = {"implementation": "blockwise", "block_size": size}
    return found


def main() -> None:
    """Prints a Markdown table."""
    method = make_method("softmax", train_length=64)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ms, median of {RUNS}\n")
    print("| shape [B, T, N, H], V | " + " | ".join(["naive", *map(str, BLOCKS)]) + " | auto |")
    print("|---|" + "---:|" * (len(BLOCKS) + 1) + "---|")
    for batch, length in SHAPES:
        shape = (batch, length, HEADS)
        q, k, v = (
            jax.random.normal(jax.random.key(i), (*shape, size))
            for i, size in enumerate((KEY_SIZE, KEY_SIZE, VALUE_SIZE))
        )
        times: dict[str, list[float]] = {name: [] for name in candidates(batch, length)}
        for run in range(RUNS + 1):
            for name, arguments in candidates(batch, length).items():
                start = time.perf_counter()
                attend(q, k, v, method, **arguments).block_until_ready()
                if run:  # the first compiles
                    times[name].append(time.perf_counter() - start)
        auto = choose_implementation(q.shape, length)
        if auto == "blockwise":
            auto = f"block {default_block_size(batch, HEADS, length)}"
        columns = ["naive", *(f"block {size}" for size in BLOCKS)]
        cells = (
            f"{1e3 * statistics.median(times[name]):.1f}" if name in times else ""
            for name in columns
        )
        print(f"| {[*q.shape]}, {VALUE_SIZE} | " + " | ".join(cells) + f" | {auto} |", flush=True)


if __name__ == "__main__":
    main()
