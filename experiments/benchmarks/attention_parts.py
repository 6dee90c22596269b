"""Where the time of causal attention in tiles goes, part by part, beside PyTorch's.

    python -m experiments.benchmarks.attention_parts

The same loop over tiles, with one part more each time: the products Q Kᵀ, the products P V, the
exponentials and their sums, the running maximum. Then `attend`'s own call, torch's products at the
same tiles, and torch's scaled_dot_product_attention. Forward, float32, 4 heads of 64, no positions.
Writes attention_parts.md, .json and .png under --results.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import measure
from experiments.benchmarks.attention import (
    FORWARD,
    HEAD_DIM,
    HEADS,
    SDPA,
    flops,
    inputs,
    torch_peers,
)
from experiments.benchmarks.measure import Record, milliseconds, number
from lenext.attention import attend, make_method
from lenext.attention.compute.tiles import default_tile

LENGTHS = (4096, 16384)
QUICK = (256,)
PARTS = ("Q Kᵀ", "P V", "exp and sum", "running maximum")
WHOLE, TORCH_PRODUCTS = "attend", "torch, both products"


def loop(parts: Sequence[str], tile: int, q: Any, k: Any, v: Any) -> Any:
    """Causal attention in tiles, of which only some parts are done; [N, T, H] each, T = S."""
    heads, length, _ = q.shape
    q = q / HEAD_DIM**0.5
    places = jnp.arange(tile)
    below = places[:, None] >= places[None]

    def at(x: Any, block: Any) -> Any:
        return jax.lax.dynamic_slice_in_dim(x, block * tile, tile, 1)

    def of_block(block: Any) -> Any:
        queries = at(q, block)

        def step(number: Any, carry: Any, diagonal: bool) -> Any:
            largest, total, out = carry
            values = jnp.einsum("nth,nsh->nts", queries, at(k, number))
            if "running maximum" in parts:
                values = jnp.where(below, values, -jnp.inf) if diagonal else values
                top = jnp.maximum(largest, jnp.max(values, axis=-1, keepdims=True))
                faded = jnp.exp(largest - top)
                largest, total, out = top, total * faded, out * faded
            if "exp and sum" in parts:
                values = jnp.exp(values - largest)
            # What several products or sums read is made once.
            values = jax.lax.optimization_barrier(values)
            if "exp and sum" in parts:
                total = total + jnp.sum(values, axis=-1, keepdims=True)
            if "P V" in parts:
                out = out + jnp.einsum("nts,nsh->nth", values, at(v, number))
            else:  # so that the first product is not left out
                out = out + values[..., :HEAD_DIM]
            return largest, total, out

        start = -jnp.inf if "running maximum" in parts else 0.0
        carry: Any = tuple(
            jnp.full((heads, tile, size), x)
            for x, size in ((start, 1), (float("exp and sum" not in parts), 1), (0.0, HEAD_DIM))
        )
        carry = jax.lax.fori_loop(0, block, functools.partial(step, diagonal=False), carry)
        _, total, out = step(block, carry, True)
        return out / total

    blocks = jax.lax.map(of_block, jnp.arange(length // tile))
    return jnp.moveaxis(blocks, 0, 1).reshape(heads, length, HEAD_DIM)


def torch_products(tile: int, arrays: Sequence[Any]) -> Callable[[], Any]:
    """Both products in torch, at the same tiles."""
    import torch  # pyright: ignore[reportMissingImports]

    q, k, v = (torch.from_numpy(np.array(x)) for x in arrays)
    blocks = range(0, q.shape[1], tile)

    def run() -> Any:
        outs = []
        for start in blocks:
            queries, out = q[:, start : start + tile], 0
            for first in range(0, start + tile, tile):
                products = queries @ k[:, first : first + tile].transpose(1, 2)
                out = out + products @ v[:, first : first + tile]
            outs.append(out)
        return outs

    return run


def run_length(length: int, runs: int) -> list[Record]:
    """Times all parts at a length."""
    q, k, v, gradient = inputs(length)
    tile = min(default_tile(1, HEADS, None), length)
    heads_first = [jnp.asarray(x[0].swapaxes(0, 1)) for x in (q, k, v)]
    calls: dict[str, Callable[[], Any]] = {}

    def add(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        done = measure.compiled(function, *arguments)
        calls[name] = done.bound(*arguments)

    for count in range(1, len(PARTS) + 1):
        name = PARTS[0] if count == 1 else f"+ {PARTS[count - 1]}"
        add(name, functools.partial(loop, PARTS[:count], tile), heads_first)
    method = make_method("nope", train_length=length)
    add(WHOLE, lambda q, k, v: attend(q, k, v, method, causal=True), (q, k, v))
    if not measure.why_no_torch():
        calls[TORCH_PRODUCTS] = torch_products(tile, heads_first)
        calls[SDPA] = torch_peers(FORWARD, (q, k, v, gradient))[SDPA]
    times = measure.interleaved(calls, runs)
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, SDPA)
    return [
        {
            "length": length, "tile": tile, "part": name, "seconds": seconds[name],
            "ratio": relative[name], "times": times[name],
        }
        for name in calls
    ]  # fmt: skip


def markdown(records: Sequence[Record], about: dict[str, Any]) -> list[str]:
    """A table a length."""
    lines: list[str] = []
    for length in dict.fromkeys(r["length"] for r in records):
        mine = [r for r in records if r["length"] == length]
        bound = flops(length, FORWARD) / about["gemm_gflops"]["jax"] / 1e9
        lines += [
            f"## {length:,} tokens, tiles of {mine[0]['tile']}", "",
            f"Roofline: {milliseconds(bound)} ms.", "",
        ]  # fmt: skip
        lines += measure.table(
            ["parts", "ms", f"x {SDPA}"],
            [[r["part"], milliseconds(r["seconds"]), number(r["ratio"])] for r in mine],
        )
        lines.append("")
    missing = measure.why_no_torch()
    return [
        *lines,
        *([f"- {missing}"] if missing else []),
        "- Rows with a + do all that stands above them too, so their difference is a part's cost.",
        "- Roofline: the FLOPs below the diagonal at JAX's rate for large products.",
        f'- "{TORCH_PRODUCTS}": a Python loop over the same tiles.',
    ]


def run(lengths: Sequence[int], runs: int, results: Path) -> None:
    """Measures, and writes attention_parts.md, .json and .png."""
    config = {"lengths": list(lengths), "heads": HEADS, "head_dim": HEAD_DIM}
    about = measure.describe(
        config, inputs(max(lengths)), seeds=[0], tokens=max(lengths), steps=runs
    )
    records: list[Record] = []
    for length in lengths:
        print(f"{length:,} …", flush=True)
        records += run_length(length, runs)
    bars: dict[str, dict[str, float]] = {}
    for r in records:
        bars.setdefault(f"{r['length']:,} tokens", {})[r["part"]] = 1e3 * r["seconds"]
    title = "Causal attention in tiles, part by part"
    picture = measure.draw_bars(bars, "milliseconds", title)
    measure.write(
        results, "attention_parts", title, markdown(records, about), about, records, picture
    )


def main() -> None:
    """Parses the flags, runs."""
    given = measure.parser(__doc__, runs=11).parse_args()
    run(QUICK if given.quick else LENGTHS, given.runs, given.results)


if __name__ == "__main__":
    main()
