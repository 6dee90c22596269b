"""Flax models that take their attention method as data."""

from typing import TYPE_CHECKING, Any

from lenext.config import ModelConfig
from lenext.models.build import FAMILIES, Model, build_model, check_sizes, held_as
from lenext.models.cost import cache_bytes, forward_flops
from lenext.models.decoder import Decoder
from lenext.models.encoder import Encoder
from lenext.models.gau import GAUEncoder
from lenext.models.maps import attention_maps
from lenext.models.objectives import TokenFigures, token_figures
from lenext.models.parts import kinds_of
from lenext.models.stack import Place, in_words, named_parameters, places_of, take_apart
from lenext.models.swap import model_methods, parameter_table, unsuited, with_method

__all__ = [
    "FAMILIES",
    "Decoder",
    "Encoder",
    "GAUEncoder",
    "Model",
    "ModelConfig",
    "Place",
    "TokenFigures",
    "attention_maps",
    "build_model",
    "cache_bytes",
    "check_sizes",
    "forward_flops",
    "held_as",
    "in_words",
    "kinds_of",
    "load_pretrained",
    "model_methods",
    "named_parameters",
    "parameter_table",
    "places_of",
    "take_apart",
    "token_figures",
    "unsuited",
    "with_method",
]

if TYPE_CHECKING:
    from lenext.workdirs.pretrained import load_pretrained


def __getattr__(name: str) -> Any:
    """`load_pretrained`, on demand: it reads checkpoints, which a model alone does not need."""
    if name == "load_pretrained":
        from lenext.workdirs.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
