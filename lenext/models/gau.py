"""GAU-alpha: a bidirectional encoder of gated attention units, for masked language modelling."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lenext.attention import AnyMethod
from lenext.config import ModelConfig
from lenext.models.attention import Attention
from lenext.models.language_model import LanguageModel
from lenext.models.parts import Embedding, Head, declared, dense, dot_general, rms_norm, rounded
from lenext.models.stack import AttentionCall
from lenext.parallel.meshes import COLUMNS, LINES

INITIAL = rounded(nnx.initializers.lecun_normal())


class ScaleOffset(nnx.Module):
    """Per-dimension gain (and offset) that makes q or k of the shared z."""

    def __init__(self, dim: int, *, use_bias: bool):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.offset = nnx.Param(jnp.zeros((dim,), jnp.float32)) if use_bias else None

    def __call__(self, z: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
        """Z times the gain, plus the offset if there is one."""
        out = z * self.scale[...].astype(z.dtype)[None, None]
        return out if self.offset is None else out + self.offset[...].astype(z.dtype)[None, None]


class GAULayer(nnx.Module):
    """One gated attention unit (arXiv 2202.10447, as in GAU-alpha), post-norm."""

    def __init__(self, config: ModelConfig, method: AnyMethod, *, rngs: nnx.Rngs):
        self.config = config
        hidden, intermediate, key = config.hidden_size, config.intermediate_size, config.key_size

        def linear(inputs: int, outputs: int, split: Any) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=config.use_bias, dtype=jnp.dtype(config.dtype),
                param_dtype=jnp.dtype(config.param_dtype), kernel_init=INITIAL,
                dot_general=dot_general, kernel_metadata=declared("matrix", split), rngs=rngs,
            )  # fmt: skip

        self.i_dense = linear(hidden, 2 * intermediate + key, COLUMNS)
        self.o_dense = linear(intermediate, hidden, LINES)
        self.q_scale = ScaleOffset(key, use_bias=config.use_bias)
        self.k_scale = ScaleOffset(key, use_bias=config.use_bias)
        self.attention = Attention(
            method, hidden_size=hidden, num_heads=1, num_kv_heads=1, head_dim=key, causal=False
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall, *, dropout_key: Array | None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one unit on; and what else `call` gives."""
        e = self.config.intermediate_size
        u, v, z = jnp.split(jax.nn.silu(dense(self.i_dense, x)), [e, 2 * e], axis=-1)
        q, k = self.q_scale(z), self.k_scale(z)
        out, extra = call(self.attention, q[:, :, None], k[:, :, None], v[:, :, None], x)
        out = dense(self.o_dense, u * out[:, :, 0])
        out = self.dropout(out, deterministic=dropout_key is None, rngs=dropout_key)
        return rms_norm(x + out, self.config.norm_epsilon), extra


class GAUEncoder(LanguageModel):
    """Token and type embeddings, gated attention units, and a head tied to the embedding.

    Args:
      config: sizes.
      methods: one attention method, or a pattern that repeats over the layers.
      rngs: for the initial values.
    """

    objective: ClassVar[str] = "masked_lm"
    token_embedding: ClassVar[str] = "word_embedding.embedding"

    def __init__(
        self, config: ModelConfig, methods: AnyMethod | Sequence[AnyMethod], *, rngs: nnx.Rngs
    ):
        config = self.settled(config)
        hidden = config.hidden_size
        self.word_embedding = Embedding(config.vocab_size, hidden, config, rngs, split=LINES)
        self.type_embedding = Embedding(config.type_vocab_size, hidden, config, rngs)
        super().__init__(config, methods, lambda method: GAULayer(config, method, rngs=rngs))

    @property
    def attention_channels(self) -> int:  # noqa: D102
        return self.config.key_size + self.config.intermediate_size

    def embed(self, tokens, positions, token_types):  # noqa: D102
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.word_embedding(tokens) + self.type_embedding(types)
        return rms_norm(x, self.config.norm_epsilon)

    def head_weights(self) -> Head:  # noqa: D102
        return Head(self.word_embedding.embedding[...], None, "vd")
