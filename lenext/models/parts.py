"""What models and their layers are made of."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from lenext.attention import AnyMethod
from lenext.config import ModelConfig
from lenext.models.attention import Attention
from lenext.models.stack import AttentionCall
from lenext.parallel.meshes import COLUMNS, LINES, WHOLE, metadata_of, sequence_shares

INIT_STDDEV = 0.02


def declared(kind: str, split: P) -> dict[str, Any]:
    """What a parameter is to others, as metadata of an `nnx.Param`.

    Args:
      kind: "matrix", of the layers, which Muon moves; "head", what makes logits; or "embedding", a
        table. Without one: gains, biases, and what methods learn.
      split: over a mesh, see `lenext.parallel.meshes`.
    """
    return {"kind": kind, "split": split}


def kinds_of(model: nnx.Module) -> dict[str, str]:
    """The kinds of parameters, by their paths in the model's state; "" where none is declared."""
    return metadata_of(model, "kind", "")


def rms_norm(x: Float[Array, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) along the last axis, in float32, without gain."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def dense(linear: nnx.Linear, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
    """`linear` on every token.

    Over one axis of tokens: XLA's CPU backend is four times slower at the weights' gradient when
    it contracts two.
    """
    batch, length, width = x.shape
    if sequence_shares(length) > 1:  # one axis of tokens could not be split as they are
        return linear(x)
    return linear(x.reshape(batch * length, width)).reshape(batch, length, -1)


def dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **how: Any) -> Array:
    """`jax.lax.dot_general`, for linear maps.

    On a CPU, products of bfloat16 are summed in float32, and rounded then: XLA's backend there
    multiplies them several times faster than float32 where the CPU can, but only if the result may
    be of 32 bits; else it turns all operands to float32 first.
    """
    if lhs.dtype != jnp.bfloat16 or rhs.dtype != lhs.dtype or jax.default_backend() != "cpu":
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, **how)
    how["preferred_element_type"] = jnp.float32
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, **how).astype(lhs.dtype)


class Head(NamedTuple):
    """What makes logits of hidden states.

    Attributes:
      matrix: in the type of the parameters.
      bias: likewise, or None.
      axes: of the matrix, "vd" (an embedding) or "dv" (a linear map).
      softcap: keeps logits within +-softcap, by softcap * tanh(logit / softcap); 0 for no bound.
    """

    matrix: Float[Array, "..."]
    bias: Float[Array, " V"] | None
    axes: str
    softcap: float = 0.0

    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Float32 logits: the product is of hidden's type, its sums are float32."""
        # A linear map takes one axis of tokens, as in `dense`; an embedding is no faster for it.
        x = hidden.reshape(-1, hidden.shape[-1]) if self.axes == "dv" else hidden
        matrix = self.matrix.astype(hidden.dtype)
        logits = jnp.einsum(
            f"...d,{self.axes}->...v", x, matrix, preferred_element_type=jnp.float32
        ).reshape(*hidden.shape[:-1], -1)
        if self.bias is not None:
            logits = logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits


@dataclasses.dataclass(frozen=True)
class Linears:
    """Makes the linear maps of a model.

    Attributes:
      config: for their types, and the number of layers.
      rngs: for the initial values.
    """

    config: ModelConfig
    rngs: nnx.Rngs

    def __call__(
        self,
        inputs: int,
        outputs: int,
        *,
        use_bias: bool,
        kind: str = "matrix",
        split: P = COLUMNS,
        into_residual: bool = False,
    ) -> nnx.Linear:
        """Maps into the residual stream start smaller, by the number of them (GPT-2's way).

        `kind` and `split` are the matrix's, see `declared`.
        """
        stddev = INIT_STDDEV / (2 * self.config.num_layers) ** 0.5 if into_residual else INIT_STDDEV
        return nnx.Linear(
            inputs,
            outputs,
            use_bias=use_bias,
            dtype=jnp.dtype(self.config.dtype),
            param_dtype=jnp.dtype(self.config.param_dtype),
            kernel_init=rounded(nnx.initializers.normal(stddev)),
            dot_general=dot_general,
            kernel_metadata=declared(kind, split),
            rngs=self.rngs,
        )


def rounded(init: nnx.Initializer) -> nnx.Initializer:
    """The same draws in any type: float32 ones, rounded."""

    def draw(key: Any, shape: Any, dtype: Any = None, **how: Any) -> Array:
        return init(key, shape, jnp.float32, **how).astype(dtype)

    return draw


