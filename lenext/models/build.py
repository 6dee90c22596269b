"""Models from configs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flax import nnx

from lenext.attention import Method
from lenext.config import Config
from lenext.models.decoder import Decoder
from lenext.models.encoder import Encoder
from lenext.models.gau import GAUEncoder
from lenext.models.language_model import LanguageModel

Model = LanguageModel

FAMILIES: dict[str, type[Any]] = {
    "gau": GAUEncoder,
    "decoder": Decoder,
    "encoder": Encoder,
}
"""What `config.model.family` may be."""


def build_model(config: Config, methods: Sequence[Method], vocab_size: int, seed: int) -> Model:
    """The model that `config` (the section `model`) describes, freshly initialised from `seed`.

    A family takes the keys that its sizes have fields for.
    """
    family = FAMILIES[config.family]
    own = "norm_epsilon" if not config.norm_epsilon else ""  # 0 stands for the family's
    names = {field.name for field in dataclasses.fields(family.Config)} - {"vocab_size", own}
    sizes = family.Config(vocab_size=vocab_size, **{name: config[name] for name in names})
    return family(sizes, methods, rngs=nnx.Rngs(seed))
