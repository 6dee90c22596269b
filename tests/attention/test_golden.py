"""Methods that other libraries have too: their numbers, kept in golden/.

Those of frequencies and slopes are in test_position.py.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attention_weights, make_method
from tests.attention.common import GOLDEN, quick_statistics, quick_weights

ENTMAX = json.loads((pathlib.Path(__file__).parent / "golden" / "entmax.json").read_text())


def unit_row(places: int):
    """q and k of ones in each of `places` rows and one key: q . k / sqrt(H) = 1."""
    q, k = np.zeros((places, 1, 1, 4), np.float32), np.zeros((places, 1, 1, 4), np.float32)
    q[..., 0], k[..., 0] = 2, 1
    return q, k


@pytest.mark.parametrize("kept", GOLDEN["temperatures"], ids=lambda x: str(x["floor"]))
@pytest.mark.parametrize("name", ["llama4", "mistral3"])
def test_temperatures_of_transformers(name, kept):
    """Llama 4's layer and Ministral 3's function; the latter's step is the training length."""
    steps = {"llama4": {"floor": kept["floor"]}, "mistral3": {}}[name]
    length = kept["floor"] if name == "mistral3" else 64
    made = make_method(name, train_length=length, beta=kept["beta"], position="none", **steps)
    count = len(kept[name])
    places = {"q_positions": np.arange(count)[:, None], "kv_positions": np.zeros((count, 1), int)}
    factors = np.ravel(quick_statistics(*unit_row(count), made, **places).max_logit)
    np.testing.assert_allclose(factors, kept[name], rtol=1e-6)


@pytest.mark.parametrize("kept", GOLDEN["sinks"], ids=lambda x: f"{x['sink']:g}-{len(x['logits'])}")
def test_sinks_of_transformers(kept):
    """gpt-oss's; softmax1 is one of logit 0."""
    logits = np.asarray(kept["logits"], np.float32)
    q, k = np.ones((1, 1, 1, 1), np.float32), logits[None, :, None, None]
    params = {"weighting": {"sink": np.array([kept["sink"]], np.float32)}}
    for name, learned in [("softmax_sink", params), *([("softmax1", {})] * (kept["sink"] == 0))]:
        made = make_method(name, train_length=4, position="none")
        ours = np.ravel(quick_weights(q, k, made, params=learned))
        np.testing.assert_allclose(ours, kept["weights"], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kept", ENTMAX, ids=lambda x: f"{x['alpha']:g}-{len(x['logits'])}")
def test_entmax_of_its_authors(kept):
    """Weights, and what they make of a cotangent, in float64."""
    logits, cotangent = np.array(kept["logits"]), np.array(kept["cotangent"])
    made = make_method("entmax", train_length=4, position="none", alpha=kept["alpha"])

    def weights(logits):
        q, k = jnp.ones((1, 1, 1, 1)), logits[None, :, None, None]
        return jnp.ravel(attention_weights(q, k, made))

    ours, pull = jax.vjp(weights, jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(ours, kept["weights"], atol=2e-6)
    (gradient,) = pull(jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(gradient, kept["gradient"], atol=2e-5)


def test_entmax_lies_between_softmax_and_sparsemax():
    q, k = np.ones((1, 1, 1, 1), np.float32), np.linspace(-2, 2, 9, dtype=np.float32)

    def weights(name):
        made = make_method(name, train_length=4, position="none")
        return np.ravel(quick_weights(q, k[None, :, None, None], made))

    np.testing.assert_allclose(weights("entmax(alpha=1)"), weights("softmax"), atol=1e-7)
    np.testing.assert_allclose(weights("entmax(alpha=1.001)"), weights("softmax"), atol=2e-3)
    np.testing.assert_allclose(weights("entmax(alpha=2)"), weights("sparsemax"), atol=1e-6)
    seen = [np.count_nonzero(weights(x)) for x in ("sparsemax", "entmax", "softmax")]
    assert seen == sorted(set(seen))


@pytest.mark.filterwarnings("ignore")  # those of a large library at import are not ours
def test_golden_values_are_what_entmax_computes():
    pytest.importorskip("entmax", reason="entmax is not installed: golden/ holds its values")
    from tests.attention.golden.make_entmax import compute

    for ours, theirs in zip(compute(), ENTMAX, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("way", ["causal", "both"])
def test_buckets_of_transformers(way):
    """T5's of every distance, read off a table that holds each bucket's own number."""
    expected = np.array(GOLDEN["buckets"][way])
    made = make_method("t5_bias", train_length=4)
    params = {"position": {"table": np.arange(32, dtype=np.float32)[:, None]}}
    delta = np.arange(201) if way == "causal" else np.arange(-200, 201)
    q, k = np.zeros((len(delta), 1, 1, 2), np.float32), np.ones((len(delta), 1, 1, 2), np.float32)
    places = {"q_positions": delta[:, None] + 200, "kv_positions": np.full((len(delta), 1), 200)}
    found = quick_statistics(q, k, made, causal=way == "causal", params=params, **places)
    np.testing.assert_array_equal(np.ravel(found.max_logit), expected)


@pytest.mark.parametrize("window", sorted(GOLDEN["windowed"]))
def test_windows_of_transformers(window):
    """Its masks of a causal sliding window."""
    q, k = np.zeros((1, 12, 1, 2), np.float32), np.ones((1, 12, 1, 2), np.float32)
    made = make_method("windowed", train_length=64, window=int(window))
    weights = np.asarray(quick_weights(q, k, made, causal=True))[0, 0]
    assert [np.flatnonzero(row).tolist() for row in weights] == GOLDEN["windowed"][window]


@pytest.mark.filterwarnings("ignore")  # those of two large libraries at import are not ours
def test_golden_values_are_what_transformers_computes():
    pytest.importorskip("torch", reason="torch is not installed: golden/ holds its values")
    pytest.importorskip("transformers", reason="transformers is not installed: see golden/")
    from tests.attention.golden.make_golden import compute

    now = compute()
    assert now["alibi"].keys() == GOLDEN["alibi"].keys()
    for heads, slopes in now["alibi"].items():  # powers, whose last digit is the machine's
        np.testing.assert_allclose(slopes, GOLDEN["alibi"][heads], rtol=1e-6, err_msg=heads)
    assert now["windowed"] == GOLDEN["windowed"]
    assert now["buckets"] == GOLDEN["buckets"]
    for part in ("frequencies", "temperatures", "sinks"):
        for ours, theirs in zip(now[part], GOLDEN[part], strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                np.testing.assert_allclose(value, theirs[key], rtol=1e-6, err_msg=key)
