"""Models from configs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lenext.attention import AnyMethod
from lenext.config import Config, ModelConfig
from lenext.config.checks import check_bounds, check_choices, check_least
from lenext.errors import UserError
from lenext.models.decoder import Decoder
from lenext.models.encoder import Encoder
from lenext.models.gau import GAUEncoder
from lenext.models.language_model import LanguageModel
from lenext.models.parts import ATTENTION_BIASES, MLPS, NORMS

Model = LanguageModel

FAMILIES: dict[str, type[Any]] = {
    "gau": GAUEncoder,
    "decoder": Decoder,
    "encoder": Encoder,
}
"""What `config.model.family` may be."""

DTYPES = ("float32", "bfloat16")


def build_model(
    config: Config,
    methods: Sequence[AnyMethod],
    vocab_size: int,
    seed: int,
    *,
    param_dtype: str | None = None,
) -> Model:
    """The model that `config` (the section `model`) describes, freshly initialised from `seed`.

    Initial values are the same in any type, but for rounding; `param_dtype` is in place of the
    config's.
    """
    names = {field.name for field in dataclasses.fields(ModelConfig)} - {"vocab_size"}
    sizes = ModelConfig(vocab_size=vocab_size, **{name: config[name] for name in names})
    if param_dtype is not None:
        sizes = dataclasses.replace(sizes, param_dtype=param_dtype)
    model = FAMILIES[config.family](sizes, methods, rngs=nnx.Rngs(seed))
    model.layers.attention.draw(jax.random.key(seed))
    return model


def held_as(config: Config, methods: Sequence[AnyMethod], vocab_size: int) -> Callable[[Any], Any]:
    """What makes of float32 parameters those that a model of the config holds, by its param_dtype.

    It takes and gives pure dicts, also in what is being traced.
    """
    if config.param_dtype == "float32":
        return lambda params: params
    model = nnx.eval_shape(lambda: build_model(config, methods, vocab_size, 0))
    types = jax.tree.map(lambda x: x.dtype, nnx.to_pure_dict(nnx.state(model)))

    def cast(x: jax.Array, dtype: Any) -> jax.Array:
        return x if x.dtype == dtype else x.astype(dtype)  # which would copy even so

    return lambda params: jax.tree.map(cast, params, types)


def check_sizes(config: Config) -> None:
    """Checks the section `model`, but for its method.

    Raises:
      UserError: naming the first key that is off.
    """
    check_choices(
        config, "model", family=FAMILIES, mlp=MLPS, norm=NORMS, attention_bias=ATTENTION_BIASES,
        dtype=DTYPES, param_dtype=DTYPES,
    )  # fmt: skip
    check_least(
        config, "model", 1, "hidden_size", "intermediate_size", "key_size", "num_layers",
        "num_heads", "type_vocab_size",
    )  # fmt: skip
    check_least(config, "model", 0, "vocab_size", "max_positions", "norm_epsilon", "logit_softcap")
    check_bounds(config, "model", "dropout")
    least = float(jnp.finfo(jnp.float32).tiny)  # what is below, XLA takes for 0
    if 0 < config.norm_epsilon < least:
        raise UserError(
            f"config.model.norm_epsilon={config.norm_epsilon}: should be 0, for the family's own, "
            f"or at least {least:.3g}, as float32 holds it"
        )
    if config.key_size % 2:
        raise UserError(
            f"config.model.key_size={config.key_size}: should be even, for rotary pairs"
        )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    widths = {"num_heads*key_size": heads * config.key_size} | {
        key: config[key]
        for key in ("hidden_size", "intermediate_size", "vocab_size", "max_positions",
                    "type_vocab_size")
    }  # fmt: skip
    for key, width in widths.items():
        if width >= 2**31:  # which JAX counts in
            raise UserError(f"config.model.{key}: should be below 2^31, not {width}")
    if kv_heads < 0 or (kv_heads and heads % kv_heads):
        raise UserError(
            f"config.model.num_kv_heads={kv_heads}: should divide model.num_heads={heads}, or be 0"
        )
