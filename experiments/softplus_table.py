"""The softplus paper's tables: loss of a decoder at up to 16 times its training length.

Every method has weights of its own, of equal tokens, steps and seeds (arXiv 2501.13428), with and
without QK-norm but for those on cosines, which have it in them, and for the paper's peers of later
years. "lssa → lssar" is LSSA's weights
evaluated as LSSAR; softmax's are evaluated under methods that want no training, too. Then, of one
seed, the ablation: what is made of a logit (phi), whether rows are normalised, and whether weights
are sharpened after. And stability: training at high learning rates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sizes import causal, few_at_smoke, with_changes
from lenext.reporting.pictures import draw_training, plot
from lenext.reporting.tables import (
    MARKS,
    difference,
    figure,
    markdown_table,
    metric_table,
    page,
    provenance_notes,
    select,
)
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run, over_seeds

DOTS = ("softmax", "sigmoid", "relu", "ssmax", "alibi", "scale_invariant")
LATER = ("t5_bias", "softmax_sink", "forgetting", "asentmax", "stick_breaking")
COSINES = ("lssa", "lssar(power=3)", "lssar")
ELSEWHERE = {  # evaluated on the weights of another
    "softmax": ("infoscale", "log_length", "yarn", "rerope", "rerope+infoscale", "lm_infinite"),
    "lssa": ("lssar",),
}
PHIS = ("softplus", "exp", "relu", "relu2", "sigmoid", "gelu_shifted")
NORMS = ("l1", "none")
UNSTABLE = ("softmax", "softmax, QK-norm", "sigmoid", "relu", "lssa", "lssar")
LEARNING_RATES = (4e-3, 1.6e-2, 6.4e-2)
SPIKE = 0.5  # nats by which the loss must exceed the lowest before it …
SMOOTHED = 20  # … as the mean of so many steps: that of one is its batch's as much as the model's


def runs(size: str) -> list[Run]:
    """Twenty trainings a seed; the ablation and the high learning rates for the first."""
    config, seeds = causal(size)
    found = []
    for method in (x for some in (DOTS, LATER, COSINES) for x in few_at_smoke(size, some, 1)):
        others = few_at_smoke(size, ELSEWHERE.get(method, ()), 1)
        rows = {method: method} | {f"{method} → {other}": other for other in others}
        found += over_seeds(method, with_changes(config, model__method=method), rows, seeds)
    for method in few_at_smoke(size, DOTS, 1):
        name = f"{method}, QK-norm"
        changed = with_changes(config, model__method=method, model__qk_norm=True)
        found += over_seeds(name, changed, {name: method}, seeds)
    for method in few_at_smoke(size, ablation(), 1):
        found += over_seeds(
            method,
            with_changes(config, model__method=method),
            {f"ablation: {method}": method},
            seeds[:1],
        )
    for name in few_at_smoke(size, UNSTABLE, 1):
        for rate in few_at_smoke(size, LEARNING_RATES, 1):
            method, _, norm = name.partition(", ")
            changed = with_changes(
                config, model__method=method, model__qk_norm=bool(norm),
                optimizer__learning_rate=rate, training__log_every=1,
            )  # fmt: skip
            changed.eval.lengths = str(config.data.train_length)
            label = f"{name} at {rate:g}"
            found += over_seeds(label, changed, {label: method}, seeds[:1])
    return found


def ablation() -> list[str]:
    """phi x normalisation x re-weighting; exp without normalisation overflows and is left out."""
    return [
        variant(name, phi, norm)
        for name in ("lssa", "lssar")
        for norm in NORMS
        for phi in PHIS
        if (phi, norm) != ("exp", "none")
    ]


def variant(name: str, phi: str, norm: str) -> str:
    """LSSA or LSSAR with another phi and norm; by its bare name where those are its own."""
    own = (phi, norm) == (PHIS[0], NORMS[0])
    return name if own else f'{name}(phi="{phi}",norm="{norm}")'


def stability(run: Run, workdir: Path) -> dict[str, Any]:
    """Of a run at a high learning rate: spikes, and the loss by step (at most 100 of them)."""
    if run.config.training.log_every > 1:
        return {}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    share = max(1, run.steps // 100)
    return {
        "spikes": count_spikes(losses),
        "final_loss": losses[-1] if losses else None,
        "loss_by_step": [max(losses[i : i + share]) for i in range(0, len(losses), share)],
    }


def count_spikes(losses: Sequence[float]) -> int:
    """How often the smoothed loss climbs above the lowest that it has been by more than `SPIKE`."""
    if len(losses) < SMOOTHED:
        return 0
    smooth = np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
    above = smooth > np.minimum.accumulate(smooth) + SPIKE
    return int(np.sum(above[1:] & ~above[:-1]))


def report(content: Content) -> dict[str, str | bytes]:
    """The table of trained methods, the ablation's, and that of high learning rates."""
    records, train_length = content["records"], content["config"]["data"]["train_length"]
    layers = content["config"]["model"]["num_layers"]
    title = f"Decoder of {layers} layers trained at {train_length} tokens, at up to 16 times that"
    high = {run["name"]: run for run in content["runs"] if "spikes" in run}
    ablated = [r for r in records if r["method"].startswith("ablation: ")]
    main = [r for r in records if r not in ablated and r["trained"] not in high]
    sections = [
        ("loss in nats (lower is better)", metric_table(main, "loss")),
        ("loss less softmax's", metric_table(main, "loss", difference)),
        ("ablation: phi, normalisation, re-weighting (one seed)", _ablation_table(ablated)),
        ("stability at high learning rates (one seed)", _stability_table(records, high)),
    ]
    notes = [
        MARKS,
        f"Stability: a spike is a rise of the loss, as the mean of {SMOOTHED} steps, by more than "
        f"{SPIKE} nats above the lowest before; the largest logit is the mean over sequences of "
        "their largest.",
        *provenance_notes(content),
    ]
    left_out = ("QK-norm", "softmax →")
    shown = [
        r for r in select(main, metric="loss") if not any(word in r["method"] for word in left_out)
    ]
    return {
        ".md": page(title, sections, notes),
        ".png": plot(shown, "loss", train_length, title),
        "_stability.png": draw_training(
            {rate: _losses(high, rate) for rate in LEARNING_RATES},
            f"Loss by step at high peak learning rates: {title}",
        ),
    }


