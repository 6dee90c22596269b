"""Sampling: greedy text is the full context's argmax; draws follow their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.errors import UserError
from lenext.models import generation
from lenext.models.generation import Sampling, draw, generate
from tests.models.test_decoder import build, tokens_of

GREEDY = Sampling(temperature=0.0)


def texts(model, prompt, count, **options):
    return np.stack(list(generate(model, np.asarray(prompt), count, **options)), axis=1)


@pytest.mark.parametrize(
    "methods",
    [
        "softmax", "rerope(window=4)+infoscale", "lssar", "yarn(scale=3)", "alibi",
        "lm_infinite(window=6)", "streaming_llm(window=6)", "self_extend(window=6, group=2)",
        "windowed(window=3)|windowed(window=3)|nope",
        "forgetting+windowed(window=3)|asentmax|forgetting",
    ],
)  # fmt: skip
def test_greedy_text_is_the_full_contexts_argmax(methods, monkeypatch):
    """Token for token, to more than three times the training length; the prompt in parts."""
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 4)
    model = build(methods)
    tokens = np.asarray(tokens_of(2, 10))
    ours = texts(model, tokens, 20, sampling=GREEDY)
    full = jax.jit(model.__call__)  # the whole context anew for every token
    for _ in range(20):
        padded = np.pad(tokens, [(0, 0), (0, 30 - tokens.shape[1])])
        logits = np.asarray(full(jnp.asarray(padded)))[:, tokens.shape[1] - 1]
        two = np.sort(logits, axis=-1)[:, -2:]
        assert (two[:, 1] - two[:, 0] > 1e-4).all()  # no tie that rounding could turn
        tokens = np.concatenate([tokens, logits.argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(ours, tokens[:, 10:])
    assert len(np.unique(ours)) > 2


@pytest.mark.parametrize("methods", ["dynamic_ntk", "pi+infoscale", "yarn|llama3"])
def test_the_first_token_is_the_full_contexts_however_many_follow(methods, monkeypatch):
    """And nothing is compiled anew as the text grows, though its length does."""
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 8)
    model = build(methods)
    for seed in range(4):
        tokens = np.asarray(tokens_of(2, 24, seed))  # three parts of the prompt, of one shape
        logits = np.asarray(jax.jit(model.__call__)(jnp.asarray(tokens)))[:, -1]
        two = np.sort(logits, axis=-1)[:, -2:]
        assert (two[:, 1] - two[:, 0] > 1e-4).all()  # no tie that rounding could turn
        generation._advance.clear_cache()
        for count in (1, 40):
            np.testing.assert_array_equal(
                texts(model, tokens, count, sampling=GREEDY)[:, 0], logits.argmax(-1)
            )
        # The prompt's parts with either capacity, and one token.
        assert generation._advance._cache_size() == 3


def test_draws_follow_the_seed():
    model = build()
    one = texts(model, tokens_of(3, 5), 12, seed=1)
    np.testing.assert_array_equal(one, texts(model, tokens_of(3, 5), 12, seed=1))
    assert (one != texts(model, tokens_of(3, 5), 12, seed=2)).any()


def frequencies(logits, sampling, times=4000):
    rows = jnp.tile(jnp.asarray(logits, jnp.float32)[None], (times, 1))
    drawn = jax.jit(draw, static_argnums=2)(rows, jax.random.key(0), sampling)
    return np.bincount(np.asarray(drawn), minlength=4) / times


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.2, 0.4, 0.3]),
        # p^2 over its sum, 0.01 + 0.04 + 0.16 + 0.09
        (Sampling(temperature=0.5), [1 / 30, 4 / 30, 16 / 30, 9 / 30]),
        (Sampling(top_k=2), [0, 0, 4 / 7, 3 / 7]),
        (Sampling(top_p=0.6), [0, 0, 4 / 7, 3 / 7]),
        (Sampling(top_p=0.75), [0, 2 / 9, 4 / 9, 3 / 9]),
        (Sampling(top_p=0.3), [0, 0, 1, 0]),
        (Sampling(top_k=3, top_p=0.7), [0, 0, 4 / 7, 3 / 7]),
        (Sampling(temperature=0.0), [0, 0, 1, 0]),
        (Sampling(top_k=99), [0.1, 0.2, 0.4, 0.3]),
        # Beside 0 and 1: what float32 takes for 0, what overflows, what is all but everything.
        (Sampling(temperature=1e-40), [0, 0, 1, 0]),
        (Sampling(temperature=5e-324), [0, 0, 1, 0]),
        (Sampling(temperature=1e-38, top_p=0.9), [0, 0, 1, 0]),
        (Sampling(temperature=1e-30, top_k=2), [0, 0, 1, 0]),
        (Sampling(temperature=1e300), [0.25, 0.25, 0.25, 0.25]),
        (Sampling(temperature=1e38, top_k=2), [0, 0, 0.5, 0.5]),
        (Sampling(top_p=1e-40), [0, 0, 1, 0]),
        (Sampling(top_p=1 - 1e-9), [0.1, 0.2, 0.4, 0.3]),
    ],
)
def test_distribution_of_draws(sampling, expected):
    found = frequencies(np.log([0.1, 0.2, 0.4, 0.3]), sampling)
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_array_equal(found == 0, np.asarray(expected) == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1\.0: should be at least 0"),
        ({"temperature": float("nan")}, r"temperature=nan: should be at least 0"),
        ({"temperature": float("inf")}, r"temperature=inf: should be at least 0, and finite"),
        ({"top_k": -1}, r"top_k=-1: should be at least 0"),
        ({"top_p": 0.0}, r"top_p=0\.0: should be above 0 and at most 1"),
        ({"top_p": float("nan")}, r"top_p=nan: should be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p=1\.5: should be above 0 and at most 1"),
    ],
)
def test_sampling_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)


def test_nothing_to_go_on_from_or_to():
    with pytest.raises(UserError, match="prompt: should hold at least one token"):
        texts(build(), np.zeros((1, 0), np.int32), 3)
    with pytest.raises(UserError, match="max_tokens=0: should be at least 1"):
        texts(build(), tokens_of(1, 3), 0)
