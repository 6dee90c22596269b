"""What else XLA could be told on a CPU: its options, and how a tile's products could be laid out.

    python -m experiments.benchmarks.cpu_options

Attention of one sequence of 4096 tokens, 4 heads of 64, causal, float32, and a training step of the
tiny decoder, each compiled with other options of XLA. Then the two products of a tile, as the tiles
have them (heads before tokens, float32) and otherwise. Writes cpu_options.md, .json and .png under
--results.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import measure, training_step
from experiments.benchmarks.measure import Record, milliseconds, number
from lenext import cli
from lenext.attention import attend, make_method
from lenext.attention.compute import tiles

HEADS, HEAD_DIM, LENGTH, TRAIN_LENGTH = 4, 64, 4096, 1024
REPEATS = 20  # of a product, which takes half a millisecond, in what is timed
QUICK_LENGTH = 256
AS_IT_IS = "as it is"
YNN, ONEDNN = "xla_cpu_experimental_ynn_fusion_type", "xla_cpu_experimental_onednn_fusion_type"
DOT, ELTWISE, REDUCE = (f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "ELTWISE", "REDUCE"))
OPTIONS: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    "YNN: products fused": {YNN: DOT},
    "YNN: products, elements and sums fused": {YNN: f"{DOT},{ELTWISE},{REDUCE}"},
    "oneDNN: products fused": {ONEDNN: DOT},
    "XNNPACK": {"xla_cpu_use_xnnpack": True},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
    "no fusion emitters": {"xla_cpu_use_fusion_emitters": False},
    "fast minima and maxima": {"xla_cpu_enable_fast_min_max": True},
    "fast math (not IEEE's)": {"xla_cpu_enable_fast_math": True},
}
FORWARD, BACKWARD, TWO_STAGES, STEP = (
    "softmax, forward", "softmax, forward and backward", "lssar, forward", "a training step",
)  # fmt: skip
HEADS_FIRST = "heads before tokens, float32"
PRODUCTS = {
    HEADS_FIRST: ("bntd,bnsd->bnts", "bnts,bnsd->bntd", False, jnp.float32),
    "tokens before heads, float32": ("btnd,bsnd->bnts", "bnts,bsnd->btnd", True, jnp.float32),
    "heads before tokens, bfloat16": ("bntd,bnsd->bnts", "bnts,bnsd->bntd", False, jnp.bfloat16),
}
"""By name: how queries meet keys, and weights values; whether tokens come first; of which type."""


def jobs(length: int, quick: bool) -> dict[str, Callable[[Mapping[str, Any]], tuple[Any, str]]]:
    """By name, what compiles with given options: a call to be timed, and the program's text."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, length, HEADS, HEAD_DIM)) for i in range(3))

    def attention(name: str, *, backward: bool) -> Callable[..., tuple[Any, str]]:
        method = make_method(name, train_length=TRAIN_LENGTH)

        def out(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(q, k, v, method, causal=True, implementation="blockwise")

        def both(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            made, pull = jax.vjp(out, q, k, v)
            return made, pull(made)

        def make(options: Mapping[str, Any]) -> tuple[Any, str]:
            done = measure.compiled(both if backward else out, q, k, v, options=options)
            return done.bound(q, k, v), done.text

        return make

    config = training_step.configs(quick)["tiny decoder"]
    batch = training_step.make_batch(config)

    def step(options: Mapping[str, Any]) -> tuple[Any, str]:
        stepper = training_step.our_stepper(config, batch, options=options)
        return stepper.step, stepper.text

    return {
        FORWARD: attention("softmax", backward=False),
        BACKWARD: attention("softmax", backward=True),
        TWO_STAGES: attention("lssar", backward=False),
        STEP: step,
    }


def of_options(length: int, runs: int, quick: bool) -> list[Record]:
    """A record for each job and each set of options: seconds, and whether operations are others."""
    records = []
    for name, make in jobs(length, quick).items():
        made = {option: make(given) for option, given in OPTIONS.items()}
        seconds = measure.medians(
            measure.interleaved({option: call for option, (call, _) in made.items()}, runs)
        )
        ratios = measure.ratios(seconds, AS_IT_IS)
        plain = _digest(made[AS_IT_IS][1])
        records += [
            {
                "what": name, "option": option, "seconds": seconds[option],
                "ratio": ratios[option], "same": _digest(text) == plain,
            }
            for option, (_, text) in made.items()
        ]  # fmt: skip
        print(f"{name} done", flush=True)
    return records


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def of_products(length: int, runs: int) -> list[Record]:
    """A record for each way to multiply the tiles of one block of queries, all keys."""
    size = min(length, tiles.default_tile(1, HEADS, None))
    rng, records = np.random.default_rng(0), []
    calls: dict[str, dict[str, Any]] = {"queries by keys": {}, "weights by values": {}}
    for name, (logits, out, tokens_first, dtype) in PRODUCTS.items():
        shape = (1, size, HEADS, HEAD_DIM) if tokens_first else (1, HEADS, size, HEAD_DIM)
        q, k = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
        weights = jnp.asarray(rng.uniform(size=(1, HEADS, size, size)), dtype)
        for what, form, given in (
            ("queries by keys", logits, (q, k)), ("weights by values", out, (weights, k)),
        ):  # fmt: skip

            def product(x: jax.Array, y: jax.Array, form: str = form) -> jax.Array:
                return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)

            call = measure.compiled(product, *given).bound(*given)
            calls[what][name] = functools.partial(_repeat, call)
    for what, some in calls.items():
        medians = measure.medians(measure.interleaved(some, runs))
        seconds = {name: value / REPEATS for name, value in medians.items()}
        ratios = measure.ratios(seconds, HEADS_FIRST)
        records += [
            {"what": what, "option": name, "seconds": seconds[name], "ratio": ratios[name]}
            for name in some
        ]
    return records


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(REPEATS):
        call()


def markdown(records: list[Record], headings: tuple[str, ...], first: str) -> list[str]:
    """A row for each option: milliseconds, and how many times as long as without it."""
    found = {(r["option"], r["what"]): r for r in records}

    def cell(record: Record) -> str:
        same = " =" if record.get("same") and record["option"] != AS_IT_IS else ""
        return f"{milliseconds(record['seconds'])} ({number(record['ratio'])}){same}"

    rows = [
        [option, *(cell(found[option, what]) for what in headings)]
        for option in dict.fromkeys(option for option, _ in found)
    ]
    return [*measure.table([first, *headings], rows), ""]


def run(results: Path, runs: int, *, quick: bool) -> None:
    """Measures, and writes cpu_options.md, .json and .png."""
    length = QUICK_LENGTH if quick else LENGTH
    shape = {"tokens": length, "heads": HEADS, "head_dim": HEAD_DIM, "options": OPTIONS}
    about = measure.describe(shape, [], seeds=[0], tokens=length, steps=runs)
    options, products = of_options(length, runs, quick), of_products(length, runs)
    whats = (FORWARD, BACKWARD, TWO_STAGES, STEP)
    title = "What else XLA could be told on a CPU"
    lines = [
        f"Milliseconds, and in brackets how many times as long as with none; {length:,} tokens. "
        "=: compiled to the same operations, of which code may still be made otherwise.", "",
        *markdown(options, whats, "options"),
        "Of a tile, its products as `attend` has them, and otherwise:", "",
        *markdown(products, ("queries by keys", "weights by values"), "products"),
    ]  # fmt: skip
    bars = {what: {r["option"]: r["ratio"] for r in options if r["what"] == what} for what in whats}
    picture = measure.draw_bars(bars, "times as long", title)
    measure.write(results, "cpu_options", title, lines, about, [*options, *products], picture)


def main() -> None:
    """Parses the flags, runs."""
    given = measure.parser(__doc__, runs=7).parse_args()
    jax.config.update("jax_platforms", "cpu")
    run(given.results, given.runs, quick=given.quick)


if __name__ == "__main__":
    cli.guard(__doc__ or "", main, interrupted="interrupted; nothing was written")
