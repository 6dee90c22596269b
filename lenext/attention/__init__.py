"""Attention whose behaviour at length is data: see `make_method` and `attend`."""

from lenext.attention.axes.axis import (
    Params,
    Piece,
    Position,
    Rows,
    Similarity,
    Temperature,
    Visibility,
    Weighting,
    option,
)
from lenext.attention.axes.by_key import KeyByKey, TwoStage
from lenext.attention.axes.gates import Gates, init_gates, make_gates
from lenext.attention.axes.method import (
    AnyMethod,
    HeadMethods,
    Method,
    init_params,
    methods_of,
    unsuited_axes,
)
from lenext.attention.catalogue import (
    Entry,
    make_method,
    make_pattern,
    method_names,
    method_options,
    overruled_parts,
    register,
    spell_trained,
)
from lenext.attention.compute.attend import (
    attend,
    attention_weights,
    choose_implementation,
    row_statistics,
)
from lenext.attention.compute.choice import Choice
from lenext.attention.compute.diagnostics import RowStatistics
from lenext.attention.compute.places import count_tokens
from lenext.attention.flax_adapter import flax_attention_fn
from lenext.attention.grammar import Pattern

__all__ = [
    "AnyMethod",
    "Choice",
    "Entry",
    "Gates",
    "HeadMethods",
    "KeyByKey",
    "Method",
    "Params",
    "Pattern",
    "Piece",
    "Position",
    "RowStatistics",
    "Rows",
    "Similarity",
    "Temperature",
    "TwoStage",
    "Visibility",
    "Weighting",
    "attend",
    "attention_weights",
    "choose_implementation",
    "count_tokens",
    "flax_attention_fn",
    "init_gates",
    "init_params",
    "make_gates",
    "make_method",
    "make_pattern",
    "method_names",
    "method_options",
    "methods_of",
    "option",
    "overruled_parts",
    "register",
    "row_statistics",
    "spell_trained",
    "unsuited_axes",
]
