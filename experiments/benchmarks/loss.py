"""Time and memory of the loss and its gradient: all logits at once, by chunks, and PyTorch's.

    python -m experiments.benchmarks.loss

Mean cross-entropy and a z-loss of float32 states through one matrix, forward and backward. "auto"
takes the chunk that `lenext.models` takes; where that is the whole vocabulary there is nothing to
cut. PyTorch's is F.cross_entropy on all logits, without the z-loss. Writes loss.md, .json and .png
under --results.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, megabytes, milliseconds, number
from lenext.models.cross_entropy import cross_entropy, default_chunk
from lenext.models.parts import Head

WIDTH = 512
SHAPES = ((256, 4096), (256, 32_768), (8192, 4096), (50_000, 512), (50_000, 2048))  # V, tokens
COMPILED_ONLY = ((50_000, 8192),)  # too slow to run many times on two cores
QUICK = ((256, 512), (8192, 512))
CHUNKS = (2048, 8192)
PLAIN, AUTO, TORCH = "all at once", "auto", "torch"
SEED = 0


def arrays(size: int, tokens: int) -> tuple[np.ndarray, ...]:
    """States, matrix and targets."""
    rng = np.random.default_rng(SEED)
    hidden = rng.normal(size=(tokens, WIDTH)).astype(np.float32)
    matrix = 0.05 * rng.normal(size=(size, WIDTH)).astype(np.float32)
    return hidden, matrix, rng.integers(size, size=tokens).astype(np.int32)


def loss(chunk: int, hidden: Any, matrix: Any, targets: Any) -> Any:
    """The mean loss with a z-loss, as in training."""
    figures = cross_entropy(hidden[None], Head(matrix, None, "vd"), targets[None], chunk=chunk)
    return jnp.mean(figures.loss + 1e-4 * jnp.square(figures.log_z))


def torch_loss(hidden: np.ndarray, matrix: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    """A call of the same in PyTorch, z-loss left out."""
    import torch  # pyright: ignore[reportMissingImports]

    states, table = (torch.tensor(x, requires_grad=True) for x in (hidden, matrix))
    right = torch.tensor(targets, dtype=torch.int64)

    def run():
        mean = torch.nn.functional.cross_entropy(states @ table.T, right)
        return mean, torch.autograd.grad(mean, (states, table))

    return run


def chunks(size: int, tokens: int) -> dict[str, int]:
    """How many of the vocabulary at a time, by candidate: those that cut it, and all."""
    wanted = {f"chunks of {chunk}": chunk for chunk in CHUNKS} | {AUTO: default_chunk(tokens)}
    return {PLAIN: size} | {name: chunk for name, chunk in wanted.items() if chunk < size}


def run_shape(size: int, tokens: int, runs: int) -> list[Record]:
    """Compiles all candidates at a shape, and times them if `runs`."""
    given = arrays(size, tokens)
    records: dict[str, Record] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, chunk in chunks(size, tokens).items():
        both = jax.value_and_grad(functools.partial(loss, chunk), argnums=(0, 1))
        done = measure.compiled(both, *map(jnp.asarray, given))
        calls[name] = done.bound(*map(jnp.asarray, given))
        held = done.peak_bytes - sum(x.nbytes for x in given)
        records[name] = {"chunk": chunk, "held_bytes": held, "compile_seconds": done.seconds}
    missing = measure.why_no_torch()
    records[TORCH] = {"chunk": None, "held_bytes": None, "compile_seconds": None, "note": missing}
    if not missing:
        calls[TORCH] = torch_loss(*given)
    times = measure.interleaved(calls, runs) if runs else {}
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, TORCH)
    return [
        {
            "vocabulary": size, "tokens": tokens, "candidate": name, "note": "",
            "seconds": seconds.get(name), "ratio": relative.get(name), "times": times.get(name, []),
        } | record
        for name, record in records.items()
    ]  # fmt: skip


def markdown(records: Sequence[Record]) -> list[str]:
    """One table."""
    headings = ["V", "tokens", "loss", "chunk", "ms", f"x {TORCH}", "held, MB", "compile, s", ""]
    lines = measure.table(
        headings,
        [
            [
                f"{r['vocabulary']:,}", f"{r['tokens']:,}", r["candidate"],
                number(r["chunk"]), milliseconds(r["seconds"]), number(r["ratio"]),
                megabytes(r["held_bytes"]), number(r["compile_seconds"]), r["note"],
            ]
            for r in records
        ],
        names=3,
    )  # fmt: skip
    return [
        *lines,
        "",
        f"- Width {WIDTH}, float32; forward and backward; PyTorch's without the z-loss.",
        "- Held: what the compiled program takes beside its inputs, the gradients included.",
        "- No time: compiled, not run.",
    ]


def run(
    shapes: Sequence[tuple[int, int]],
    compiled_only: Sequence[tuple[int, int]],
    runs: int,
    results: Path,
) -> None:
    """Measures, and writes loss.md, .json and .png."""
    config = {"shapes": list(shapes), "compiled_only": list(compiled_only), "width": WIDTH}
    about = measure.describe(
        config, [arrays(*shape) for shape in shapes], seeds=[SEED],
        tokens=max(tokens for _, tokens in shapes), steps=runs,
    )  # fmt: skip
    records: list[Record] = []
    for shape in (*shapes, *compiled_only):
        print(f"{shape[1]:,} tokens of {shape[0]:,} …", flush=True)
        records += run_shape(*shape, runs if shape in shapes else 0)
    bars: dict[str, dict[str, float]] = {}
    for r in records:
        if r["seconds"] is not None:
            panel = bars.setdefault(f"V = {r['vocabulary']:,}, {r['tokens']:,} tokens", {})
            panel[r["candidate"]] = 1e3 * r["seconds"]
    title = "Cross-entropy and its gradient"
    picture = measure.draw_bars(bars, "milliseconds", title)
    measure.write(results, "loss", title, markdown(records), about, records, picture)


def main() -> None:
    """Parses the flags, runs."""
    given = measure.parser(__doc__, runs=5).parse_args()
    shapes, compiled_only = (QUICK, ()) if given.quick else (SHAPES, COMPILED_ONLY)
    run(shapes, compiled_only, given.runs, given.results)


if __name__ == "__main__":
    main()
