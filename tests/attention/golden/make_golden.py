"""Frequencies and slopes as the transformers library computes them, for test_position.py.

    python -m tests.attention.golden.make_golden

writes positions.json beside this file. Needs torch and transformers, which lenext itself does not.
"""

import json
import pathlib

FILE = pathlib.Path(__file__).with_name("positions.json")

# YaRN's ramp starts at the first pair, in the midst, or nowhere, and ends in the midst or past the
# last pair.
SETTINGS = [
    {"dim": 16, "base": 10000.0, "train_length": 32, "scale": 4.0},
    {"dim": 64, "base": 10000.0, "train_length": 512, "scale": 8.0},
    {"dim": 128, "base": 10000.0, "train_length": 4096, "scale": 2.0},
    {"dim": 128, "base": 500000.0, "train_length": 8192, "scale": 16.0},
    {"dim": 8, "base": 10000.0, "train_length": 4, "scale": 3.0},
    {"dim": 64, "base": 500.0, "train_length": 8192, "scale": 4.0},
]
HEADS = [1, 2, 3, 4, 6, 8, 12, 16, 20]


def compute() -> dict:
    """Everything in positions.json."""
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    def parameters(kind, setting, sequence_length=None, **rope):
        config = transformers.LlamaConfig(
            hidden_size=2 * setting["dim"],
            num_attention_heads=2,
            max_position_embeddings=setting["train_length"],
            rope_parameters={"rope_type": kind, "rope_theta": setting["base"], **rope},
        )
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=sequence_length)
        return [float(x) for x in frequencies], float(factor)

    frequencies = []
    for setting in SETTINGS:
        scale, length = setting["scale"], setting["train_length"]
        linear, _ = parameters("linear", setting, factor=scale)
        # Factor 1 at s times the training length: the fixed NTK base of scale s.
        dynamic, _ = parameters("dynamic", setting, int(scale * length), factor=1.0)
        yarn, magnitude = parameters(
            "yarn", setting, factor=scale, original_max_position_embeddings=length
        )
        growing, _ = parameters("dynamic", setting, 3 * length, factor=scale)
        llama3, _ = parameters(
            "llama3", setting, factor=scale, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=length,
        )  # fmt: skip
        factors = [1.0 + 0.25 * p for p in range(setting["dim"] // 2)]
        longrope, _ = parameters(
            "longrope", setting, 3 * length, factor=scale, long_factor=factors,
            short_factor=[1.0] * len(factors), original_max_position_embeddings=length,
        )  # fmt: skip
        values = {
            "pi": linear, "ntk": dynamic, "yarn": yarn, "yarn_magnitude": magnitude,
            "dynamic_ntk": growing, "llama3": llama3, "longrope": longrope,
        }  # fmt: skip
        frequencies.append({**setting, **values})
    # Distances enter as position times slope: the second position shows the slope.
    slopes = {
        str(n): build_alibi_tensor(torch.ones(1, 2), n, torch.float32)[:, 0, 1].tolist()
        for n in HEADS
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"versions": versions, "frequencies": frequencies, "alibi": slopes}


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