class Embedding(nnx.Embed):
    """A table of vectors; of tokens it is to be split by `LINES`.

    Args:
      rows: how many.
      features: D.
      config: for the parameters' type.
      rngs: for the initial values.
      split: over a mesh, see `declared`.
    """

    def __init__(
        self, rows: int, features: int, config: ModelConfig, rngs: nnx.Rngs, *, split: P = WHOLE
    ):
        super().__init__(
            rows,
            features,
            param_dtype=jnp.dtype(config.param_dtype),
            embedding_init=rounded(nnx.initializers.normal(INIT_STDDEV)),
            embedding_metadata=declared("embedding", split),
            rngs=rngs,
        )

    def __call__(self, inputs: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Their rows, float32."""
        return super().__call__(inputs).astype(jnp.float32)


class RMSNorm(nnx.Module):
    """RMS normalisation with a gain (arXiv 1910.07467)."""

    def __init__(self, dim: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))

    def gain(self) -> Float[Array, " D"]:
        """What the normalised x is multiplied by."""
        return self.scale[...]

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Along the last axis, in float32, given back in x's type."""
        gain = self.gain().reshape((1,) * (x.ndim - 1) + (-1,))
        return (rms_norm(x.astype(jnp.float32), self.epsilon) * gain).astype(x.dtype)


class CentredRMSNorm(RMSNorm):
    """RMS normalisation whose gain is 1 + the parameter, which starts at 0, as in Gemma."""

    def __init__(self, dim: int, epsilon: float):
        super().__init__(dim, epsilon)
        self.scale = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def gain(self):  # noqa: D102
        return 1.0 + self.scale[...]


class LayerNorm(nnx.Module):
    """Layer normalisation with a gain and an offset (arXiv 1607.06450)."""

    def __init__(self, dim: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Along the last axis, in float32, given back in x's type."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        shape = (1,) * (x.ndim - 1) + (-1,)
        gain, offset = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return (rms_norm(centred, self.epsilon) * gain + offset).astype(x.dtype)


NORMS: dict[str, type[RMSNorm | LayerNorm]] = {
    "rms": RMSNorm,
    "centred_rms": CentredRMSNorm,
    "layer": LayerNorm,
}
"""What `config.model.norm` may be."""

ATTENTION_BIASES = ("", "qkv", "qkvo")
"""What `config.model.attention_bias` may be."""

GATES = {"gated": jax.nn.silu, "geglu": jax.nn.gelu}
"""Of gated MLPs, what becomes of the gate; `jax.nn.gelu` is the approximation with tanh."""

MLPS = (*GATES, "plain", "erf")
"""What `config.model.mlp` may be."""


class SelfAttention(nnx.Module):
    """Projections around the attention seam; queries in groups share a head of keys and values.

    Args:
      hidden_size: D.
      num_heads: N, of queries.
      num_kv_heads: K, of keys and values.
      head_dim: H.
      bias: on which maps, of "qkvo".
      qk_norm: makes a normalisation of every query, and of every key; None for none.
      method: of attention.
      causal: whether keys after the query are hidden.
      linear: makes the maps.
    """

    def __init__(
        self, *, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: str,
        qk_norm: Callable[[], RMSNorm] | None, method: AnyMethod, causal: bool, linear: Linears,
    ):  # fmt: skip
        self.head_dim = head_dim
        self.q_proj = linear(hidden_size, num_heads * head_dim, use_bias="q" in bias)
        self.k_proj = linear(hidden_size, num_kv_heads * head_dim, use_bias="k" in bias)
        self.v_proj = linear(hidden_size, num_kv_heads * head_dim, use_bias="v" in bias)
        self.o_proj = linear(
            num_heads * head_dim, hidden_size, use_bias="o" in bias, split=LINES,
            into_residual=True,
        )  # fmt: skip
        self.q_norm = None if qk_norm is None else qk_norm()
        self.k_norm = None if qk_norm is None else qk_norm()
        self.attention = Attention(
            method, hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads,
            head_dim=head_dim, causal=causal,
        )  # fmt: skip

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What attention adds to x, and what else `call` gives."""
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (dense(p, x).reshape(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, extra = call(self.attention, q, k, v, x)
        return dense(self.o_proj, out.reshape(*x.shape[:2], -1)), extra


class MLP(nnx.Module):
    """down(silu(gate x) * up x), down(gelu(gate x) * up x), or down(gelu(up x)).

    Args:
      hidden_size: D.
      intermediate_size: inside.
      kind: "gated" (SwiGLU), "geglu", "plain" (GELU) or "erf" (GELU as it is defined, where the
        others take its approximation with tanh).
      use_bias: on every map.
      linear: makes the maps.
    """

    def __init__(
        self, *, hidden_size: int, intermediate_size: int, kind: str, use_bias: bool,
        linear: Linears,
    ):  # fmt: skip
        self.kind = kind
        up = hidden_size, intermediate_size
        self.gate_proj = linear(*up, use_bias=use_bias) if kind in GATES else None
        self.up_proj = linear(*up, use_bias=use_bias)
        self.down_proj = linear(
            intermediate_size, hidden_size, use_bias=use_bias, split=LINES, into_residual=True
        )

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What the MLP adds to x."""
        up = dense(self.up_proj, x)
        if self.gate_proj is None:
            inner = jax.nn.gelu(up, approximate=self.kind == "plain")
        else:
            inner = GATES[self.kind](dense(self.gate_proj, x)) * up
        return dense(self.down_proj, inner)


def dropped(dropout: nnx.Dropout, x: Array, key: Array | None, place: int) -> Array:
    """x with dropout of its own at each place of a layer; without a key as it is."""
    rngs = None if key is None else jax.random.fold_in(key, place)
    return dropout(x, deterministic=key is None, rngs=rngs)
