"""Attention maps against float64 NumPy: by hand in the first layer, by what comes out in all."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.config import read_methods
from lenext.models import Decoder, GAUEncoder, ModelConfig, attention_maps
from tests.models.common import weights_of

GAU = ModelConfig(vocab_size=11, hidden_size=12, intermediate_size=20, key_size=8, num_layers=3)
DECODER = ModelConfig(
    vocab_size=11, hidden_size=24, intermediate_size=20, num_layers=3, num_heads=4,
    num_kv_heads=2, key_size=8,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 15))


def build(family, methods):
    cls, sizes = {"gau": (GAUEncoder, GAU), "decoder": (Decoder, DECODER)}[family]
    model = cls(sizes, read_methods(methods, 4), rngs=nnx.Rngs(0))
    # Small initial maps and gains of one would make all weights nearly equal.
    rng = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if "learned" not in path:
            centre = 1.0 if path[-1] == "scale" else 0.0
            leaf[...] = jnp.asarray(rng.normal(centre, 0.4, leaf.shape), jnp.float32)
    return model


def norm(x, epsilon, gain=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def silu(x):
    return x / (1 + np.exp(-x))


def gau_layers(p, tokens, maps):
    """Hidden states from the maps in place of attention, and the first layer's q and k."""
    first = None
    x = norm(p["word_embedding.embedding"][tokens] + p["type_embedding.embedding"][0], 1e-12)
    for i, weights in enumerate(maps):
        h = silu(x @ p[f"layers.{i}.i_dense.kernel"])
        u, v, z = h[..., :20], h[..., 20:40], h[..., 40:]
        q, k = z * p[f"layers.{i}.q_scale.scale"], z * p[f"layers.{i}.k_scale.scale"]
        first = (q[:, None], k[:, None]) if first is None else first
        x = norm(x + (u * (weights[:, 0] @ v)) @ p[f"layers.{i}.o_dense.kernel"], 1e-12)
    return x, first


def decoder_layers(p, tokens, maps):
    """The same of the decoder: query heads 0, 1 and 2, 3 share a head of keys and values."""
    first = None
    x = p["embedding.embedding"][tokens]
    for i, weights in enumerate(maps):
        at = f"layers.{i}.self_attention"
        h = norm(x, 1e-6, p[f"layers.{i}.attention_norm.scale"])
        q, k, v = (
            (h @ p[f"{at}.{name}_proj.kernel"]).reshape(2, 15, -1, 8).swapaxes(1, 2)
            for name in "qkv"
        )
        k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
        first = (q, k) if first is None else first
        out = (weights @ v).swapaxes(1, 2).reshape(2, 15, -1)
        x = x + out @ p[f"{at}.o_proj.kernel"]
        h, at = norm(x, 1e-6, p[f"layers.{i}.mlp_norm.scale"]), f"layers.{i}.mlp"
        inner = silu(h @ p[f"{at}.gate_proj.kernel"]) * (h @ p[f"{at}.up_proj.kernel"])
        x = x + inner @ p[f"{at}.down_proj.kernel"]
    return norm(x, 1e-6, p["norm.scale"]), first


LAYERS = {"gau": gau_layers, "decoder": decoder_layers}


def rope_softmax(q, k, causal, step=1):
    """Softmax of q·k/√8 with rotated interleaved pairs, [B, N, T, T]; tokens `step` apart."""
    turns = np.exp(1j * step * np.arange(15)[:, None] * 10000.0 ** (-np.arange(0, 8, 2) / 8))
    a, b = ((x[..., 0::2] + 1j * x[..., 1::2]) * turns for x in (q, k))
    logits = (a @ b.conj().swapaxes(-1, -2)).real / np.sqrt(8)
    if causal:
        logits[..., np.triu(np.ones((15, 15), bool), 1)] = -np.inf
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", ["gau", "decoder"])
@pytest.mark.parametrize("methods", ["softmax", "rerope(window=3)+log_length|cosscale|lssar"])
def test_maps_times_values_are_what_the_model_computes(family, methods):
    model = build(family, methods)
    maps = attention_maps(model, TOKENS)
    assert maps.shape == (3, 2, {"gau": 1, "decoder": 4}[family], 15, 15)
    assert maps.dtype == jnp.float32
    hidden, _ = model.encode(jnp.asarray(TOKENS))
    ours, (q, k) = LAYERS[family](weights_of(model), TOKENS, np.asarray(maps, np.float64))
    np.testing.assert_allclose(hidden, ours, atol=1e-4)
    if methods == "softmax":
        causal = family == "decoder"
        np.testing.assert_allclose(maps[0], rope_softmax(q, k, causal), atol=2e-5)
        rows = np.array([12, 5])
        some = attention_maps(model, TOKENS, rows=rows, positions=3 * np.arange(15))
        apart = rope_softmax(q, k, causal, step=3)[:, :, rows]
        np.testing.assert_allclose(some[0], apart, atol=2e-5)


@pytest.mark.parametrize("family", ["gau", "decoder"])
def test_padding_and_other_documents_get_no_weight(family):
    model = build(family, "softmax")
    mask = np.arange(15)[None] < np.array([[15], [9]])
    padded = np.asarray(attention_maps(model, TOKENS, mask=mask))
    assert np.all(padded[:, 1, :, :, 9:] == 0)
    np.testing.assert_allclose(padded[:, 1, :, :9].sum(-1), 1, atol=1e-5)
    ids = np.repeat([[3, 7]], [6, 9], axis=1).repeat(2, axis=0)
    packed = np.asarray(attention_maps(model, TOKENS, segment_ids=ids))
    assert np.all(packed[..., :6, 6:] == 0)
    assert np.all(packed[..., 6:, :6] == 0)
    np.testing.assert_allclose(packed.sum(-1), 1, atol=1e-5)
