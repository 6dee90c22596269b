"""What a model costs at a length, by its sizes and its methods: operations, and a cache's bytes."""

import functools
import math

import jax
import numpy as np
from flax import nnx

from lenext.attention import AnyMethod, HeadMethods, Method
from lenext.models.kv_cache import empty_cache
from lenext.models.language_model import LanguageModel
from lenext.models.parts import kinds_of
from lenext.parallel.memory import bytes_of


def forward_flops(model: LanguageModel, length: int, predictions: int) -> float:
    """Floating-point operations of a sequence's forward pass: two a multiplication and addition.

    Counted are the products with matrices, and of each query with each key that it sees, so a
    window counts what is in it: what the method asks for, which an implementation may exceed.
    Element-wise operations are not, nor what an axis computes of its own.

    Args:
      model: with its methods; its parameters may be shapes.
      length: of the sequence, in tokens.
      predictions: of its tokens, at how many logits are made.
    """
    kinds = kinds_of(model)
    sizes = {
        ".".join(map(str, path)): math.prod(parameter.shape)
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    table = model.config.vocab_size * model.config.hidden_size  # makes the logits, tied or not
    # Of kind "head" is that table, unless it is the embedding's, and what a last step has.
    matrices = sum(sizes[name] for name, kind in kinds.items() if kind in ("matrix", "head"))
    matrices -= 0 if _is_tied(model) else table
    causal = model.objective == "causal_lm"
    attention = model.attention_channels * sum(
        share * _pairs(method, length, causal=causal)
        for layer in model.methods
        for method, share in _shares(layer)
    )
    return 2.0 * (matrices * length + table * predictions + attention)


def cache_bytes(model: LanguageModel, length: int) -> int | None:
    """Bytes of the keys and values that generating a sequence of the length holds.

    None for a model that does not generate.
    """
    if model.objective != "causal_lm":
        return None
    config = model.config
    caches = jax.eval_shape(
        lambda: [
            empty_cache(
                method, 1, length, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
                head_dim=config.key_size, dtype=config.dtype,
            )
            for method in model.methods
        ]
    )  # fmt: skip
    return bytes_of([(cache.k, cache.v, cache.gates) for layer in caches for cache in layer])


def _is_tied(model: LanguageModel) -> bool:
    """Whether the embedding makes the logits."""
    graphdef, state = nnx.split(model)
    axes: list[str] = []
    jax.eval_shape(lambda x: axes.append(nnx.merge(graphdef, x).head_weights().axes), state)
    return axes == ["vd"]


def _shares(method: AnyMethod) -> list[tuple[Method, float]]:
    """Each method of a layer with its share of the heads."""
    if isinstance(method, HeadMethods):
        whole = sum(method.shares)
        shares = (share / whole for share in method.shares)
        return list(zip(method.methods, shares, strict=True))
    return [(method, 1.0)]


@functools.cache
def _pairs(method: Method, length: int, *, causal: bool) -> int:
    """Queries and keys that see each other, of a sequence."""
    row = np.arange(length, dtype=np.int64)
    keeps = method.visibility.keeps()
    first, window = (0, length) if keeps is None else keeps
    low = np.maximum(row - window + 1, 0)
    high = row + 1 if causal else np.minimum(row + window, length)
    return int(np.sum(high - low + np.minimum(first, low)))
