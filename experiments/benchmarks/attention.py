"""Attention's time and memory by method, implementation and length, beside PyTorch's and JAX's own.

    python -m experiments.benchmarks.attention

Causal, float32, one sequence, 4 heads of 64. The peers compute softmax(Q Kᵀ / √H) V under a causal
mask: torch's scaled_dot_product_attention, the same written out in torch, and
jax.nn.dot_product_attention. Ours rotate queries and keys besides. Writes attention.md, .json and
.png under --results.

All methods go forward at all lengths up to 16 384, and forward and backward up to 4096. Peers that
hold complete rows go as far as 4 GB do; our own definition ("naive") does for lssar, for the others
up to 4096. Beyond 16 384 softmax and the window run once each.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, milliseconds, number
from lenext.attention import attend, make_method
from lenext.config import list_methods

HEADS, HEAD_DIM = 4, 64
TRAIN_LENGTH = 1024  # L of the methods: their windows, and where their temperatures start
METHODS = (
    "softmax", "infoscale", "lssa", "lssar", "sigmoid", "rerope", "windowed(window=1024)",
    "lm_infinite",
)  # fmt: skip
LENGTHS = (1024, 4096, 8192, 16384, 65536)
QUICK = {"methods": ("softmax", "lssar", "windowed(window=64)"), "lengths": (128, 512)}
NAIVE, BLOCKWISE, AUTO = "naive", "blockwise", "auto"

COMPLETE_LENGTH = 4096  # up to which all methods' complete rows are computed
COMPLETE_BYTES = 4e9  # that logits and weights of complete rows may take together
BACKWARD_LENGTH = 4096
REPEATED_LENGTH = 16384  # beyond it, one run of few methods
LONGEST = ("softmax", "windowed")  # methods that go there, by how their names start

SDPA, EAGER, JAX_NN = "torch SDPA", "torch eager", "jax.nn"
FORWARD, BACKWARD = "forward", "forward and backward"
SEED = 0

Arrays = tuple[Any, ...]


class Case(NamedTuple):
    """What is timed together.

    Attributes:
      direction: `FORWARD` or `BACKWARD`.
      length: T.
      ours: pairs of method and implementation.
      runs: rounds.
    """

    direction: str
    length: int
    ours: list[tuple[str, str]]
    runs: int


def plan(methods: Sequence[str], lengths: Sequence[int], runs: int) -> Iterator[Case]:
    """The cases, as the module says."""
    for direction in (FORWARD, BACKWARD):
        for length in lengths:
            if direction == BACKWARD and length > BACKWARD_LENGTH:
                continue
            if length > REPEATED_LENGTH:
                some = [(name, AUTO) for name in methods if name.startswith(LONGEST)]
                yield Case(direction, length, some, 1)
                continue
            yield Case(
                direction,
                length,
                [
                    (name, implementation)
                    for name in methods
                    for implementation in (AUTO, BLOCKWISE, NAIVE)
                    if implementation != NAIVE
                    or length <= COMPLETE_LENGTH
                    or (name == "lssar" and complete_bytes(length) <= COMPLETE_BYTES)
                ],
                runs,
            )


def complete_bytes(length: int) -> int:
    """Of float32 logits and weights of all rows: the least that the definition holds at once."""
    return 2 * 4 * HEADS * length**2


def flops(length: int, direction: str) -> int:
    """Of Q Kᵀ and P V under causality; with `BACKWARD` of their four gradients too."""
    forward = 2 * HEADS * HEAD_DIM * length**2
    return forward if direction == FORWARD else 3 * forward


def inputs(length: int) -> Arrays:
    """Queries, keys, values and the outputs' gradient, each [1, T, N, H]."""
    keys = jax.random.split(jax.random.key(SEED), 4)
    return tuple(jax.random.normal(key, (1, length, HEADS, HEAD_DIM)) for key in keys)


def ours(name: str, implementation: str) -> Callable[..., Any]:
    """(q, k, v) to the method's outputs."""
    method = make_method(name, train_length=TRAIN_LENGTH)
    return lambda q, k, v: attend(q, k, v, method, causal=True, implementation=implementation)


