"""What length does to a row of attention, by method: entropy, dilution, and the gap scale.

On the weights that infoscale_table trains with softmax, the same under every method. Dilution is a
row's weight on keys further than the training length; one less it, the weight that the original
tokens keep. Lambda, the gap-accumulation scale, is a row's sup of ln N(t) / t, N(t) the keys whose
logit is within t of its largest (arXiv 2605.12697): a temperature far below it cannot separate the
top, one far above it leaves the top alone.
"""

from experiments import infoscale_table
from lenext.reporting.pictures import draw_metrics
from lenext.reporting.tables import metric_table, page, provenance_notes, select, with_interval
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run

PANELS = {
    "entropy": "row entropy (nats)",
    "dilution": "weight beyond the training length",
    "gap_scale": "gap scale Λ",
    "accuracy": "accuracy",
}


def runs(size: str) -> list[Run]:
    """Those of infoscale_table that softmax trains."""
    return infoscale_table.softmax_runs(size)


def report(content: Content) -> dict[str, str | bytes]:
    """A table a figure, and all of them in a picture."""
    records, train_length = content["records"], content["config"]["data"]["train_length"]
    layers = content["config"]["model"]["num_layers"]
    title = f"Rows of attention by length: a GAU of {layers} layers, trained at {train_length}"
    kept = [
        record
        | {
            "value": 1 - record["value"],
            "interval": record["interval"] and [1 - x for x in record["interval"][::-1]],
        }
        for record in select(records, metric="dilution")
    ]
    sections = [
        ("entropy (nats)", metric_table(records, "entropy", with_interval)),
        (
            "dilution: weight beyond the training length",
            metric_table(records, "dilution", with_interval),
        ),
        ("weight on the original tokens", metric_table(kept, "dilution", with_interval)),
        ("gap scale Λ", metric_table(records, "gap_scale", with_interval)),
    ]
    notes = [
        "Means over rows, heads, layers, documents and seeds (of Λ the harmonic mean); ± half the "
        "95 % interval, by resampling documents and seeds.",
        *provenance_notes(content),
    ]
    shown = select(records, method=SHOWN)
    return {
        ".md": page(title, sections, notes),
        ".png": draw_metrics(shown, PANELS, train_length, title),
    }


SHOWN = (
    "softmax", "infoscale", "log_length", "entropy_matched", "yarn", "rerope", "rerope+infoscale",
    "rerope_log", "leaky_rerope", "self_extend", "lm_infinite", "windowed",
)  # fmt: skip

EXPERIMENT = Experiment(
    name="dilution",
    runs=runs,
    baseline="softmax",
    metrics=("accuracy", "entropy", "dilution", "gap_scale", "max_logit", "sink_weight"),
    report=report,
)
