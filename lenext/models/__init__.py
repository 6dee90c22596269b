"""Flax models that take their attention method as data."""

from lenext.models.build import build_model
from lenext.models.gau import GAUConfig, GAUEncoder
from lenext.models.swap import model_methods, parameter_table, with_method

__all__ = [
    "GAUConfig",
    "GAUEncoder",
    "build_model",
    "model_methods",
    "parameter_table",
    "with_method",
]
