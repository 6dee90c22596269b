"""Operations and bytes against counts by hand."""

import jax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.models import build_model, cache_bytes, forward_flops, with_method
from lenext.models.stack import take_apart

L = 8


def sizes(family, **changes):
    config = base_config().model
    config.update(
        family=family, hidden_size=16, intermediate_size=24, key_size=4, num_layers=3, num_heads=4,
        num_kv_heads=2, vocab_size=50,
    )  # fmt: skip
    config.update(changes)
    return config


def build(family, methods="softmax", **changes):
    return build_model(sizes(family, **changes), read_methods(methods, L), 50, seed=0)


def pairs(length, sees):
    return sum(sees(i, j) for i in range(length) for j in range(length))


def test_decoder():
    model = build("decoder", mlp="gated", tied_head=False)
    layer = 16 * (4 * 4) + 2 * 16 * (2 * 4) + (4 * 4) * 16 + 3 * 16 * 24  # q, k and v, o, MLP
    seen = pairs(11, lambda i, j: j <= i)
    # A pair of a head costs a product of queries and keys, and one of weights and values.
    by_hand = 2 * (11 * (3 * layer + 16 * 50) + 3 * seen * 4 * (4 + 4))
    assert forward_flops(model, 11, 11) == by_hand
    tied = build("decoder", mlp="gated", tied_head=True)
    assert forward_flops(tied, 11, 11) == by_hand  # the embedding makes the logits
    assert by_hand - forward_flops(tied, 11, 1) == 2 * 10 * 16 * 50


def test_gau():
    model = build("gau")
    layer = 16 * (2 * 24 + 4) + 24 * 16  # u, v and z; out
    by_hand = 2 * (3 * layer * 11 + 16 * 50 * 2 + 3 * 11 * 11 * (4 + 24))
    assert forward_flops(model, 11, 2) == by_hand


def test_encoder():
    model = build("encoder", num_kv_heads=4)
    layer = 4 * 16 * 16 + 2 * 16 * 24
    transform = 16 * 16  # of every token; the embedding then makes logits where some are asked for
    by_hand = 2 * ((3 * layer + transform) * 11 + 16 * 50 * 2 + 3 * 11 * 11 * 4 * (4 + 4))
    assert forward_flops(model, 11, 2) == by_hand


@pytest.mark.parametrize(
    ("family", "method", "sees"),
    [
        ("decoder", "windowed(window=3)", lambda i, j: 0 <= i - j < 3),
        ("gau", "windowed(window=3)", lambda i, j: abs(i - j) < 3),
        (
            "decoder",
            "streaming_llm(window=3,sinks=2)",
            lambda i, j: j <= i and (i - j < 3 or j < 2),
        ),
        ("gau", "lm_infinite(window=3,sinks=2)", lambda i, j: abs(i - j) < 3 or j < 2),
        ("decoder", "windowed(window=40)", lambda i, j: j <= i),
    ],
)
def test_a_window_counts_what_is_in_it(family, method, sees):
    model = build(family)
    seen = model.attention_channels * 2 * 3
    full = (lambda i, j: j <= i) if family == "decoder" else (lambda i, j: True)
    fewer = seen * (pairs(11, full) - pairs(11, sees))
    windowed = with_method(model, read_methods(method, L))
    assert forward_flops(model, 11, 4) - forward_flops(windowed, 11, 4) == fewer


def test_of_shapes_alone():
    model = build("decoder")
    shapes = nnx.eval_shape(lambda: build("decoder"))
    assert forward_flops(shapes, 9, 9) == forward_flops(model, 9, 9)
    assert cache_bytes(shapes, 9) == cache_bytes(model, 9)


@pytest.mark.parametrize(
    "methods",
    [
        "softmax",
        "windowed(window=3)|softmax|streaming_llm",
        "windowed(window=3)/forgetting|softmax",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_cache_are_those_that_generating_holds(methods, dtype):
    model = build("decoder", methods, dtype=dtype)
    apart = take_apart(model)
    for length in (2, 11):
        caches = [own for layer in apart.empty_caches(1, length) for own in layer]
        held = sum(x.nbytes for x in jax.tree.leaves([(x.k, x.v, x.gates) for x in caches]))
        assert cache_bytes(model, length) == held
    assert cache_bytes(build("gau"), 11) is None
