"""What stands under a False `kv_mask` counts for nothing, NaN and infinity too.

That holds for every method, in both passes, by the definition and in tiles: `test_guarantees` hides
NaN in all of its padding. Here are the other doors that keys come in by.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import (
    attention_weights,
    choose_implementation,
    make_method,
    row_statistics,
)
from lenext.models.attention import Attention
from tests.attention.common import DIM, QUICK, inputs

LENGTH = 24
MASK = np.arange(LENGTH)[None] % 5 > 0
NOTHING = [np.nan, np.inf, -np.inf, 3e38]  # whose square overflows


def hiding(x, value):
    """The array with `value` in what the mask hides."""
    return np.where(MASK[:, :, None, None], x, np.float32(value))


def weights(q, k, made):
    return attention_weights(q, k, made, kv_mask=MASK)


def entropies(q, k, made):
    return row_statistics(q, k, made, kv_mask=MASK).entropy


@pytest.mark.parametrize("method", ["soft", "rerope+lssar"])
@pytest.mark.parametrize("look", [weights, entropies])
def test_looks_at_the_rows_do_not_see_it(method, look):
    """Their numbers, and the gradients that a regulariser of the entropy takes."""
    made = make_method(method, train_length=8)
    q, k, _ = inputs(seed=1, batch=1, queries=LENGTH, keys=LENGTH)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def looked(q, k):
        seen, pull = jax.vjp(lambda q, k: look(q, k, made), q, k)
        return seen, pull(seen)

    expected = looked(q, hiding(k, 0))
    for value in NOTHING:
        seen = looked(q, hiding(k, value))
        jax.tree.map(np.testing.assert_array_equal, seen, expected)


@pytest.mark.parametrize("method", ["softmax", "streaming_llm(window=4)"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_empty_places_of_a_cache_count_for_nothing(method, tokens):
    """A first step of one token, or of three, into a cache that holds what is no key."""
    attention = Attention(
        make_method(method, train_length=8), hidden_size=6, num_heads=4, num_kv_heads=2,
        head_dim=DIM, causal=True,
    )  # fmt: skip
    q, k, v = map(jnp.asarray, inputs(seed=2, batch=2, queries=tokens, keys=tokens))
    x = jnp.ones((2, tokens, 6))
    (zeros,) = attention.empty_cache(2, 9, jnp.float32)
    zeros = zeros._replace(v=zeros.v[..., : v.shape[-1]])
    positions = jnp.arange(tokens, dtype=jnp.int32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(cache):
        return attention.step(q, k, v, x, positions, tokens, (cache,))[0]

    outs = [
        step(zeros._replace(k=tuple(k + off for k in zeros.k), v=zeros.v + off))
        for off in (0.0, 1e9)
    ]
    assert np.all(np.isfinite(outs[0]))
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_fused_kernels_are_not_shown_it(backend, monkeypatch):
    """They take the very call without a mask."""
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    made = make_method("softmax", train_length=8)
    q, k, v = (jnp.zeros((1, 256, 4, 64), jnp.bfloat16) for _ in range(3))
    taken = [choose_implementation(q, k, v, made, masked=masked) for masked in (False, True)]
    assert [choice.implementation for choice in taken] == ["fused", "naive"]
