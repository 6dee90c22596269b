"""What the experiments on retrieval share: the runs, and the report with its heat maps."""

from collections.abc import Callable, Mapping, Sequence

from experiments.sizes import few_at_smoke, retrieval, with_changes
from lenext.reporting.pictures import plot, plot_by_depth
from lenext.reporting.tables import MARKS, difference, metric_table, page, provenance_notes, select
from lenext.sweeps.experiment import Content
from lenext.sweeps.runs import Run, over_seeds

TRAINING_FREE = (
    "softmax",
    "infoscale",
    "log_length",
    "yarn",
    "rerope",
    "rerope+infoscale",
    "rerope_log",
    "lm_infinite",
)
# In trials lssar's power of 15 hardly learned such tasks; 3 is the paper's milder one.
TRAINED = ("ssmax", "alibi", "lssar", "lssar(power=3)")


def retrieval_runs(
    size: str,
    task: str,
    needles: int,
    lengths: Mapping[str, int],
    steps: int,
    *,
    asked: Sequence[int],
    later: Sequence[str] = (),
) -> list[Run]:
    """A training of softmax, under all methods that want none, and one of each of the others.

    Args:
      size: of `experiments.sizes`.
      task: trained on and asked.
      needles: in a training sequence.
      lengths: of those, by size.
      steps: see `experiments.sizes.retrieval`.
      asked: how many there are in a sequence that is evaluated, the first in rows named by the
        method alone.
      later: methods to train beside `TRAINED`.
    """
    config, seeds = retrieval(size, task, needles, lengths, steps)
    found = []
    for method in ("softmax", *few_at_smoke(size, (*TRAINED, *later), 1)):
        methods = few_at_smoke(size, TRAINING_FREE, 2) if method == "softmax" else (method,)
        for count in asked:
            changed = with_changes(config, model__method=method, eval__needles=count)
            rows = {row_name(m, count, asked): m for m in methods}
            found += over_seeds(method, changed, rows, seeds)
    return found


def row_name(method: str, count: int, asked: Sequence[int]) -> str:
    """By the method, and by the needles where there are not as many as asked first."""
    return method if count == asked[0] else f"{method}, {count} needles"


def make_report(what: str) -> Callable[[Content], Mapping[str, str | bytes]]:
    """The report of a task: tables of what is retrieved, a picture of it, heat maps by depth."""

    def report(content: Content) -> Mapping[str, str | bytes]:
        records, train_length = content["records"], content["config"]["data"]["train_length"]
        title = f"{what} at up to 16 times the {train_length} tokens trained at"
        several = [r for r in records if "needles" in r["method"]]
        single = [r for r in records if r not in several]
        sections = [
            ("retrieved (higher is better)", metric_table(single, "retrieved")),
            ("retrieved less softmax's", metric_table(single, "retrieved", difference)),
        ]
        if several:
            sections.insert(
                1, ("retrieved, of several needles", metric_table(several, "retrieved"))
            )
        return {
            ".md": page(title, sections, [MARKS, *provenance_notes(content)]),
            ".png": plot(select(single, metric="retrieved"), "retrieved", train_length, title),
            "_depth.png": plot_by_depth(records, train_length, f"{title}, by depth"),
        }

    return report
