"""Scalings of RoPE as published config.json files have them."""

from pathlib import Path

import pytest

from lenext.attention import make_method
from lenext.importing.keys import Keys
from lenext.importing.rope import rope_method

# (model, max_position_embeddings, rope_theta, rope_scaling)
PUBLISHED = [
    ("Llama-3.1-8B", 131072, 5e5, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
    ("Llama-3.2-1B", 131072, 5e5, {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
    ("Llama-4-Scout", 10485760, 5e5, {"factor": 16.0, "low_freq_factor": 1.0,
     "high_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
    ("Kimi-K2", 131072, 5e4, {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}),
    ("DeepSeek-V2", 163840, 10000, {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
     "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"}),
    ("Qwen2.5-7B-Instruct, as its page says for long texts", 32768, 1e6,
     {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}),
    ("deepseek-coder-6.7b", 16384, 1e5, {"factor": 4.0, "type": "linear"}),
    ("internlm2_5-7b", 32768, 1e6, {"factor": 2.0, "type": "dynamic"}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "length", "theta", "scaling"), PUBLISHED)
def test_published_scalings_are_accepted(model, length, theta, scaling):
    config = {"rope_theta": theta, "rope_scaling": scaling}
    method = make_method(rope_method(Keys(Path(model), config), length), train_length=length)
    assert vars(method.position)["scale"] == scaling["factor"]
