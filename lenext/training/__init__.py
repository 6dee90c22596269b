"""Training: state, step, loop, checkpoints, metrics."""

from lenext.training.loop import train

__all__ = ["train"]
