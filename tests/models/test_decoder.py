"""The decoder against an independent float64 forward pass, and what it must never do."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import init_params, make_method, method_options
from lenext.config import base_config, read_methods
from lenext.models import Decoder, ModelConfig, build_model, model_methods, take_apart
from lenext.models.attention import Context
from tests.models.common import weights_of

SIZES = ModelConfig(
    vocab_size=13, hidden_size=24, intermediate_size=20, num_layers=3, num_heads=4,
    num_kv_heads=2, key_size=8,
)  # fmt: skip
WINDOW = 5


def build(methods="softmax", **changes):
    sizes = dataclasses.replace(SIZES, **changes)
    model = Decoder(sizes, read_methods(methods, 8), rngs=nnx.Rngs(0))
    # Initial gains of one, biases of zero and small maps would hide whether they are applied.
    rng = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if "learned" in path and not str(path[-2]).endswith("_gates"):
            continue
        centre = 1.0 if path[-1] == "scale" else 0.0
        leaf[...] = jnp.asarray(rng.normal(centre, 0.3, leaf.shape), jnp.float32)
    return model


def tokens_of(batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 13, (batch, length)), jnp.int32)


def forward(p, sizes, tokens):
    """One sequence's logits, loops and complex rotations, in float64."""

    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain

    def linear(x, name):
        return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0.0)

    heads, groups, width = sizes.num_heads, sizes.num_kv_heads, sizes.key_size
    turns = np.exp(
        1j * np.arange(len(tokens))[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    )
    x = p["embedding.embedding"][tokens]
    for i in range(sizes.num_layers):
        at, h = f"layers.{i}.self_attention", norm(x, p[f"layers.{i}.attention_norm.scale"])
        q = linear(h, f"{at}.q_proj").reshape(-1, heads, width)
        k = linear(h, f"{at}.k_proj").reshape(-1, groups, width)
        v = linear(h, f"{at}.v_proj").reshape(-1, groups, width)
        if sizes.qk_norm:
            q, k = norm(q, p[f"{at}.q_norm.scale"]), norm(k, p[f"{at}.k_norm.scale"])
        out = np.zeros_like(q)
        for head in range(heads):
            group = head // (heads // groups)
            a = (q[:, head, 0::2] + 1j * q[:, head, 1::2]) * turns
            b = (k[:, group, 0::2] + 1j * k[:, group, 1::2]) * turns
            logits = (a @ b.conj().T).real / np.sqrt(width)
            logits[np.triu_indices(len(tokens), 1)] = -np.inf
            e = np.exp(logits - logits.max(axis=-1, keepdims=True))
            out[:, head] = e / e.sum(axis=-1, keepdims=True) @ v[:, group]
        x = x + linear(out.reshape(len(tokens), -1), f"{at}.o_proj")
        h = norm(x, p[f"layers.{i}.mlp_norm.scale"])
        up = linear(h, f"layers.{i}.mlp.up_proj")
        if sizes.mlp == "gated":
            gate = linear(h, f"layers.{i}.mlp.gate_proj")
            inner = gate / (1 + np.exp(-gate)) * up
        else:  # GELU in its tanh form, as GPT-2 has it
            inner = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(inner, f"layers.{i}.mlp.down_proj")
    x = norm(x, p["norm.scale"])
    return linear(x, "head") if "head.kernel" in p else x @ p["embedding.embedding"].T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp": "plain", "use_bias": True, "tied_head": False},
        {"qk_norm": True, "num_kv_heads": 4},
        {"num_kv_heads": 1, "remat": True},
    ],
)
def test_forward_pass(changes):
    model = build(**changes)
    tokens = tokens_of(2, 15)
    logits = np.asarray(model(tokens))
    for row in range(2):
        expected = forward(weights_of(model), model.config, np.asarray(tokens[row]))
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)


