"""Associative recall: length extrapolation with no language in it.

A decoder trained on pairs of key and value among noise, which it is to give back by key
(arXiv 2312.04927), at up to 16 times the training length: the same pairs, and more noise. The
answer is always in the row.
"""

from experiments.retrieval import make_report, retrieval_runs
from experiments.sizes import check_size
from experiments.softplus_table import LATER
from lenext.sweeps.experiment import Experiment
from lenext.sweeps.runs import Run

# Shown and asked, pairs fill half a row of the training length; with more noise they are learned
# late.
PAIRS = {"smoke": 4, "cpu": 4, "gpu": 16, "paper": 64}
LENGTHS = {"smoke": 32, "cpu": 32, "gpu": 128, "paper": 512}


def runs(size: str) -> list[Run]:
    """Ten trainings a seed."""
    check_size(size)
    pairs = PAIRS[size]
    return retrieval_runs(
        size, "associative_recall", pairs, LENGTHS, 2500, asked=(pairs,), later=LATER
    )


EXPERIMENT = Experiment(
    name="associative_recall",
    runs=runs,
    baseline="softmax",
    metrics=("retrieved", "retrieved_by_place", "loss"),
    report=make_report("Associative recall"),
)