def jax_nn(q: Any, k: Any, v: Any) -> Any:
    """JAX's own attention."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """(q, k, v, outputs' gradient) to the outputs and the gradients of q, k and v."""

    def both(q, k, v, gradient):
        out, pull = jax.vjp(function, q, k, v)
        return out, pull(gradient)

    return both


def compile_jax(function: Callable[..., Any], direction: str, arrays: Arrays) -> measure.Compiled:
    """Compiles (q, k, v) to outputs, with gradients or without."""
    if direction == FORWARD:
        return measure.compiled(function, *arrays[:3])
    return measure.compiled(with_gradients(function), *arrays)


def torch_peers(direction: str, arrays: Arrays) -> dict[str, Callable[[], Any]]:
    """Calls of torch's two forms, on the same numbers laid out as torch wants them: [1, N, T, H].

    The one written out is left out where its rows take too much memory.
    """
    import torch  # pyright: ignore[reportMissingImports]

    q, k, v, gradient = (torch.from_numpy(np.array(x)).transpose(1, 2).contiguous() for x in arrays)
    length = q.shape[2]

    def sdpa(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def eager(q, k, v):
        logits = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
        return logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v

    def timed(function):
        def forward():
            with torch.no_grad():
                return function(q, k, v)

        def both():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            out = function(*leaves)
            return out, torch.autograd.grad(out, leaves, gradient)

        return forward if direction == FORWARD else both

    found = {SDPA: timed(sdpa)}
    if complete_bytes(length) <= COMPLETE_BYTES:
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        found[EAGER] = timed(eager)
    return found


def run_case(case: Case) -> list[Record]:
    """Compiles and times all candidates of a case, peers first."""
    arrays = inputs(case.length)
    calls: dict[str, Callable[[], Any]] = {}
    records: dict[str, Record] = {}

    def record(name: str, **figures: Any) -> None:
        records[name] = {
            "direction": case.direction, "length": case.length, "candidate": name,
            "method": None, "implementation": None, "runs": case.runs, "seconds": None,
            "ratio": None, "times": [], "compile_seconds": None, "temp_bytes": None, "note": "",
            **figures,
        }  # fmt: skip

    def add_jax(name: str, function: Callable[..., Any], **figures: Any) -> None:
        done = compile_jax(function, case.direction, arrays)
        given = arrays[:3] if case.direction == FORWARD else arrays
        calls[name] = done.bound(*given)
        record(name, compile_seconds=done.seconds, temp_bytes=done.temp_bytes, **figures)

    missing = measure.why_no_torch()
    peers = {} if missing else torch_peers(case.direction, arrays)
    too_large = f"its rows take more than {COMPLETE_BYTES / 1e9:.0f} GB"
    for name in (SDPA, EAGER):
        record(name, note="" if name in peers else missing or too_large)
    calls |= peers
    if complete_bytes(case.length) <= COMPLETE_BYTES:
        add_jax(JAX_NN, jax_nn)
    else:
        record(JAX_NN, note=too_large)
    for method, implementation in case.ours:
        add_jax(
            f"{method}, {implementation}", ours(method, implementation),
            method=method, implementation=implementation,
        )  # fmt: skip

    # A single run stands alone: a call before it would double what takes minutes.
    times = measure.interleaved(calls, case.runs, warm_up=case.runs > 1)
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, SDPA)
    for name, value in seconds.items():
        records[name] |= {"seconds": value, "ratio": relative[name], "times": times[name]}
    return list(records.values())


def memory(methods: Sequence[str], length: int) -> list[Record]:
    """What "auto" holds beside q, k, v and outputs at `length`: compiled, not run."""
    arrays = tuple(jax.ShapeDtypeStruct((1, length, HEADS, HEAD_DIM), jnp.float32) for _ in "qkvg")
    return [
        {
            "method": name, "implementation": AUTO, "length": length, "direction": direction,
            "temp_bytes": compile_jax(ours(name, AUTO), direction, arrays).temp_bytes,
        }
        for name in methods
        for direction in (FORWARD, BACKWARD)
    ]  # fmt: skip


def markdown(records: Sequence[Record], held: Sequence[Record], gemm: float) -> list[str]:
    """A table a case, and one of memory."""
    lines: list[str] = []
    cases = dict.fromkeys((r["direction"], r["length"], r["runs"]) for r in records)
    for direction, length, runs in cases:
        bound = flops(length, direction) / gemm / 1e9
        once = "; one run, not warmed up" if runs == 1 else ""
        lines += [
            f"## {direction.capitalize()} at {length:,}", "",
            f"Roofline: {milliseconds(bound)} ms{once}.", "",
        ]  # fmt: skip
        lines += measure.table(
            ["attention", "ms", f"x {SDPA}", "compile, s", "temporary, MB", ""],
            [
                [
                    r["candidate"], milliseconds(r["seconds"]), number(r["ratio"]),
                    number(r["compile_seconds"]), measure.megabytes(r["temp_bytes"]), r["note"],
                ]
                for r in records
                if (r["direction"], r["length"]) == (direction, length)
            ],
        )  # fmt: skip
        lines.append("")
    size = {(r["method"], r["direction"]): measure.megabytes(r["temp_bytes"]) for r in held}
    lines += [f'## Memory of "{AUTO}" at {held[0]["length"]:,}', ""]
    lines += measure.table(
        ["method", f"{FORWARD}, MB", f"{BACKWARD}, MB"],
        [[m, size[m, FORWARD], size[m, BACKWARD]] for m in dict.fromkeys(m for m, _ in size)],
    )
    return [
        *lines, "",
        f"- 4 heads of 64, one sequence, causal, float32; L = {TRAIN_LENGTH:,}.",
        "- Ours rotate queries and keys by position as well, the peers do not.",
        "- Roofline: the FLOPs of Q Kᵀ and P V below the diagonal (and of their gradients), at "
        "JAX's rate of products.",
        "- Temporary memory: what the compiled program holds beside its arguments and outputs.",
    ]  # fmt: skip


def picture(records: Sequence[Record], gemm: float) -> bytes:
    """Time against length: "auto" of each method, and the peers."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for r in records:
        if r["seconds"] is not None and r["implementation"] in (None, AUTO):
            curves = panels.setdefault(r["direction"], {})
            name = r["method"] or r["candidate"]
            curves.setdefault(name, []).append((r["length"], r["seconds"]))
    lengths = dict.fromkeys((r["direction"], r["length"]) for r in records)
    bounds = {
        direction: {
            "roofline": [(n, flops(n, d) / gemm / 1e9) for d, n in lengths if d == direction]
        }
        for direction in panels
    }
    labels = "length (tokens)", "seconds"
    return measure.draw(
        panels, labels, "Causal attention, 4 heads of 64, float32", reference=bounds
    )


def run(methods: Sequence[str], lengths: Sequence[int], runs: int, results: Path) -> None:
    """Measures, and writes attention.md, .json and .png."""
    config = {
        "methods": list(methods), "lengths": list(lengths), "runs": runs, "batch": 1,
        "heads": HEADS, "head_dim": HEAD_DIM, "train_length": TRAIN_LENGTH, "dtype": "float32",
    }  # fmt: skip
    longest = max(lengths)
    about = measure.describe(config, inputs(longest), seeds=[SEED], tokens=longest, steps=runs)
    records: list[Record] = []
    for case in plan(methods, lengths, runs):
        print(f"{case.direction} at {case.length:,} …", flush=True)
        records += run_case(case)
    held = memory(methods, longest)
    gemm = about["gemm_gflops"]["jax"]
    measure.write(
        results, "attention", "Attention by length", markdown(records, held, gemm),
        about | {"memory": held}, records, picture(records, gemm),
    )  # fmt: skip


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=5)
    parser.add_argument("--methods", help=f"with commas (default {','.join(METHODS)})")
    parser.add_argument("--lengths", type=measure.counts, help="with commas (default "
                        f"{','.join(map(str, LENGTHS))})")  # fmt: skip
    given = parser.parse_args()
    methods, lengths = (QUICK["methods"], QUICK["lengths"]) if given.quick else (METHODS, LENGTHS)
    run(
        list_methods(given.methods, "--methods") if given.methods else methods,
        given.lengths or lengths,
        given.runs,
        given.results,
    )


if __name__ == "__main__":
    main()
