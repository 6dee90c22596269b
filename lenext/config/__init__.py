"""Configs: every key with its default, how they are read, and what they may say."""

from lenext.config.base import Config, base_config, read_arg, smoke
from lenext.config.checks import (
    check_model,
    check_positions,
    read_lengths,
)
from lenext.config.methods import list_methods, read_methods
from lenext.config.model import ModelConfig
from lenext.config.plain import differences, plain, to_config

__all__ = [
    "Config",
    "ModelConfig",
    "base_config",
    "check_model",
    "check_positions",
    "differences",
    "list_methods",
    "plain",
    "read_arg",
    "read_lengths",
    "read_methods",
    "smoke",
    "to_config",
]