def test_bfloat16_is_near_and_logits_are_float32():
    exact, rounded = build()(tokens_of(2, 15)), build(dtype="bfloat16")(tokens_of(2, 15))
    assert rounded.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(rounded - exact))) < 0.05 * float(jnp.max(jnp.abs(exact)))
    assert not jnp.array_equal(rounded, exact)


@pytest.mark.parametrize(
    "method", ["softmax", "lssar", "rerope", "lm_infinite(window=5)", "sigmoid"]
)
def test_no_token_sees_a_later_one(method):
    model = build(method)
    x = model.embedding(tokens_of(1, 9))
    layers = take_apart(model).layers

    def states(x):
        for layer in layers:
            x, _ = layer(x, lambda a, *given: a(*given, Context()), dropout_key=None)
        return x[0]

    reach = jax.jacobian(lambda x: states(x).sum(axis=-1))(x)[:, 0]  # [output, input, D]
    seen = np.abs(np.asarray(reach)).max(axis=-1) > 0
    np.testing.assert_array_equal(np.triu(seen, 1), False)
    assert seen[np.arange(9), np.arange(9)].all()


def test_pattern_repeats_over_layers():
    names = "windowed(window=3)|windowed(window=3)|windowed(window=3)|nope"
    model = build(names, num_layers=8)
    expected = read_methods(names, 8) * 2
    assert model_methods(model) == expected
    # Each layer by itself, in order, gives what the scan over the pattern gives.
    tokens = tokens_of(2, 15)
    x = model.embedding(tokens)
    for layer in take_apart(model).layers:
        x, _ = layer(x, lambda a, *given: a(*given, Context()), dropout_key=None)
    np.testing.assert_allclose(model(tokens), model.logits(model.norm(x)), atol=1e-4)


@pytest.mark.parametrize(
    "method",
    ["softmax", "infoscale", "lssar", "alibi", "ssmax", "lm_infinite(window=5)", "yarn(scale=2)"],
)
def test_a_document_is_the_same_alone_padded_and_packed(method):
    model = build(method)
    first, second = tokens_of(1, 7, seed=1), tokens_of(1, 12, seed=2)
    padding = tokens_of(1, 4, seed=3)
    packed = jnp.concatenate([first, second, padding], axis=1)
    segment_ids = jnp.asarray([[1] * 7 + [2] * 12 + [0] * 4])
    together = model(packed, segment_ids=segment_ids)
    np.testing.assert_allclose(together[:, :7], model(first), atol=1e-4)
    np.testing.assert_allclose(together[:, 7:19], model(second), atol=1e-4)
    padded = model(jnp.concatenate([padding, second], axis=1), mask=jnp.arange(16)[None] >= 4)
    np.testing.assert_allclose(padded[:, 4:], model(second), atol=1e-4)


def test_row_statistics_of_a_pack_are_the_documents():
    model = build("infoscale")
    second = tokens_of(1, 12, seed=2)
    packed = jnp.concatenate([tokens_of(1, 7, seed=1), second], axis=1)
    segment_ids = jnp.asarray([[1] * 7 + [2] * 12])
    _, packed_rows = model.encode(packed, segment_ids=segment_ids, probe=jnp.asarray([7, 10, 18]))
    _, rows = model.encode(second, probe=jnp.asarray([0, 3, 11]))
    assert rows.entropy.shape == (3, 1, 4, 3)
    np.testing.assert_allclose(packed_rows.entropy, rows.entropy, atol=1e-5)
    np.testing.assert_allclose(packed_rows.max_logit, rows.max_logit, rtol=1e-4)
    np.testing.assert_array_equal(rows.entropy[..., 0], 0.0)  # it sees itself alone


@functools.partial(jax.jit, static_argnames="graphdef")
def quick_step(state, tokens, first, caches, length, *, graphdef):
    return nnx.merge(graphdef, state).step(tokens, first, caches, length)


