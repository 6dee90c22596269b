"""Length x method over the same weights."""

import dataclasses
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from lenext.attention import AnyMethod
from lenext.config import Config
from lenext.config.checks import check_choices, check_least, check_seed
from lenext.evaluation.answers import Asking, answer_metrics, make_asking, run_asking
from lenext.evaluation.figures import Figures, Pass, make_pass, run_pass
from lenext.evaluation.metrics import by_head, metrics_of
from lenext.evaluation.protocols import Prompts, Sequences, read_tasks
from lenext.models import Model, cache_bytes, forward_flops, unsuited
from lenext.parallel.memory import Needs, check_fits, free_bytes, said
from lenext.parallel.processes import is_first
from lenext.reporting.records import Cell


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sweep; what each means stands in `lenext.config.base_config`, section `eval`.

    Attributes:
      protocol: by which the sequences were prepared.
      byte_level: tokens are bytes.
    """

    protocol: str
    byte_level: bool
    batch_tokens: int
    bucket: float
    probe_rows: int


def check_eval(config: Config) -> None:
    """Checks the section `eval`, but for its methods, lengths and protocol, which the run decides.

    Raises:
      UserError: naming the first key that is off.
    """
    check_choices(config, "eval", weights=("params", "ema"))
    check_least(
        config, "eval", 1, "documents", "tokens", "batch_tokens", "bucket", "probe_rows",
        "bootstrap", "masks", "stride", "needles", "calibration_documents", "calibration_tokens",
    )  # fmt: skip
    check_least(config, "eval", 0, "margin", "far_margin")
    check_seed(config.seed, "eval.seed")
    read_tasks(config.tasks)


def bucket_shapes(
    sequences_by_length: Mapping[int, Sequences], ratio: float
) -> dict[int, tuple[int, int]]:
    """Tokens and predictions to which sequences are filled up, for lengths that share a bucket.

    A bucket holds a longest length and those of more than its `ratio`-th part. A length alone in
    its bucket is left out.
    """
    shapes: dict[int, tuple[int, int]] = {}
    left = sorted(sequences_by_length, reverse=True)
    while left:
        bucket = [length for length in left if length == left[0] or length * ratio > left[0]]
        left = left[len(bucket) :]
        if len(bucket) > 1:
            targets = (sequences_by_length[length].batch["targets"] for length in bucket)
            shape = bucket[0], max(x.shape[1] for x in targets)
            shapes |= dict.fromkeys(bucket, shape)
    return shapes


def even_shapes(
    sequences_by_length: Mapping[int, Sequences], shapes: Mapping[int, tuple[int, int]], parts: int
) -> dict[int, tuple[int, int]]:
    """The shapes of `bucket_shapes`, and of lengths that `parts` does not divide, made even."""
    even = {}
    for length, sequences in sequences_by_length.items():
        predictions = sequences.batch["targets"].shape[1]
        tokens, wanted = shapes.get(length, (length, predictions))
        filled = parts * -(-tokens // parts)
        if length in shapes or filled != length:
            # A causal model predicts at every token.
            even[length] = filled, filled if predictions == length else wanted
    return even


def sweep(
    models: Mapping[str, Model],
    trained: Sequence[AnyMethod],
    sequences_by_length: Mapping[int, Sequences | Prompts],
    settings: Settings,
    mesh: Mesh | None = None,
    *,
    wanted: Container[tuple[str, int]] | None = None,
    keep: Callable[[str, Cell], None] = lambda name, cell: None,
    source: Mapping[str, Any] = {},
) -> dict[tuple[str, int], Cell]:
    """Measures a model under every method at every length.

    Args:
      models: the same weights under each method, by the name to report.
      trained: the methods that the weights were trained under: what they suit.
      sequences_by_length: from a protocol of `lenext.evaluation.protocols`, by length.
      settings: see `Settings`.
      mesh: over which each pass is split; None for one device. All of its processes sweep together
        and find the same.
      wanted: names and lengths to measure; default: all.
      keep: is given each cell, with the name of its method, once it is done.
      source: where it is measured, for the cells' provenance.

    Returns:
      What was measured, by name and length. Lengths go one after the other, as they are given.
    """
    rows = {n: x for n, x in sequences_by_length.items() if isinstance(x, Sequences)}
    shapes = bucket_shapes(rows, settings.bucket)
    if mesh is not None:
        shapes = even_shapes(rows, shapes, mesh.shape["sequence"])
    flops = {
        (name, length): forward_flops(model, length, _predictions(sequences))
        for length, sequences in sequences_by_length.items()
        for name, model in models.items()
        if wanted is None or (name, length) in wanted
    }
    if not flops:
        return {}

    def compiled(name: str, length: int) -> Pass | Asking:
        shape, sequences = shapes.get(length), sequences_by_length[length]
        batch_size = max(1, settings.batch_tokens // (shape[0] if shape else length))
        if isinstance(sequences, Prompts):
            return make_asking(models[name], sequences, batch_size=batch_size)
        graphdef, params = nnx.split(models[name])
        return make_pass(
            graphdef,
            nnx.to_pure_dict(params),
            sequences.batch,
            batch_size=batch_size,
            probe_rows=settings.probe_rows,
            pad_to=shape,
            mesh=mesh,
        )

    found: dict[tuple[str, int], Cell] = {}
    # In operations, which take about as long at every length: so the time left can be told.
    bar = tqdm(
        total=sum(flops[cell] * len(sequences_by_length[cell[1]].document) for cell in flops),
        mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        disable=not is_first(),
    )  # fmt: skip
    with bar:
        bar.set_postfix_str("compiling the longest", refresh=False)
        longest = max(length for _, length in flops)
        ahead = {name: compiled(name, longest) for name, length in flops if length == longest}
        _check_memory({name: one.needs for name, one in ahead.items()}, longest, bar, mesh)
        for number, (name, length) in enumerate(flops, 1):
            where = f"{name} at {length} ({number} of {len(flops)})"
            bar.set_postfix_str(where, refresh=False)
            one = ahead.pop(name) if length == longest else compiled(name, length)
            found[name, length] = _measure(
                models[name], trained, sequences_by_length[length], settings, one,
                flops[name, length], source, bar,
            )  # fmt: skip
            keep(name, found[name, length])
    return found


def _predictions(sequences: Sequences | Prompts) -> int:
    """At how many tokens of a row logits are made, those that are drawn included."""
    if isinstance(sequences, Prompts):
        return sequences.draw
    return sequences.batch["targets"].shape[1]


def _measure(
    model: Model,
    trained: Sequence[AnyMethod],
    sequences: Sequences | Prompts,
    settings: Settings,
    one: Pass | Asking,
    flops: float,
    source: Mapping[str, Any],
    bar: tqdm,
) -> Cell:
    """Runs what is compiled over all of its sequences."""
    rows, length = sequences.batch["tokens"].shape
    if isinstance(sequences, Prompts):
        length = sequences.length
    where, start, done = bar.postfix, time.perf_counter(), 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows * length
        rate = done / (time.perf_counter() - start)
        bar.set_postfix_str(f"{where}, {rate:,.0f} tokens/s", refresh=False)
        bar.update(rows * flops)

    figures: Figures | None = None
    if isinstance(sequences, Prompts):
        assert isinstance(one, Asking)
        answered, cost = run_asking(one, tick)
        metrics = answer_metrics(answered, sequences)
    else:
        assert isinstance(one, Pass)
        figures, cost = run_pass(one, tick)
        metrics = metrics_of(
            figures,
            sequences.document,
            causal=model.objective == "causal_lm",
            by_position=sequences.ordered,
            byte_level=settings.byte_level,
            answers=sequences.answers,
            far=sequences.far,
        )
    counts = [m.denominator if figures is None or m.counted else figures.weights for m in metrics]
    return Cell(
        length=length,
        protocol=settings.protocol,
        documents=np.unique(sequences.document).tolist(),
        sequences=rows,
        tokens=rows * length,
        **cost._asdict(),
        flops=flops,
        cache_bytes=cache_bytes(model, length),
        unsuited=unsuited(model, trained),
        sums=[
            {
                "metric": metric.name,
                "positions": metric.positions and list(metric.positions),
                "predictions": int(np.sum(count)),
                "numerator": metric.numerator.tolist(),
                "denominator": metric.denominator.tolist(),
            }
            for metric, count in zip(metrics, counts, strict=True)
        ],
        heads=by_head(figures.heads) if figures and figures.heads else [],
        provenance=dict(source),
    )


def _check_memory(needs: Mapping[str, Needs], length: int, bar: tqdm, mesh: Mesh | None) -> None:
    """Says what passes at the longest length want of each device's memory.

    Raises:
      UserError: one wants more than is free.
    """
    name = max(needs, key=lambda name: needs[name].beside)
    weights, beside = needs[name]
    what = f"{name} at {length} wants {said(beside)} beside {said(weights)} of weights and tokens"
    if is_first():
        bar.write(f"memory: at most, {what}, on each device, of {said(free_bytes(mesh))} free")
    check_fits(
        beside, what, "a smaller config.eval.batch_tokens, or a shorter longest length in "
        "config.eval.lengths takes less", mesh,
    )  # fmt: skip
