"""Inputs and compiled functions that the files of this folder share.

Compiling is what takes the time here, so the files agree on few shapes, and on spelling out the
arguments about places: a call that gives none of them is another program.
"""

import contextlib
import functools
import json
import os
import pathlib

import jax
import jaxtyping
import numpy as np
import pytest

from lenext.attention import (
    attend,
    attention_weights,
    init_params,
    make_method,
    method_names,
    method_options,
    row_statistics,
)
from tests.attention.reference import METHODS
from tests.attention.stand_ins import gates_for

TRAIN_LENGTH = 16
HEADS, KV_HEADS, DIM, V_DIM = 4, 2, 16, 6  # N, K, H, Hv

# The public surface: what callers may count on.
SURFACE = [
    "softmax",
    "softmax_plus",
    "log_length",
    "infoscale",
    "cosscale",
    "infoscale_cosscale",
    "entropy_matched",
    "lssa",
    "lssar",
    "reweighted_softmax",
    "reweighted_sigmoid",
    "pi",
    "ntk",
    "dynamic_ntk",
    "yarn",
    "llama3",
    "longrope",
    "rerope",
    "leaky_rerope",
    "rerope_log",
    "self_extend",
    "lm_infinite",
    "streaming_llm",
    "windowed",
    "alibi",
    "nope",
    "p_rope",
    "kerple_log",
    "fire",
    "ssmax",
    "ssa",
    "adaptive",
    "llama4",
    "mistral3",
    "scale_invariant",
    "sigmoid",
    "relu",
    "relu2",
    "softmax1",
    "sparsemax",
    "soft",
    "softmax_sink",
    "entmax",
    "stick_breaking",
    "dual_chunk",
    "t5_bias",
    "chunked",
    "forgetting",
    "asentmax",
]

COMPOSITIONS = [
    "rerope+infoscale",
    "yarn+infoscale",
    "lm_infinite+log_length",
    "rerope+lssa",
    "rerope(window=20)+infoscale",
    "rerope(rotary_dim=6,logit_scale=0.3)+infoscale",
    "yarn(rotary_dim=12)",
    "softmax(softcap=0.7)+alibi+log_length",
    "t5_bias(scaled=False)+infoscale(scales_bias=True)",
]

# Every choice that a name of the catalogue makes, several of them a method: their axes do not meet.
TOGETHER = [
    "softmax",
    "pi+softmax_plus",
    "ntk+log_length+reweighted_softmax",
    "yarn+infoscale",
    "dynamic_ntk+entropy_matched",
    "llama3+ssmax",
    "longrope+ssa",
    "rerope+llama4(floor=8)",
    "leaky_rerope+mistral3",
    "self_extend+cosscale",
    "alibi+soft",
    "nope+lssar",
    "p_rope+lssa",
    "kerple_log+sigmoid",
    "fire+relu",
    "scale_invariant+relu2",
    "streaming_llm+softmax1",
    "lm_infinite+sparsemax",
    "windowed+adaptive",
    "rerope_log+reweighted_sigmoid",
    "t5_bias+chunked+softmax_sink",
    "dual_chunk(mscale=True)+log_length",
    "stick_breaking+infoscale",
    "ntk+entmax+log_length",
    "forgetting+asentmax",
]

# What the transformers library computes, by golden/make_golden.py.
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "transformers.json").read_text())

# The same numbers to rounding, compiled in a fifth of the time. Tests that call `attend` itself
# compile as usual.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if "fusion_emitters" in os.environ["XLA_FLAGS"]:  # where this JAX has that option; see conftest.py
    QUICK["xla_cpu_use_fusion_emitters"] = False


def known_to_reference(method: str) -> str:
    """The method, or a skipped test that says what a new name in the catalogue needs.

    Names of the public surface cannot lose theirs: `test_every_name_has_a_reference`.
    """
    for part in method.split("+"):
        name = part.split("(")[0]
        if name not in METHODS:
            pytest.skip(
                f"{name!r} has no reference: add it to METHODS in tests/attention/reference.py"
            )
    return method


