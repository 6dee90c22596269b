"""Methods that the transformers library has too: its numbers, kept in golden/.

Those of frequencies and slopes are in test_position.py.
"""

import numpy as np
import pytest

from lenext.attention import make_method
from tests.attention.common import GOLDEN, quick_statistics, quick_weights


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


@pytest.mark.parametrize("kept", GOLDEN["softmax1"], ids=lambda x: str(len(x["logits"])))
def test_softmax1_is_a_sink_of_transformers(kept):
    """gpt-oss's sink of logit 0."""
    logits = np.asarray(kept["logits"], np.float32)
    q, k = np.ones((1, 1, 1, 1), np.float32), logits[None, :, None, None]
    made = make_method("softmax1", train_length=4, position="none")
    ours = np.ravel(quick_weights(q, k, made))
    np.testing.assert_allclose(ours, kept["weights"], rtol=1e-5, atol=1e-12)


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
    for part in ("frequencies", "temperatures", "softmax1"):
        for ours, theirs in zip(now[part], GOLDEN[part], strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                np.testing.assert_allclose(value, theirs[key], rtol=1e-6, err_msg=key)
