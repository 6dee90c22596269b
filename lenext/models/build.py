"""Models from configs."""

from collections.abc import Sequence
from typing import TypeAlias

from flax import nnx

from lenext.attention import Method
from lenext.config import Config
from lenext.models.decoder import Decoder, DecoderConfig
from lenext.models.encoder import Encoder, EncoderConfig
from lenext.models.gau import GAUConfig, GAUEncoder

Model: TypeAlias = GAUEncoder | Decoder | Encoder

FAMILIES: dict[str, type[Model]] = {"gau": GAUEncoder, "decoder": Decoder, "encoder": Encoder}
"""What `config.model.family` may be."""


def build_model(config: Config, methods: Sequence[Method], vocab_size: int, seed: int) -> Model:
    """The model that `config` (the section `model`) describes, freshly initialised from `seed`."""
    rngs = nnx.Rngs(seed)
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_layers,
        "dropout": config.dropout,
        "remat": config.remat,
        "dtype": config.dtype,
    }
    if config.norm_epsilon:
        shared["norm_epsilon"] = config.norm_epsilon
    if config.family == "gau":
        sizes = GAUConfig(
            key_size=config.key_size,
            type_vocab_size=config.type_vocab_size,
            use_bias=config.use_bias,
            **shared,
        )
        return GAUEncoder(sizes, methods, rngs=rngs)
    if config.family == "encoder":
        sizes = EncoderConfig(
            num_heads=config.num_heads,
            head_dim=config.key_size,
            type_vocab_size=config.type_vocab_size,
            **shared,
        )
        return Encoder(sizes, methods, rngs=rngs)
    sizes = DecoderConfig(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_dim=config.key_size,
        mlp=config.mlp,
        norm=config.norm,
        qk_norm=config.qk_norm,
        max_positions=config.max_positions,
        tied_head=config.tied_head,
        use_bias=config.use_bias,
        attention_bias=config.attention_bias,
        **shared,
    )
    return Decoder(sizes, methods, rngs=rngs)
