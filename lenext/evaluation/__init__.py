"""Evaluation: sweeps of method and length over trained weights."""

from lenext.evaluation.sweep import check_eval
from lenext.evaluation.workdir_sweep import evaluate, evaluate_run

__all__ = ["check_eval", "evaluate", "evaluate_run"]
