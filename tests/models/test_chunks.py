"""Layers over part after part of a sequence, against all of it at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model, language_model
from tests.models.common import fill

L, TOKENS = 64, 700
CASES = [
    ("gau", "softmax"),
    ("gau", "lssar"),
    ("gau", "lm_infinite(window=200,sinks=3)"),
    ("gau", "softmax|windowed(window=50)+log_length"),
    ("decoder", "rerope(window=20)+infoscale"),
    ("decoder", "dual_chunk"),
    ("decoder", "alibi"),
    ("decoder", "chunked"),
    ("decoder", "sparsemax"),  # complete rows
    ("decoder", "lm_infinite(window=200,sinks=3)"),
]


def build(family, methods, implementation="auto"):
    config = base_config().model
    config.update(
        family=family, hidden_size=16, intermediate_size=24, key_size=8, num_layers=2, num_heads=2,
        num_kv_heads=1 if family == "decoder" else 2,
    )  # fmt: skip
    model = build_model(config, read_methods(methods, L), 50, seed=0)
    rng = np.random.default_rng(0)
    fill(model, lambda name, shape: rng.normal(size=shape) / 4)
    model.layers.attention.implementation = implementation
    return model


@pytest.fixture
def parts(monkeypatch):
    """The sizes of the parts that a layer was run in, each time that it was."""
    run, done = language_model.run_in_chunks, []

    def noted(*args, size):
        done.append(size)
        return run(*args, size=size)

    monkeypatch.setattr(language_model, "run_in_chunks", noted)
    monkeypatch.setattr(language_model, "LONG", TOKENS - 1)
    monkeypatch.setattr(language_model, "CHUNK", 256)
    return done


def both(model, **given):
    """In parts, and all at once: hidden states, and what was seen of rows."""
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 50, (2, TOKENS)))

    @functools.partial(nnx.jit, static_argnames="in_parts")
    def run(model, given, in_parts):
        return model.encode(tokens, in_parts=in_parts, **given)

    return [run(model, given, in_parts=in_parts) for in_parts in (True, False)]


def agree(ours, whole, seen):
    np.testing.assert_allclose(ours[0], whole[0], atol=2e-5)
    for name in seen:
        a, b = (getattr(rows, name) for rows in (ours[1], whole[1]))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("family", "methods"), CASES)
def test_as_all_at_once(family, methods, parts):
    model = build(family, methods, "blockwise")
    probe = jnp.asarray([3, 300, 699])
    agree(*both(model, probe=probe), ["entropy", "dilution", "max_logit", "keys"])
    assert parts == [256]  # one layer is traced for all


@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_padding_on_both_sides(implementation, parts):
    at = np.arange(TOKENS)
    mask = jnp.asarray(np.stack([(at >= 40) & (at < 650), at < 523]))
    model = build("encoder", "lm_infinite(window=200,sinks=3)+infoscale", implementation)
    ours, whole = both(model, mask=mask)
    agree((ours[0][mask], None), (whole[0][mask], None), [])
    assert parts == [256]


@pytest.mark.parametrize("methods", ["forgetting", "softmax/nope"])
def test_what_goes_as_one(methods, parts):
    agree(*both(build("decoder", methods)), [])
    assert not parts


def test_packs_go_as_one(parts):
    ids = jnp.broadcast_to(jnp.arange(TOKENS) // 300, (2, TOKENS))
    agree(*both(build("decoder", "softmax"), segment_ids=ids), [])
    assert not parts


def test_memory(compiled_as_for_users):
    """Of 131 072 tokens: what enters a layer, keys and values, and parts of the rest."""
    model = build("gau", "windowed(window=50)")
    graphdef, params = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, 131072), jnp.int32)

    @functools.partial(jax.jit, static_argnames="in_parts")
    def run(params, tokens, in_parts):
        return nnx.merge(graphdef, params).encode(tokens, in_parts=in_parts)[0]

    held = {
        in_parts: run.lower(params, tokens, in_parts).compile().memory_analysis().temp_size_in_bytes
        for in_parts in (True, False)
    }
    a_token = 4 * (16 + 8 + 24)
    assert held[True] < 2 * 131072 * a_token < held[False]