def inputs(seed: int, batch: int, queries: int, keys: int, dim: int = DIM):
    """Float32 q [B, T, N, H], k [B, S, K, H] and v [B, S, K, Hv], normal, |q k| / sqrt(H) ~ 1."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, queries, HEADS, dim)).astype(np.float32),
        rng.normal(size=(batch, keys, KV_HEADS, dim)).astype(np.float32),
        rng.normal(size=(batch, keys, KV_HEADS, V_DIM)).astype(np.float32),
    )


def beyond_its_floor(method: str, train_length: int):
    """The method; where it has a `floor`, with one that short sequences get beyond."""
    options = {"floor": 8} if "floor" in method_options(method) else {}
    return make_method(method, train_length=train_length, **options)


def everywhere(batch: int, queries: int, keys: int) -> dict[str, np.ndarray]:
    """Every argument about places, spelled out to say nothing: the defaults."""
    return {
        "q_positions": np.tile(np.arange(keys - queries, keys), (batch, 1)),
        "kv_positions": np.tile(np.arange(keys), (batch, 1)),
        "kv_mask": np.ones((batch, keys), bool),
        "q_segment_ids": np.zeros((batch, queries), np.int32),
        "kv_segment_ids": np.zeros((batch, keys), np.int32),
        "length": np.full((batch, keys), keys),
    }


def hiding(batch: int, length: int) -> dict[str, np.ndarray]:
    """The arguments that hide keys, spelled out to hide none."""
    places = everywhere(batch, length, length)
    return {name: places[name] for name in ("kv_mask", "q_segment_ids", "kv_segment_ids")}


def completed(method, q, k, places):
    """A test's places, with the number of keys for the length where they say nothing of it.

    And with gates of what stands there, where the method has some.
    """
    gates = gates_for(method, q, k, places.get("kv_mask"))
    return {"length": k.shape[1], "gates": gates} | places


def unequal_params(method, dim: int = DIM):
    """Learned parts off their initial values, other in each head, so that a mix-up shows."""
    rng = np.random.default_rng(0)

    def moved(x):
        moved = x * rng.uniform(0.7, 1.4, size=x.shape) + rng.uniform(0, 0.2, size=x.shape)
        return moved.astype(np.float32)

    return jax.tree.map(moved, init_params(method, HEADS, dim))


@contextlib.contextmanager
def unchecked_types():
    """As users have it: while tests run, annotations are checked before lenext's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@functools.partial(
    jax.jit,
    static_argnames=("method", "causal", "implementation", "block_size"),
    compiler_options=QUICK,
)
def value_and_grads(
    q, k, v, cotangent, params, places, *, method, causal, implementation, block_size=None
):
    """attend's output and the cotangent pulled back to (q, k, v, params)."""

    def function(q, k, v, params):
        return attend(
            q, k, v, method, causal=causal, params=params,
            implementation=implementation, block_size=block_size, **completed(method, q, k, places),
        )  # fmt: skip

    out, pull = jax.vjp(function, q, k, v, params)
    return out, pull(cotangent)


@functools.partial(
    jax.jit,
    static_argnames=("method", "causal", "implementation", "block_size"),
    compiler_options=QUICK,
)
def quick_attend(
    q, k, v, method, *, causal=False, implementation="naive", block_size=None, **places
):
    """attend, compiled quickly."""
    return attend(
        q, k, v, method, causal=causal,
        implementation=implementation, block_size=block_size, **completed(method, q, k, places),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("method", "causal"), compiler_options=QUICK)
def quick_weights(q, k, method, *, causal=False, **places):
    """attention_weights, compiled quickly."""
    return attention_weights(q, k, method, causal=causal, **completed(method, q, k, places))


@functools.partial(
    jax.jit, static_argnames=("method", "causal", "block_size"), compiler_options=QUICK
)
def quick_statistics(q, k, method, *, causal=False, block_size=None, **places):
    """row_statistics, compiled quickly."""
    return row_statistics(
        q, k, method, causal=causal, block_size=block_size, **completed(method, q, k, places)
    )


@functools.partial(jax.jit, static_argnames=("method", "causal"), compiler_options=QUICK)
def out_and_weights(q, k, v, params, places, *, method, causal):
    """attend's output and attention_weights."""
    places = completed(method, q, k, places)
    return (
        attend(q, k, v, method, causal=causal, params=params, implementation="naive", **places),
        attention_weights(q, k, method, causal=causal, params=params, **places),
    )


def ways(method: str) -> tuple[bool, ...]:
    """Whether causal, in the ways in which the method is defined."""
    only = make_method(method, train_length=TRAIN_LENGTH).causal_only
    return (True,) if only else (False, True)


EVERY_NAME = method_names()
EVERY_METHOD = EVERY_NAME + COMPOSITIONS


def in_every_way(methods):
    """A mark: a test of each method, bidirectional and causal."""
    cases = [
        pytest.param(method, causal, id=f"{method}-{'causal' if causal else 'bidirectional'}")
        for method in methods
        for causal in ways(method)
    ]
    return pytest.mark.parametrize(("method", "causal"), cases)
