"""Associative recall: length extrapolation with no language in it.

A decoder trained on pairs of key and value among noise, which it is to give back by key
(arXiv 2312.04927), at up to 16 times the training length: the same pairs, and more noise. The
answer is always in the row.
"""

from experiments.experiment import Experiment
from experiments.retrieval import make_report, retrieval_runs
from experiments.runs import Run

PAIRS = 4
LENGTHS = {"smoke": 32, "cpu": 64, "gpu": 512, "paper": 1024}


def runs(size: str) -> list[Run]:
    """Four trainings a seed."""
    return retrieval_runs(size, "associative_recall", PAIRS, LENGTHS, asked=(PAIRS,))


EXPERIMENT = Experiment(
    name="associative_recall",
    runs=runs,
    baseline="softmax",
    metrics=("retrieved", "retrieved_by_place", "loss"),
    report=make_report("Associative recall"),
)