def cached_logits(model, tokens, parts):
    """Logits after each part, of which the sizes are given; the length is that of all of them."""
    length, model = jnp.int32(tokens.shape[1]), take_apart(model)
    graphdef, state = nnx.split(model)
    caches, first, out = model.empty_caches(tokens.shape[0], tokens.shape[1]), 0, []
    for size in parts:
        part = tokens[:, first : first + size]
        logits, caches = quick_step(
            state, part, jnp.int32(first), caches, length, graphdef=graphdef
        )
        first += size
        out.append(logits)
    return jnp.stack(out, axis=1), caches


# One of each kind that a cache or its parts could trip: windows, sinks, positions inside the cache,
# ordinals, factors of the length, counts, learned parts. tests/attention does the same for every
# method without a model around it.
CACHED = ["softmax", "windowed", "lm_infinite", "streaming_llm", "self_extend", "leaky_rerope",
          "rerope_log", "yarn", "dynamic_ntk", "lssar", "fire", "ssa", "infoscale_cosscale",
          "llama4", "scale_invariant", "forgetting", "asentmax"]  # fmt: skip


@pytest.mark.parametrize("name", CACHED)
def test_prefill_equals_one_token_at_a_time(name):
    """Both equal the full context, at three times the training length."""
    windowed = "window" in method_options(name)
    options = "(window=5)" if windowed else ""
    # At a scale of 128 rounding of the last digit is seen in the fourth of the logits.
    options = "(cos_scale=16)" if "cosscale" in name else options
    # Two layers, so that the second one's keys follow from the first one's attention.
    model = build(name + options, num_layers=2)
    tokens = tokens_of(2, 25)
    expected = jax.jit(model.__call__)(tokens)
    one_by_one, caches = cached_logits(model, tokens, [1] * 25)
    np.testing.assert_allclose(one_by_one, expected, atol=2e-4)
    # Parts longer than a window and the training length, and one in between.
    ends = np.cumsum([11, 1, 11, 1, 1]) - 1
    in_parts, _ = cached_logits(model, tokens, [11, 1, 11, 1, 1])
    np.testing.assert_allclose(in_parts, expected[:, ends], atol=2e-4)
    places = {"windowed": WINDOW, "lm_infinite": 4 + WINDOW, "streaming_llm": 4 + WINDOW}
    places = places.get(name, 25)
    assert {side.shape for (cache,) in caches for side in cache.k} == {(4, places, 8)}


def test_heads_of_several_methods_have_a_cache_each():
    """Windows, a length that is followed, gates and learned parts, at several tokens and one."""
    names = "windowed(window=5)*1/pi*1/forgetting*2|lm_infinite(window=5)/ssmax"
    model = build(names, num_layers=2, num_heads=4, num_kv_heads=2)
    tokens = tokens_of(2, 25)
    expected = jax.jit(model.__call__)(tokens)
    for parts in ([1] * 25, [11, 1, 11, 1, 1]):
        ends = np.cumsum(parts) - 1
        logits, caches = cached_logits(model, tokens, parts)
        np.testing.assert_allclose(logits, expected[:, ends], atol=2e-4)
    assert [[cache.positions.size for cache in own] for own in caches] == [[5, 25, 25], [9, 25]]
    assert [[len(cache.v) for cache in own] for own in caches] == [[2, 2, 2], [2, 2]]


def test_a_windows_cache_holds_the_last_and_the_first():
    model = build("lm_infinite(window=5)|windowed(window=3)|softmax")
    _, caches = cached_logits(model, tokens_of(1, 20), [7, 1, 12])
    held = [sorted(np.asarray(cache.positions).tolist()) for (cache,) in caches]
    assert held == [[0, 1, 2, 3, 15, 16, 17, 18, 19], [17, 18, 19], list(range(20))]


