"""Does holding the entropy of attention hold the model? Temperatures, on four kinds of position.

On the weights that infoscale_table trains with softmax: entropy_matched, calibrated on training
documents, beside infoscale and log_length, alone and on top of rerope, yarn and lm_infinite, all on
the same validation documents and masks.
"""

from experiments import infoscale_table
from experiments.sizes import few_at_smoke
from lenext.reporting.pictures import plot
from lenext.reporting.tables import (
    MARKS,
    accuracy_and_loss,
    metric_table,
    page,
    provenance_notes,
    select,
    with_interval,
)
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run

POSITIONS = ("rerope", "softmax", "yarn", "lm_infinite")
TEMPERATURES = ("", "entropy_matched", "infoscale", "log_length")


def runs(size: str) -> list[Run]:
    """Those of infoscale_table that softmax trains, under every temperature on every position."""
    methods = ["softmax"]
    for position in few_at_smoke(size, POSITIONS, 1):
        for temperature in few_at_smoke(size, TEMPERATURES, 2):
            methods.append(f"{position}+{temperature}" if temperature else position)
    # As infoscale_table names them, so that an evaluation serves both.
    rows = {name: name.removeprefix("softmax+") for name in dict.fromkeys(methods)}
    return [Run(run.name, run.config, rows) for run in infoscale_table.softmax_runs(size)]


def report(content: Content) -> dict[str, str | bytes]:
    """Accuracy, loss and entropy, and a picture of accuracy by length."""
    records, train_length = content["records"], content["config"]["data"]["train_length"]
    layers = content["config"]["model"]["num_layers"]
    title = f"Temperatures in a GAU of {layers} layers trained at {train_length} with softmax"
    sections = [
        *accuracy_and_loss(records),
        ("entropy (nats)", metric_table(records, "entropy", with_interval)),
    ]
    accuracy = select(records, metric="accuracy")
    return {
        ".md": page(title, sections, [MARKS, *provenance_notes(content)]),
        ".png": plot(accuracy, "accuracy", train_length, title),
    }


EXPERIMENT = Experiment(
    name="entropy_matched",
    runs=runs,
    baseline="softmax",
    metrics=("accuracy", "loss", "entropy"),
    report=report,
)
