"""Six synthetic tasks, trained at 48 tokens and asked at up to 64 times that.

Copying, reversing, sorting, flip-flop, n-back and recall of pairs of several tokens (as in arXiv
2506.16640), each with a small decoder of its own for every method, of equal tokens, steps and
seeds: which hold what they learned? "→" is softmax's weights under a method that wants no training.
"""

from typing import Any

from experiments.sizes import LENGTHS, SIZES, few_at_smoke, retrieval, with_changes
from lenext.data.synthetic import SYNTHETIC
from lenext.reporting.pictures import draw_metrics
from lenext.reporting.tables import MARKS, metric_table, page, provenance_notes
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run, over_seeds

LENGTH, STEPS = 48, 1000
TRAINED = ("softmax", "alibi", "nope", "lssar(power=3)", "softmax_sink", "forgetting", "asentmax",
           "stick_breaking")  # fmt: skip
SWAPPED = ("infoscale", "rerope", "rerope+infoscale")


def runs(size: str) -> list[Run]:
    """Eight trainings a task and seed."""
    found = []
    for task in few_at_smoke(size, list(SYNTHETIC), 2):
        config, seeds = retrieval(size, task, 1, dict.fromkeys(SIZES, LENGTH), STEPS)
        if size != "smoke":
            config.eval.lengths = ",".join(str(n * LENGTH) for n in LENGTHS)
        for method in few_at_smoke(size, TRAINED, 2):
            rows = {f"{task}: {method}": method}
            if method == "softmax":
                for other in few_at_smoke(size, SWAPPED, 1):
                    rows[f"{task}: softmax → {other}"] = other
            changed = with_changes(config, model__method=method)
            found += over_seeds(method, changed, rows, seeds)
    return found


def report(content: Content) -> dict[str, str | bytes]:
    """A table a task of the answers that are right, and a picture of all."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in content["records"]:
        task, method = record["method"].split(": ", 1)
        by_task.setdefault(task, []).append(record | {"method": method})
    title = f"Synthetic tasks at up to 64 times the {LENGTH} tokens trained at"
    sections = [
        (f"{task}: share of answers that are right", metric_table(records, "retrieved"))
        for task, records in by_task.items()
    ]
    drawn = [
        record | {"metric": task}
        for task, records in by_task.items()
        for record in records
        if record["metric"] == "retrieved"
    ]
    tasks = {task: task for task in by_task}
    # Of the notes: which protocol there was is what the tasks are called.
    asked = [record | {"protocol": ", ".join(tasks)} for record in content["records"]]
    notes = provenance_notes(content | {"records": asked})
    return {
        ".md": page(title, sections, [MARKS, *notes]),
        ".png": draw_metrics(drawn, tasks, LENGTH, title),
    }


EXPERIMENT = Experiment(
    name="synthetic",
    runs=runs,
    baseline=lambda row: f"{row.split(': ')[0]}: softmax",
    metrics=("retrieved", "accuracy"),
    report=report,
)