@pytest.mark.parametrize("name", ["ssmax", "ssa", "kerple_log", "fire"])
def test_learned_parts_start_as_published_and_get_gradients(name):
    """In every layer, each part its own, and off to a start that a step of descent improves."""
    model = build(name)
    tokens = tokens_of(2, 20)
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)

    @jax.jit
    def loss_and_grads(params):
        def loss(params):
            logits = nnx.merge(graphdef, params)(tokens)[:, :-1]
            chosen = jax.nn.one_hot(tokens[:, 1:], 13)
            return -jnp.mean(jnp.sum(chosen * jax.nn.log_softmax(logits), axis=-1))

        return jax.value_and_grad(loss)(params)

    before, grads = loss_and_grads(params)
    method = model_methods(model)[0]
    trees = [tree["layers"]["self_attention"]["attention"] for tree in (params, grads)]
    learned = [tree["learned"][0] for tree in trees]
    for i in range(3):
        start, slope = jax.tree.map(operator.itemgetter(i), learned)
        initial = init_params(method, 4, 8)
        assert jax.tree.structure(start) == jax.tree.structure(initial)
        for ours, theirs in zip(jax.tree.leaves(start), jax.tree.leaves(initial), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        # A constant on all logits, FIRE's last bias, is the one part that softmax cannot feel.
        felt = [x for key, x in slope[next(iter(slope))].items() if key != "outer_bias"]
        assert all(np.any(np.abs(x) > 1e-7) for x in felt)

    def step(path, x, g):
        return x - 0.01 * g if "learned" in str(path) else x

    moved = jax.tree_util.tree_map_with_path(step, params, grads)
    assert loss_and_grads(moved)[0] < before


def test_initial_values():
    """Embeddings and maps of 0.02; into the residual stream smaller by sqrt(2 * layers)."""
    sizes = dataclasses.replace(SIZES, hidden_size=256, intermediate_size=256, vocab_size=256)
    model = Decoder(sizes, make_method("softmax", train_length=8), rngs=nnx.Rngs(0))
    layer = take_apart(model).layers[1]
    inner = [layer.mlp.up_proj, layer.self_attention.q_proj]
    outer = [layer.mlp.down_proj, layer.self_attention.o_proj]
    for part, expected in [(x, 0.02) for x in inner] + [(x, 0.02 / 6**0.5) for x in outer]:
        assert float(jnp.std(part.kernel[...])) == pytest.approx(expected, rel=0.05)
    assert float(jnp.std(model.embedding.embedding[...])) == pytest.approx(0.02, rel=0.05)


def test_config_reaches_the_model():
    config = base_config().model
    config.update(
        family="decoder", hidden_size=24, intermediate_size=20, key_size=6, num_layers=2,
        num_heads=4, num_kv_heads=2, mlp="plain", qk_norm=True, tied_head=False, remat=True,
        use_bias=True, dropout=0.25, dtype="bfloat16",
    )  # fmt: skip
    model = build_model(config, read_methods("lssa", 8), vocab_size=13, seed=3)
    assert model.config == ModelConfig(
        vocab_size=13, hidden_size=24, intermediate_size=20, num_layers=2, num_heads=4,
        num_kv_heads=2, key_size=6, mlp="plain", qk_norm=True, tied_head=False, dropout=0.25,
        use_bias=True, remat=True, dtype="bfloat16", norm_epsilon=1e-6,
    )  # fmt: skip
    config.num_kv_heads = 0
    model = build_model(config, read_methods("lssa", 8), 13, seed=3)
    assert model.layers.self_attention.k_proj.kernel.shape == (2, 24, 4 * 6)


def test_dropout_needs_a_key_and_follows_it():
    model = build(dropout=0.5)
    tokens = tokens_of(1, 9)
    plain, _ = model.encode(tokens)
    np.testing.assert_array_equal(plain, model.encode(tokens)[0])
    one, _ = model.encode(tokens, dropout_key=jax.random.key(0))
    again, _ = model.encode(tokens, dropout_key=jax.random.key(0))
    other, _ = model.encode(tokens, dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert not jnp.allclose(one, other)
    assert not jnp.allclose(one, plain)
