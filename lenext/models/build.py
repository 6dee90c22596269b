"""Models from configs."""

from collections.abc import Sequence

from flax import nnx

from lenext.attention import Method
from lenext.config import Config
from lenext.models.gau import GAUConfig, GAUEncoder


def build_model(
    config: Config, methods: Sequence[Method], vocab_size: int, seed: int
) -> GAUEncoder:
    """The model that `config` (the section `model`) describes, freshly initialised from `seed`."""
    sizes = GAUConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        key_size=config.key_size,
        num_layers=config.num_layers,
        dropout=config.dropout,
        use_bias=config.use_bias,
        dtype=config.dtype,
    )
    return GAUEncoder(sizes, methods, rngs=nnx.Rngs(seed))
