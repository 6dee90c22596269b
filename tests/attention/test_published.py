"""Bounds of options refuse nothing that was published: values by name, each with its source."""

import re

import numpy as np
import pytest

from lenext.attention import attention_weights, make_method, make_pattern, method_names
from tests.attention.axes.test_position import DISTANCES, assert_turns

# (what says so, the method). Those at the edge of what we take are what this table is for.
PUBLISHED = [
    ("DINOv3, rope_theta", "softmax(base=100)"),
    ("scaling laws of RoPE (arXiv 2310.05209), smaller bases", "softmax(base=500)"),
    ("GLM-4-9B-Chat-1M, rope_ratio 10000", "softmax(base=100000000)"),
    ("Mistral 7B, sliding_window", "windowed(window=4096)"),
    ("gpt-oss, sliding_window", "windowed(window=128)"),
    ("p-RoPE (arXiv 2410.06205), p of 0, a quarter and 1", "p_rope(fraction=0)"),
    ("p-RoPE (arXiv 2410.06205), p of 0, a quarter and 1", "p_rope(fraction=0.25)"),
    ("p-RoPE (arXiv 2410.06205), p of 0, a quarter and 1", "p_rope(fraction=1)"),
    ("Vicuna 1.5 16k, rope_scaling", "pi(scale=4)"),
    ("PI (arXiv 2306.15595), from 2048 to 32768", "pi(scale=16)"),
    ("InternLM 2.5, dynamic", "dynamic_ntk(scale=2,original_length=32768)"),
    ("YaRN (arXiv 2309.00071), s = 32", "yarn(scale=32,original_length=4096)"),
    (
        "Kimi K2, rope_scaling",
        "yarn(base=50000,scale=32,original_length=4096,fast_turns=1,slow_turns=1,attention_factor=1)",
    ),
    (
        "DeepSeek-V2, mscale over mscale_all_dim",
        "yarn(scale=40,original_length=4096,attention_factor=1)",
    ),
    (
        "Llama 3.2, rope_scaling",
        "llama3(base=500000,scale=32,original_length=8192,fast_turns=4,slow_turns=1)",
    ),
    (
        "Llama 4 Scout, rope_scaling",
        "llama3(base=500000,scale=16,original_length=8192,fast_turns=1,slow_turns=1)",
    ),
    (
        "MiniCPM4, the first of long_factor and the last",
        "longrope(scale=4,factors=(0.9977997200264581,31.02392307921529))",
    ),
    (
        "Phi-3.5-mini, the first two of long_factor and of short_factor",
        "longrope(factors=(1.08,1.11),short_factors=(1.0,1.02))",
    ),
    ("Pythia, rotary_pct of a quarter of 64", "softmax(rotary_dim=16)"),
    ("Gemma 2 27B, query_pre_attn_scalar 144", "softmax(logit_scale=0.08333333333333333)"),
    ("Gemma 2, attn_logit_softcapping", "softmax(softcap=50)"),
    ("ReRoPE (Su 2023), w = 512 at L = 4096", "rerope(window=512)"),
    ("Leaky ReRoPE (Su 2023), k = 16", "leaky_rerope(window=128,leak=16)"),
    ("InvLeaky ReRoPE (Su 2023, kexue.fm/archives/9728)", "leaky_rerope(window=128,leak=0.0625)"),
    ("Self-Extend (arXiv 2401.01325)", "self_extend(window=1024,group=8)"),
    ("LM-Infinite (arXiv 2308.16137)", "lm_infinite(window=4096,sinks=100)"),
    ("StreamingLLM (arXiv 2309.17453), 0 + 2048", "streaming_llm(window=2048,sinks=0)"),
    ("scale-invariant attention (arXiv 2505.17083)", "scale_invariant(tau=10)"),
    ("Llama 4, attn_scale and floor_scale", "llama4(beta=0.1,floor=8192)"),
    ("Ministral 3, llama_4_scaling_beta", "mistral3(beta=0.1)"),
    ("CosScale (arXiv 2501.08570)", "cosscale(cos_scale=128)"),
    ("LSSAR (arXiv 2501.13428)", "lssar(power=15,offset=1)"),
    ("Self-Extend, LongLM on Llama 2", "self_extend(window=1024,group=8)"),
    ("Dual chunk attention, ChunkLlama at 4096", "dual_chunk(chunk=3072,window=512)"),
    ("Llama 4, attention_chunk_size", "chunked(chunk=8192)"),
    ("T5, relative_attention_num_buckets", "t5_bias(buckets=32,max_distance=128)"),
    ("alpha-entmax (arXiv 1905.05702)", "entmax(alpha=1.5)"),
    ("ASEntmax (arXiv 2506.16640)", "asentmax(alpha=1.5,delta=1)"),
]


