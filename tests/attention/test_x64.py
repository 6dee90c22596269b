"""Where JAX's default types are 64 bits wide (JAX_ENABLE_X64=1), no array here becomes so.

Programs are traced and not compiled: a type that is left to the default shows in them, and loops
and branches whose types differ raise.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import (
    attend,
    attention_weights,
    count_tokens,
    init_gates,
    make_gates,
    make_method,
    row_statistics,
)
from lenext.models import Decoder, Encoder, GAUEncoder, ModelConfig, take_apart, token_figures
from lenext.models.cross_entropy import cross_entropy
from lenext.models.parts import Head
from tests.attention.common import EVERY_NAME, inputs, unequal_params

KEYS = 40  # in tiles of 16: several, of which the last is not full
FIRST = np.arange(KEYS, dtype=np.int32)[None] < 23
IDS = np.where(FIRST, np.int32(7), np.int32(-2))
PACK: dict[str, Any] = {
    "kv_mask": np.arange(KEYS)[None] < 37, "q_segment_ids": IDS, "kv_segment_ids": IDS,
    "length": np.where(FIRST, np.int32(23), np.int32(14)),
}  # fmt: skip


def wide_arrays(function, *arguments):
    """The arrays of 64-bit numbers in what `function` computes; single numbers are no arrays."""
    with jax.enable_x64(True):
        program = str(jax.make_jaxpr(function)(*arguments))
    return sorted(set(re.findall(r"\b[fiuc](?:64|128)\[\d.*?\]", program)))


def test_wide_arrays_are_found():
    assert wide_arrays(lambda x: jax.jit(jnp.cumsum)(x > 0), np.zeros(3, np.float32)) == ["i64[3]"]
    assert wide_arrays(lambda x: x * np.arange(3.0), np.zeros(3, np.float32)) == ["f64[3]"]


def in_tiles(made, places, q, k, v, params=None):
    """Tiles, or blocks of rows where rows are to be complete; gates of the first head's queries."""
    gates, of_gates = None, init_gates(made, q.shape[2], q.shape[3])
    if of_gates:
        gates = make_gates(made, of_gates, q[:, :, 0], num_heads=q.shape[2])
    return attend(
        q, k, v, made, causal=True, params=params, gates=gates, implementation="blockwise",
        block_size=16, **places,
    )  # fmt: skip


@pytest.mark.parametrize("method", EVERY_NAME)
def test_methods(method):
    """In a pack, with lengths that are traced."""
    made = make_method(method, train_length=16)
    arguments = (*inputs(1, 1, KEYS, KEYS), unequal_params(made))
    assert wide_arrays(functools.partial(in_tiles, made, PACK), *arguments) == []


@pytest.mark.parametrize(
    "method", ["softmax", "lssar", "yarn", "sparsemax", "rerope", "windowed", "forgetting"]
)
@pytest.mark.parametrize("places", [{}, PACK], ids=["plain", "pack"])
def test_gradients(method, places):
    """Of what the implementations differ in: tiles, two stages of them, blocks, pieces, windows."""
    made = make_method(method, train_length=16)

    def gradients(*arguments):
        out, pull = jax.vjp(functools.partial(in_tiles, made, places), *arguments)
        return pull(jnp.ones_like(out))

    assert wide_arrays(gradients, *inputs(1, 1, KEYS, KEYS)) == []


def test_looks_and_counts():
    made = make_method("yarn+infoscale", train_length=16)

    def looks(q, k):
        pack: dict[str, Any] = PACK | {"length": count_tokens(PACK["kv_mask"], IDS, KEYS)}
        return attention_weights(q, k, made, **pack), row_statistics(q, k, made, **pack)

    assert wide_arrays(looks, *inputs(1, 1, KEYS, KEYS)[:2]) == []


SIZES = ModelConfig(
    vocab_size=13, hidden_size=16, intermediate_size=24, num_heads=2, num_kv_heads=2, key_size=8,
    num_layers=2, max_positions=64,
)  # fmt: skip


@pytest.mark.parametrize("family", [Decoder, Encoder, GAUEncoder])
def test_models(family):
    """From initial values to the gradients of a loss, with a look at some rows."""
    made = make_method("rerope+infoscale", train_length=16)
    tokens = np.ones((2, KEYS), np.int32)
    batch = {"tokens": tokens, "targets": tokens, "predicted": tokens, "segment_ids": tokens}
    batch |= {"weights": np.ones((2, KEYS), np.float32), "mask": tokens > 0}

    def gradients(batch, probe):
        graphdef, params = nnx.split(family(SIZES, made, rngs=nnx.Rngs(0)))

        def loss(params):
            figures = token_figures(nnx.merge(graphdef, params), batch, probe=probe)
            return jnp.sum(figures.loss), figures

        return jax.grad(loss, has_aux=True)(params)

    assert wide_arrays(gradients, batch, np.arange(4, dtype=np.int32)) == []


def test_decoding():
    """A prompt of three tokens and one more, over caches."""
    made = make_method("streaming_llm(window=4)+infoscale", train_length=16)

    def two_steps(first):
        model = take_apart(Decoder(SIZES, made, rngs=nnx.Rngs(0)))
        _, caches = model.step(jnp.ones((1, 3), jnp.int32), first, model.empty_caches(1, 9))
        return model.step(jnp.ones((1, 1), jnp.int32), first + 3, caches)

    assert wide_arrays(two_steps, np.int32(0)) == []


def test_losses_in_chunks():
    def losses(hidden, matrix, targets):
        def loss(hidden, matrix):
            return cross_entropy(hidden, Head(matrix, None, "vd"), targets, chunk=5).loss

        out, pull = jax.vjp(loss, hidden, matrix)
        return pull(out)

    hidden, matrix = np.ones((1, 4, 8), np.float32), np.ones((13, 8), np.float32)
    assert wide_arrays(losses, hidden, matrix, np.ones((1, 4), np.int32)) == []
