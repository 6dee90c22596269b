"""Pass keys hidden in text: retrieved at up to 16 times the training length, by depth.

A decoder trained on nothing but a pass key in short texts (arXiv 2501.13428 asks models trained on
text), asked for it, and for one of four, which it was never trained to tell apart. Retrieved is a
key of which every digit is right.
"""

from experiments.retrieval import make_report, retrieval_runs
from lenext.sweeps.experiment import Experiment
from lenext.sweeps.runs import Run

SEVERAL = 4  # 4 lines of 19 bytes and a question of 18 are 94, less than any training length
LENGTHS = {"smoke": 128, "cpu": 128, "gpu": 512, "paper": 1024}


def runs(size: str) -> list[Run]:
    """Five trainings a seed, each asked with one needle in the text and with several."""
    return retrieval_runs(size, "passkey", 1, LENGTHS, 1500, asked=(1, SEVERAL))


EXPERIMENT = Experiment(
    name="passkey",
    runs=runs,
    baseline="softmax",
    metrics=("retrieved", "retrieved_by_place", "accuracy"),
    report=make_report("Pass keys"),
)
