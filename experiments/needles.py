"""A real model's needles beside its loss: SmolLM2-135M-Instruct, trained at 8192 tokens.

The loss of a text hardly tells whether a model still finds what stands far back. So the same
weights are asked, in the same lengths, for a code that is hidden in a text and for the variables of
a chain of assignments, and each method's loss on documents stands beside it.
"""

import dataclasses

from experiments import real_model
from experiments.sizes import check_size, few_at_smoke, with_changes
from lenext.reporting.pictures import draw_metrics, plot_by_depth
from lenext.reporting.tables import MARKS, metric_table, page, provenance_notes
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run

BARE = (
    "trained",
    "rerope(window=4096)",
    "self_extend(window=2048,group=8)",
    "lm_infinite(window=4096)",
    "yarn",
)
METHODS = tuple(f"{method}{more}" for more in ("", "+infoscale") for method in BARE)
TASKS = ("niah_single_2", "niah_multikey_1", "vt")
ENDS = ", needle at the ends"
"""Behind a method: its rows of one needle at the beginning of a text and one at its end."""
METRICS = {"loss": "loss in nats", "retrieved": "share of answers drawn"}


def runs(size: str) -> list[Run]:
    """The model under each method, on documents; and the same, asked for needles."""
    check_size(size)
    (model,) = real_model.runs(size)
    lengths = "1024" if size == "smoke" else "1024,2048,4096,8192,16384"
    count = {"smoke": 1, "cpu": 1, "gpu": 32, "paper": 100}[size]
    methods = {method: method for method in few_at_smoke(size, METHODS, 2)}
    read = with_changes(model.config, eval__lengths=lengths)
    if size == "cpu":  # three documents under ten methods stand in real_model; here it is hours
        read = with_changes(read, eval__documents=1, eval__tokens=8192)
    asked = with_changes(
        read, eval__protocol="ruler", eval__tasks=",".join(TASKS),
        eval__documents=count,
    )  # fmt: skip
    found = [dataclasses.replace(model, config=own, rows=methods) for own in (read, asked)]
    if count == 1:  # whose needle lies at the beginning
        config = with_changes(asked, eval__tasks=TASKS[0], eval__documents=2)
        rows = {method + ENDS: method for method in few_at_smoke(size, BARE, 1)}
        found.append(dataclasses.replace(model, config=config, rows=rows))
    return found


def report(content: Content) -> dict[str, str | bytes]:
    """Tables of what is found and of the loss, and a picture of both."""
    records, length = content["records"], content["config"]["data"]["train_length"]
    ends = [
        r | {"method": r["method"].removesuffix(ENDS)}
        for r in records
        if r["method"].endswith(ENDS)
    ]
    records = [r for r in records if not r["method"].endswith(ENDS)]
    by_depth = [r for r in ends or records if "infoscale" not in r["method"]]
    title = f"SmolLM2-135M-Instruct, trained at {length} tokens: what it finds, beside its loss"
    tasks = [m for m in dict.fromkeys(r["metric"] for r in records) if ":" in m]
    sections = [
        ("answers that the text drawn holds (higher is better)", "retrieved"),
        ("right answers preferred to seven wrong ones (a guess: 0.125)", "preferred"),
        *((metric.replace(":", ", "), metric) for metric in tasks),
        ("loss in nats, on documents (lower is better)", "loss"),
    ]
    tables = [(heading, metric_table(records, metric)) for heading, metric in sections]
    if ends:
        heading = f"retrieved, {TASKS[0]} at the beginning of the text and at its end"
        tables.insert(2, (heading, metric_table(ends, "retrieved")))
    return {
        ".md": page(title, tables, [MARKS, *provenance_notes(content)]),
        ".png": draw_metrics(records, METRICS, length, title),
        "_depth.png": plot_by_depth(by_depth, length, f"{title}, by depth"),
    }


EXPERIMENT = Experiment(
    name="needles",
    runs=runs,
    baseline=lambda row: "trained" + (ENDS if row.endswith(ENDS) else ""),
    metrics=(
        "retrieved", "preferred", "retrieved_by_place", "loss",
        *(f"{score}:{task}" for score in ("retrieved", "preferred") for task in TASKS),
    ),
    report=report,
)  # fmt: skip
