"""What the transformers library computes, for test_position.py and test_golden.py.

    python -m tests.attention.golden.make_golden

writes transformers.json beside this file. Needs torch and transformers, which lenext does not.
"""

import json
import pathlib

FILE = pathlib.Path(__file__).with_name("transformers.json")

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
PLACES = 24  # tokens of a document whose temperatures are kept
STEPS = [{"beta": 0.1, "floor": 8}, {"beta": 0.5, "floor": 5}]
ROWS = [[0.0], [0.0, 1.0], [-3.0, -1.0], [2.5, -0.5, 30.0, 29.0], [-200.0, -201.0, -190.0]]
SINKS = [0.0, 1.3, -2.0]
WINDOWS = [1, 3, 7]


def compute() -> dict:
    """Everything in transformers.json."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "versions": versions,
        "frequencies": frequencies(),
        "alibi": slopes(),
        "temperatures": temperatures(),
        "sinks": sinks(),
        "buckets": buckets(),
        "windowed": windows(),
    }


def frequencies() -> list[dict]:
    """Radians a position of each pair, for each of SETTINGS; and YaRN's factor on cos and sin."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def parameters(kind, setting, sequence_length=None, **rope):
        config = transformers.LlamaConfig(
            hidden_size=2 * setting["dim"],
            num_attention_heads=2,
            max_position_embeddings=setting["train_length"],
            rope_parameters={"rope_type": kind, "rope_theta": setting["base"], **rope},
        )
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=sequence_length)
        return [float(x) for x in frequencies], float(factor)

    settings = []
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
        partial, _ = parameters("proportional", setting, partial_rotary_factor=0.75)
        values = {
            "pi": linear, "ntk": dynamic, "yarn": yarn, "yarn_magnitude": magnitude,
            "dynamic_ntk": growing, "llama3": llama3, "longrope": longrope,
            "p_rope": partial,
        }  # fmt: skip
        settings.append({**setting, **values})
    return settings


def slopes() -> dict[str, list[float]]:
    """BLOOM's ALiBi slopes by number of heads."""
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    # Distances enter as position times slope: the second position shows the slope.
    return {
        str(n): build_alibi_tensor(torch.ones(1, 2), n, torch.float32)[:, 0, 1].tolist()
        for n in HEADS
    }


def temperatures() -> list[dict]:
    """Factors on queries at places 0 to 23, by Llama 4's layer and by Ministral 3's function."""
    import torch
    import transformers
    from transformers.models.llama4.modeling_llama4 import Llama4TextAttention
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    queries = []

    def keep_query(module, query, key, value, mask, **_):
        queries.append(query)
        return value.transpose(1, 2), None

    transformers.AttentionInterface.register("keep_query", keep_query)
    out = []
    for steps in STEPS:
        config = transformers.Llama4TextConfig(
            hidden_size=4, num_attention_heads=1, num_key_value_heads=1, head_dim=4,
            num_hidden_layers=1, no_rope_layers=[0], attn_temperature_tuning=True,
            attn_scale=steps["beta"], floor_scale=steps["floor"],
        )  # fmt: skip
        config._attn_implementation = "keep_query"
        layer = Llama4TextAttention(config, 0)
        with torch.no_grad():
            layer.q_proj.weight.copy_(torch.eye(4))
            layer(torch.ones(1, PLACES, 4), None, None)
        places = torch.arange(PLACES)[None]
        ministral = get_llama_4_attn_scale(places, steps["beta"], steps["floor"])
        values = {"llama4": queries[-1][0, 0, :, 0], "mistral3": ministral[0, 0, :, 0]}
        out.append({**steps, **{name: x.tolist() for name, x in values.items()}})
    return out


def sinks() -> list[dict]:
    """Rows of logits and weights, by gpt-oss's attention with sinks of these logits."""
    import types

    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    out = []
    for sink, logits in ((sink, logits) for sink in SINKS for logits in ROWS):
        module = types.SimpleNamespace(
            num_key_value_groups=1, sinks=torch.tensor([sink]), training=False
        )
        key = torch.tensor(logits)[None, None, :, None]
        query = torch.ones(1, 1, 1, 1)
        _, weights = eager_attention_forward(module, query, key, key, None, scaling=1.0)
        out.append({"sink": sink, "logits": logits, "weights": weights.ravel().tolist()})
    return out


def buckets() -> dict[str, list[int]]:
    """T5's bucket of each distance from 0 to 200, and with keys after the query from -200 on."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = {"causal": torch.arange(0, 201), "both": torch.arange(-200, 201)}
    bucket = T5Attention._relative_position_bucket  # of key less query
    return {
        way: bucket(-delta, bidirectional=way == "both", num_buckets=32, max_distance=128).tolist()
        for way, delta in distances.items()
    }


def windows() -> dict[str, list[list[int]]]:
    """The keys that each of twelve causal queries sees, by window."""
    import torch
    from transformers.masking_utils import sliding_window_causal_mask_function

    places, out = torch.arange(12), {}
    for window in WINDOWS:
        sees = sliding_window_causal_mask_function(window)
        out[str(window)] = [[j for j in range(12) if sees(0, 0, i, places[j])] for i in places]
    return out


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
