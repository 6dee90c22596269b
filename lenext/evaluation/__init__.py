"""Evaluation: sweeps of method and length over trained weights."""

from lenext.evaluation.workdir_sweep import evaluate, evaluate_run

__all__ = ["evaluate", "evaluate_run"]
