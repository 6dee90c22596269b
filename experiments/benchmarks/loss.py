"""Time and memory of the loss and its gradient: all logits at once, by chunks, and PyTorch's.

    python -m experiments.benchmarks.loss

Medians of interleaved runs. Memory is what the compiled program takes beside its inputs:
temporaries and outputs, which are mostly the gradients. "auto" is the chunk taken by default; a
dash stands where there is nothing to cut. PyTorch: F.cross_entropy on all logits, time only.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lenext.models.cross_entropy import cross_entropy, default_chunk
from lenext.models.layers import Head

WIDTH = 512
SHAPES = [(256, 4096), (256, 32768), (8192, 4096), (50_000, 512), (50_000, 2048)]  # V, tokens
COMPILED_ONLY = [(50_000, 8192)]  # too slow to run on two cores
CHUNKS = (2048, 8192)
RUNS = 5


def compiled(size: int, tokens: int, chunk: int) -> Any:
    """Value and gradient of the mean loss, with a z-loss as in training."""

    def objective(hidden, matrix, targets):
        figures = cross_entropy(hidden[None], Head(matrix, None, "vd"), targets[None], chunk=chunk)
        return jnp.mean(figures.loss + 1e-4 * jnp.square(figures.log_z))

    shapes = [((tokens, WIDTH), "float32"), ((size, WIDTH), "float32"), ((tokens,), "int32")]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1))).lower(*arguments).compile()


def torch_loss(hidden: np.ndarray, matrix: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    """The same in PyTorch, z-loss left out."""
    import torch  # pyright: ignore[reportMissingImports]

    states, table = (torch.tensor(x, requires_grad=True) for x in (hidden, matrix))
    right = torch.tensor(targets, dtype=torch.int64)

    def run():
        logits = states @ table.T
        return torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits, right), (states, table)
        )

    return run


def has_torch() -> bool:
    """Whether there is a PyTorch to compare with."""
    try:
        import torch  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def measure(size: int, tokens: int, programs: dict[str, Any], peer: bool) -> dict[str, float]:
    """Median milliseconds by name."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(tokens, WIDTH)).astype(np.float32)
    matrix = 0.05 * rng.normal(size=(size, WIDTH)).astype(np.float32)
    targets = rng.integers(size, size=tokens).astype(np.int32)
    arrays = [jax.device_put(x) for x in (hidden, matrix, targets)]

    def call(program: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(*arrays))

    calls = {name: call(program) for name, program in programs.items()}
    if peer:
        calls["PyTorch"] = torch_loss(hidden, matrix, targets)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(RUNS + 1):
        for name, step in calls.items():
            start = time.perf_counter()
            step()
            if run:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(x) for name, x in times.items()}


def main() -> None:
    """Prints a Markdown table."""
    peer = has_torch()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ms, median of {RUNS}, and MB")
    if not peer:
        print("PyTorch is not installed: no comparison with it")
    columns = ["plain", *(f"chunk {chunk}" for chunk in CHUNKS), "auto"]
    print("\n| V, tokens | " + " | ".join(columns) + " | PyTorch | auto takes |")
    print("|---|" + "---:|" * (len(columns) + 2))
    for size, tokens in SHAPES + COMPILED_ONLY:
        auto = default_chunk(tokens)
        chunks = {"plain": size, "auto": auto} | {f"chunk {chunk}": chunk for chunk in CHUNKS}
        programs = {
            name: compiled(size, tokens, chunk)
            for name, chunk in chunks.items()
            if chunk < size or name == "plain"
        }
        times: dict[str, float] = {}
        if (size, tokens) in SHAPES:
            times = measure(size, tokens, programs, peer)

        def cell(name: str, programs=programs, times=times) -> str:
            if name not in programs:
                return "–"
            analysis = programs[name].memory_analysis()
            held = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6
            return f"{times[name]:.0f} ms, {held:.0f} MB" if times else f"{held:.0f} MB"

        cells = [*map(cell, columns), f"{times['PyTorch']:.0f} ms" if "PyTorch" in times else ""]
        taken = str(auto) if auto < size else "all"
        print(f"| {size}, {tokens} | " + " | ".join(cells) + f" | {taken} |", flush=True)


if __name__ == "__main__":
    main()