@pytest.mark.parametrize(("source", "method"), PUBLISHED)
def test_published_values_are_accepted(source, method):
    assert make_method(method, train_length=2048), source


def test_every_option_that_has_bounds_has_a_published_value():
    axes = [
        axis
        for name in method_names()
        for axis in make_method(name, train_length=2048).axes().values()
    ]
    bounded = {
        field.name
        for axis in axes
        for field in axis.option_fields()
        if any(bound is not None for bound in field.metadata["option"]["bounds"].values())
    }
    published = {name for _, method in PUBLISHED for name in re.findall(r"\w+(?==)", method)}
    assert bounded <= published


def test_llama4_s_layers():
    """Three of four see their own chunk; the fourth sees all, is not turned, and has the floor."""
    pattern = make_pattern("chunked|chunked|chunked|nope+llama4", train_length=8192)
    q, k, _ = (np.ones((1, 4, 1, 2), np.float32) for _ in range(3))
    places = {"q_positions": np.array([8190, 8191, 8192, 16385]), "length": 16386}
    places["kv_positions"] = np.array([0, 8191, 8192, 16384])
    seen = [
        np.asarray(attention_weights(q, k, made, causal=True, **places))[0, 0] > 0
        for made in (pattern[0], pattern[3])
    ]
    chunks = [[True, False, False, False], [True, True, False, False],
              [False, False, True, False], [False, False, False, True]]  # fmt: skip
    np.testing.assert_array_equal(seen[0], chunks)
    np.testing.assert_array_equal(seen[1], np.tri(4, dtype=bool))
    assert pattern[0] == pattern[1] == pattern[2]


def test_yarn_by_a_step():
    """Kimi K2's: dimensions 64, of which pair 64 ln(4096 / 2 pi) / (2 ln 50000) = 19.2 turns once.

    The authors' ramp runs from the pair below that to the pair above: 19 stays, 20 is slowed.
    """
    method = dict(PUBLISHED)["Kimi K2, rope_scaling"]
    pairs = np.arange(32)
    expected = 50000.0 ** (-pairs / 32) / np.where(pairs < 20, 1, 32)
    assert_turns(make_method(method, train_length=4096), 64, expected, DISTANCES)


def test_llama3_by_a_step():
    """Llama 4 Scout's: by Meta's code, pairs of a wavelength above 8192 are slowed, others not."""
    method = dict(PUBLISHED)["Llama 4 Scout, rope_scaling"]
    plain = 500000.0 ** (-np.arange(64) / 64)
    expected = plain / np.where(2 * np.pi / plain > 8192, 16, 1)
    assert_turns(make_method(method, train_length=8192), 128, expected, DISTANCES)


def test_factors_below_one():
    """They hasten a pair: MiniCPM4's first. Both sides of a logit have its gain's square root."""
    method = dict(PUBLISHED)["MiniCPM4, the first of long_factor and the last"]
    expected = np.array([1, 0.01]) / [0.9977997200264581, 31.02392307921529]
    gain = 1 + np.log(4) / np.log(2048)
    assert_turns(make_method(method, train_length=2048), 4, expected, DISTANCES, gain=gain)
