"""Length x method over the same weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from lenext.attention import Method
from lenext.config import Config
from lenext.config.checks import check_choices, check_least, check_seed
from lenext.evaluation.figures import Pass, make_pass, run_pass
from lenext.evaluation.metrics import Estimate, by_head, metrics_of
from lenext.evaluation.protocols import Sequences
from lenext.models import Model, unsuited
from lenext.parallel.memory import Needs, check_fits, free_bytes, said
from lenext.parallel.processes import is_first
from lenext.reporting.bootstrap import resample


class Sweep(NamedTuple):
    """What a sweep found.

    Attributes:
      records: one a method, length and metric (and position bucket, "positions", where the metric
        is "loss_by_position").
      heads: one a method, length, layer and head: how it attends, see `metrics.by_head`.
      sums: one a record: what its figure is the ratio of, by document, so that several runs on the
        same documents can be taken together.
    """

    records: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    sums: list[dict[str, Any]]


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
    bootstrap: int
    seed: int


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
    check_seed(config.seed, "eval.seed")


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
    trained: Sequence[Method],
    sequences_by_length: Mapping[int, Sequences],
    settings: Settings,
    mesh: Mesh | None = None,
) -> Sweep:
    """Evaluates a model under every method at every length.

    Args:
      models: the same weights under each method, by the name to report. Differences are to the
        first.
      trained: the methods that the weights were trained under: what they suit.
      sequences_by_length: from a protocol of `lenext.evaluation.protocols`, by length.
      settings: see `Settings`.
      mesh: over which each pass is split; None for one device. All of its processes sweep together
        and find the same.

    Returns:
      Records whose intervals are 95 %, by bootstrap over documents; None where one document alone
      counts. "difference" is to the first method, paired on the same documents and masks.
      "unsuited" lists the axes in which the method wants weights trained for it and these were not.
    """
    records, heads, sums = [], [], []
    total = len(models) * len(sequences_by_length)
    shapes = bucket_shapes(sequences_by_length, settings.bucket)
    if mesh is not None:
        shapes = even_shapes(sequences_by_length, shapes, mesh.shape["sequence"])

    def compiled(name: str, length: int) -> Pass:
        graphdef, params = nnx.split(models[name])
        shape = shapes.get(length)
        return make_pass(
            graphdef,
            nnx.to_pure_dict(params),
            sequences_by_length[length].batch,
            batch_size=max(1, settings.batch_tokens // (shape[0] if shape else length)),
            probe_rows=settings.probe_rows,
            pad_to=shape,
            mesh=mesh,
        )

    with tqdm(total=total, unit="cell", dynamic_ncols=True, disable=not is_first()) as bar:
        bar.set_postfix_str("compiling the longest", refresh=False)
        longest = max(sequences_by_length)
        ahead = {name: compiled(name, longest) for name in models}
        _check_memory({name: done.needs for name, done in ahead.items()}, longest, bar, mesh)
        for length, sequences in sequences_by_length.items():
            indices = np.unique(sequences.document)
            documents = len(indices)
            draws = resample(documents, settings.bootstrap, settings.seed)
            baseline: dict[Any, Estimate] = {}
            for name, model in models.items():
                bar.set_postfix_str(f"{name} at {length}", refresh=False)
                one = ahead.pop(name) if length == longest else compiled(name, length)
                figures, cost = run_pass(one)
                shared = {
                    "protocol": settings.protocol,
                    "documents": documents,
                    "sequences": len(sequences.document),
                    "tokens": int(sequences.batch["tokens"].size),
                    **cost._asdict(),
                    "unsuited": unsuited(model, trained),
                }
                metrics = metrics_of(
                    figures,
                    sequences.document,
                    causal=model.objective == "causal_lm",
                    by_position=sequences.ordered,
                    byte_level=settings.byte_level,
                    answers=sequences.answers,
                )
                for metric in metrics:
                    estimate = metric.estimate(draws)
                    count = metric.denominator if metric.positions else figures.weights
                    record: dict[str, Any] = {
                        "method": name, "length": length, "metric": metric.name,
                        "positions": metric.positions and list(metric.positions),
                        "predictions": int(np.sum(count)),
                    }  # fmt: skip
                    first = baseline.setdefault((metric.name, metric.positions), estimate)
                    records.append(record | estimate.describe(first) | shared)
                    sums.append(
                        {key: record[key] for key in ("method", "length", "metric", "positions")}
                        | {
                            "documents": indices.tolist(),
                            "numerator": metric.numerator.tolist(),
                            "denominator": metric.denominator.tolist(),
                        }
                    )
                if figures.heads:
                    where = {"method": name, "length": length}
                    heads += [where | record for record in by_head(figures.heads)]
                bar.update()
    return Sweep(records, heads, sums)


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