def _losses(high: dict[str, dict], rate: float) -> dict[str, list[float]]:
    """Loss by step of each method at a learning rate."""
    end = f" at {rate:g}"
    found = {name: run["loss_by_step"] for name, run in high.items() if name.endswith(end)}
    return {name.removesuffix(end): losses for name, losses in found.items()}


def _ablation_table(records: list[dict]) -> list[str]:
    """The loss at the shortest and the longest length, re-weighted or not."""
    found = {(r["evaluated"], r["length"]): r for r in select(records, metric="loss")}
    if not found:
        return ["Not run."]
    short, long = min(n for _, n in found), max(n for _, n in found)
    rows = []
    for norm in NORMS:
        for phi in PHIS:
            methods = [variant(name, phi, norm) for name in ("lssa", "lssar")]
            cells = [found.get((m, n)) for m in methods for n in (short, long)]
            if any(cells):
                rows.append([phi, norm, *(figure(r["value"]) if r else "–" for r in cells)])
    headings = [f"{kind} at {n}" for kind in ("plain", "re-weighted") for n in (short, long)]
    return markdown_table(["phi", "normalised", *headings], rows, words=2)


def _stability_table(records: list[dict], high: dict[str, dict]) -> list[str]:
    rows = []
    for name, run in high.items():
        logit = select(records, trained=name, metric="max_logit")
        loss = select(records, trained=name, metric="loss")
        rows.append(
            [
                name,
                run["stopped"] or "ran to its end",
                str(run["spikes"]),
                figure(run["final_loss"]) if run["final_loss"] else "–",
                figure(loss[0]["value"]) if loss else "–",
                figure(logit[0]["value"]) if logit else "–",
            ]
        )
    headings = ["method at peak learning rate", "end", "spikes", "last training loss",
                "validation loss", "largest logit"]  # fmt: skip
    return markdown_table(headings, rows, words=2)


EXPERIMENT = Experiment(
    name="softplus_table",
    runs=runs,
    baseline="softmax",
    metrics=("loss", "accuracy", "max_logit", "entropy"),
    report=report,
    details=stability,
)
