"""Evaluation: sweeps of method and length over trained weights."""

from lenext.evaluation.run import evaluate, evaluate_run

__all__ = ["evaluate", "evaluate_run"]
