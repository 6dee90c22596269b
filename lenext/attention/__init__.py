"""Attention whose behaviour at length is data: see `make_method` and `attend`."""

from lenext.attention.attend import (
    attend,
    attention_weights,
    choose_implementation,
    row_statistics,
)
from lenext.attention.catalogue import make_method, method_names, method_options
from lenext.attention.choice import Choice
from lenext.attention.diagnostics import RowStatistics
from lenext.attention.flax_adapter import flax_attention_fn
from lenext.attention.method import Method, Params, init_params, pin_scale, unsuited_axes

__all__ = [
    "Choice",
    "Method",
    "Params",
    "RowStatistics",
    "attend",
    "attention_weights",
    "choose_implementation",
    "flax_attention_fn",
    "init_params",
    "make_method",
    "method_names",
    "method_options",
    "pin_scale",
    "row_statistics",
    "unsuited_axes",
]
