"""A training step of our models, beside the same networks written in PyTorch.

    python -m experiments.benchmarks.training_step

Forward, backward, clipping and AdamW at a constant rate, of the tiny decoder and of the small GAU
with softmax, at their configs' batch and length. The torch networks (`torch_models`) start from
copies of our weights and train on the same tokens, eager and through torch.compile. Before anything
is timed, all take three steps, and their losses must agree. Where the environment asks for huge
pages, as the Makefile has it, our step is timed without them as well. Writes training_step.md,
.json and .png under --results.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from configs import decoder, gau_alpha
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Record, milliseconds, number
from lenext.config import Config, plain, read_methods
from lenext.data import ByteTokenizer, mask_tokens
from lenext.models import FAMILIES, Model, build_model, kinds_of, named_parameters
from lenext.parallel.memory import MALLOC, TUNABLE
from lenext.training.optimizer import make_optimizer
from lenext.training.step import init_state, make_train_step

OURS, EAGER, COMPILED = "lenext", "torch eager", "torch.compile"
SMALL_PAGES = "lenext, pages of 4 kB"
DISABLE_THP = 41  # of prctl(2): PR_SET_THP_DISABLE
STEPS = 3  # before the losses are compared again
TOLERANCE = 1e-4  # of losses, in nats
QUICK_BATCH = 4


class ParityError(RuntimeError):
    """The twins do not compute the same: their times would say nothing."""


class Stepper(NamedTuple):
    """One way to train.

    Attributes:
      step: takes a step and gives the loss before it.
      compile_seconds: compilation, where it is known before the first step.
      text: the compiled program, where it is known.
    """

    step: Callable[[], float]
    compile_seconds: float | None
    text: str = ""


def configs(quick: bool) -> dict[str, Config]:
    """What is trained, by name."""
    found = {"tiny decoder": decoder.get_config("tiny"), "small GAU": gau_alpha.get_config("small")}
    for config in found.values():
        if quick:
            config.data.batch_size = QUICK_BATCH
    return found


def make_model(config: Config) -> Model:
    """Freshly initialised."""
    methods = read_methods(config.model.method, config.data.train_length)
    return build_model(config.model, methods, ByteTokenizer().vocab_size, config.seed)


def make_batch(config: Config) -> dict[str, np.ndarray]:
    """Random bytes: what they say makes no step longer or shorter."""
    rng = np.random.default_rng(config.seed)
    size, length = config.data.batch_size, config.data.train_length
    tokens = rng.integers(256, size=(size, length + 1), dtype=np.int32)
    if FAMILIES[config.model.family].objective == "causal_lm":
        ones = np.ones((size, length), np.float32)
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones}
    tokenizer = ByteTokenizer()
    rows = [mask_tokens(row, rng, tokenizer, config.data.mask_rate) for row in tokens[:, :-1]]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def our_stepper(
    config: Config, batch: Mapping[str, np.ndarray], options: Mapping[str, Any] | None = None
) -> Stepper:
    """Of `lenext.training`, whose steps give accuracy and the gradient's norm as well.

    `options` are XLA's.
    """
    model = make_model(config)
    rate = optax.constant_schedule(config.optimizer.learning_rate)
    optimizer = make_optimizer(config.optimizer, rate, kinds_of(model))
    train_step = make_train_step(nnx.graphdef(model), optimizer, seed=config.seed, dropout=False)
    state = init_state(model, optimizer)
    arrays = jax.tree.map(jax.numpy.asarray, dict(batch))
    done = measure.compiled(train_step, state, arrays, np.int32(1), options=options)

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(done.call(state, arrays, np.int32(1)))
        return float(metrics["loss"])

    return Stepper(step, done.seconds, done.text)


def torch_stepper(config: Config, batch: Mapping[str, np.ndarray], *, compiled: bool) -> Stepper:
    """Of the twin, from our initial weights. With `compiled` the first step compiles."""
    from experiments.benchmarks.torch_models import make_step, twin

    params = named_parameters(make_model(config))
    model = twin(config, ByteTokenizer().vocab_size, params)
    return Stepper(make_step(model, config.optimizer, dict(batch), compiled=compiled), None)


def check_parity(ours: Sequence[float], theirs: Sequence[float], name: str) -> None:
    """Losses before the first step and after `STEPS` must agree.

    Raises:
      ParityError: they do not.
    """
    for step in (0, STEPS):
        if not abs(ours[step] - theirs[step]) <= TOLERANCE:
            raise ParityError(
                f"{name}: loss {theirs[step]:.6f} after {step} steps, ours {ours[step]:.6f}; they "
                f"should agree to {TOLERANCE}"
            )


def run_model(name: str, config: Config, runs: int) -> list[Record]:
    """Compares losses, then times, of one network."""
    batch = make_batch(config)
    tokens = batch["tokens"].size
    candidates = [OURS, EAGER, COMPILED]
    if sys.platform == "linux" and TUNABLE in os.getenv(MALLOC, ""):
        candidates.append(SMALL_PAGES)
    records: dict[str, Record] = {
        candidate: {
            "model": name, "candidate": candidate, "tokens": tokens, "seconds": None,
            "ratio": None, "times": [], "compile_seconds": None, "losses": [], "note": "",
        }
        for candidate in candidates
    }  # fmt: skip
    missing = measure.why_no_torch()
    steppers: dict[str, Stepper] = {}
    for candidate, record in records.items():
        if candidate == OURS:
            stepper = our_stepper(config, batch)
        elif candidate == SMALL_PAGES:
            continue  # the same program
        elif missing:
            record["note"] = missing
            continue
        else:
            stepper = torch_stepper(config, batch, compiled=candidate == COMPILED)
        try:
            first = measure.seconds_of(lambda: record["losses"].append(stepper.step()))  # noqa: B023
        except Exception as error:
            if candidate != COMPILED:
                raise
            # Its backend wants a C++ compiler, and says so in errors of many kinds.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            record["note"] = f"does not compile: {lines[0] if lines else type(error).__name__}"
            continue
        record["losses"] += [stepper.step() for _ in range(STEPS)]
        check_parity(records[OURS]["losses"], record["losses"], f"{name}, {candidate}")
        record["compile_seconds"] = stepper.compile_seconds
        record["first_seconds"] = first
        steppers[candidate] = stepper
    calls: dict[str, Callable[[], Any]] = {name: own.step for name, own in steppers.items()}
    if SMALL_PAGES in records:
        records[SMALL_PAGES] |= {"losses": records[OURS]["losses"]}
        calls[SMALL_PAGES] = functools.partial(in_small_pages, steppers[OURS].step)
    times = measure.interleaved(calls, runs)
    seconds = measure.medians(times)
    relative = measure.ratios(seconds, EAGER)
    for candidate, value in seconds.items():
        record = records[candidate]
        record |= {"seconds": value, "ratio": relative[candidate], "times": times[candidate]}
        if candidate == COMPILED:
            record["compile_seconds"] = record["first_seconds"] - value
    return list(records.values())


def in_small_pages(call: Callable[[], Any]) -> None:
    """Linux hands this process no huge page meanwhile, whatever was asked for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(DISABLE_THP, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
    try:
        call()
    finally:
        libc.prctl(DISABLE_THP, 0, 0, 0, 0)


def matrix_flops(config: Config) -> int:
    """Of a step, by the layers' matrices alone: 6 a parameter and token. The least it can take."""
    layers = nnx.to_pure_dict(nnx.state(make_model(config)))["layers"]
    count = sum(x.size for x in jax.tree.leaves(layers) if x.ndim == 3)  # stacked
    return 6 * count * config.data.batch_size * config.data.train_length


def markdown(records: Sequence[Record], models: Mapping[str, Config], gemm: float) -> list[str]:
    """A table a network."""
    lines: list[str] = []
    for name, config in models.items():
        mine = [r for r in records if r["model"] == name]
        bound = matrix_flops(config) / gemm / 1e9
        lines += [
            f"## {name}: {config.data.batch_size} sequences of {config.data.train_length}", "",
            f"Roofline: {milliseconds(bound)} ms, for the layers' matrices alone.", "",
        ]  # fmt: skip
        lines += measure.table(
            ["step", "ms", f"x {EAGER}", "tokens/s", "compile, s", "loss at first",
             f"after {STEPS} steps", ""],
            [
                [
                    r["candidate"], milliseconds(r["seconds"]), number(r["ratio"]),
                    number(r["seconds"] and r["tokens"] / r["seconds"]),
                    number(r["compile_seconds"]),
                    *(f"{r['losses'][i]:.6f}" if r["losses"] else "–" for i in (0, STEPS)),
                    r["note"],
                ]
                for r in mine
            ],
        )  # fmt: skip
        lines.append("")
    notes = [
        "- A step: forward, backward, clipping by the norm, AdamW; float32; random bytes.",
        f"- Losses of all must agree with ours to {TOLERANCE}, or nothing is written.",
        "- torch.compile: forward and backward; its compilation is its first step less the median.",
    ]
    if any(r["candidate"] == SMALL_PAGES for r in records):
        kept = "ours once more, while `prctl` keeps huge pages from the process"
        notes.append(f"- {SMALL_PAGES}: {kept}.")
    return [*lines, *notes]


def run(models: Mapping[str, Config], runs: int, results: Path) -> None:
    """Measures, and writes training_step.md, .json and .png."""
    batches = {name: make_batch(config) for name, config in models.items()}
    about = measure.describe(
        {name: plain(config) for name, config in models.items()},
        batches,
        seeds=sorted({config.seed for config in models.values()}),
        tokens=max(batch["tokens"].size for batch in batches.values()),
        steps=runs,
    )
    records: list[Record] = []
    for name, config in models.items():
        print(f"{name} …", flush=True)
        records += run_model(name, config, runs)
    bars: dict[str, dict[str, float]] = {name: {} for name in models}
    for r in records:
        if r["seconds"] is not None:
            bars[r["model"]][r["candidate"]] = 1e3 * r["seconds"]
    title = "A training step"
    measure.write(
        results, "training_step", title, markdown(records, models, about["gemm_gflops"]["jax"]),
        about, records, measure.draw_bars(bars, "milliseconds", title),
    )  # fmt: skip


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=11)
    given = parser.parse_args()
    # Read when torch is imported: else a second run would find what the first compiled.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    run(configs(given.quick), given.runs, given.results)


if __name__ == "__main__":
    main()
