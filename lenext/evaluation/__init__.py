"""Evaluation: sweeps of method and length over trained weights."""

from lenext.evaluation.run import evaluate

__all__ = ["evaluate"]
