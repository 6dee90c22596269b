"""Training: state, step, loop, checkpoints, metrics."""

from lenext.training.checks import validate
from lenext.training.loop import train

__all__ = ["train", "validate"]
