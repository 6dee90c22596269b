"""GGUF files for tests, written by ggml-org's own writer as llama.cpp's converter would."""

import json

import numpy as np
from safetensors.numpy import load_file

from tests.importing.conftest import GOLDEN

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


GEMMA3 = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def converted_name(name, names=NAMES):
    stem, ending = name.rsplit(".", 1)
    if stem in names:
        return f"{names[stem]}.{ending}"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{names[part]}.{ending}"


def converted(name, array, heads, kv_heads):
    """`permute` of llama.cpp's convert_hf_to_gguf.py: halves to pairs."""
    part = name.split(".")[2]
    count = {"attn_q": heads, "attn_k": kv_heads}.get(part)
    if count is None:
        return array
    shape = array.shape
    return array.reshape(count, 2, shape[0] // count // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_factors(scaling, base, size):
    """Of the same file's `generate_extra_tensors`."""
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    factors = []
    for i in range(0, size, 2):
        wave = 2 * np.pi * base ** (i / size)
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(scaling["factor"])
        else:
            ratio = scaling["original_max_position_embeddings"] / wave
            smooth = (ratio - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.asarray(factors, np.float32)


def write_file(path, architecture, values, tensors):
    """A file of these; values are (method of the writer, argument), tensors arrays or blocks.

    Blocks are (uint8 array of rows of bytes, name of the quantisation).
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for method, *arguments in values:
        getattr(writer, method)(*arguments)
    for name, x in tensors.items():
        if isinstance(x, tuple):
            writer.add_tensor(name, x[0], raw_dtype=gguf.GGMLQuantizationType[x[1]])
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sizes(name):
    """What a golden checkpoint's config.json says, as calls of the writer."""
    import gguf

    config = json.loads((GOLDEN / name / "config.json").read_text())
    scaling, local = config["rope_parameters"], None
    if "full_attention" in scaling:
        scaling, local = scaling["full_attention"], scaling["sliding_attention"]
    calls = [
        ("add_context_length", config["max_position_embeddings"]),
        ("add_embedding_length", config["hidden_size"]),
        ("add_block_count", config["num_hidden_layers"]),
        ("add_feed_forward_length", config["intermediate_size"]),
        ("add_head_count", config["num_attention_heads"]),
        ("add_head_count_kv", config["num_key_value_heads"]),
        ("add_layer_norm_rms_eps", config["rms_norm_eps"]),
        ("add_rope_freq_base", scaling["rope_theta"]),
        ("add_file_type", 0),
    ]
    if local is not None:
        kind, slides = config["model_type"].removesuffix("_text"), "sliding_attention"
        pattern = [x == slides for x in config["layer_types"]]
        calls += [
            ("add_float32", f"{kind}.rope.freq_base_swa", local["rope_theta"]),
            ("add_sliding_window", config["sliding_window"]),
            ("add_array", f"{kind}.attention.sliding_window_pattern", pattern),
        ]
    size = config.get("head_dim")
    if size:
        calls += [("add_key_length", size), ("add_value_length", size)]
        calls += [("add_rope_dimension_count", size)]
    if scaling["rope_type"] in ("linear", "yarn"):
        kind = gguf.RopeScalingType(scaling["rope_type"])
        calls += [("add_rope_scaling_type", kind), ("add_rope_scaling_factor", scaling["factor"])]
    if scaling["rope_type"] == "yarn":
        original = scaling["original_max_position_embeddings"]
        calls += [("add_rope_scaling_orig_ctx_len", original)]
        calls += [
            (f"add_rope_scaling_yarn_{key}", scaling[key]) for key in ("beta_fast", "beta_slow")
        ]
    return config, calls


def convert_golden(name, path, *, calls=None, change=None):
    """A golden checkpoint as a file in float32; `calls` say other things, `change` alters it."""
    config, own = sizes(name)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kind, tensors = config["model_type"].removesuffix("_text"), {}
    for theirs, x in load_file(GOLDEN / name / "model.safetensors").items():
        gemma = kind == "gemma3"
        ours = converted_name(theirs, GEMMA3 if gemma else NAMES)
        x = np.asarray(x, np.float32)
        x = x + 1 if gemma and theirs.endswith("norm.weight") else x
        tensors[ours] = (
            converted(ours, x, heads, kv_heads) if kind == "llama" and "blk" in ours else x
        )
    scaling = config["rope_parameters"]
    if scaling.get("rope_type") == "llama3":
        size = config["head_dim"]
        tensors["rope_freqs.weight"] = llama3_factors(scaling, scaling["rope_theta"], size)
    if change is not None:
        change(tensors)
    return write_file(path, kind, own if calls is None else calls, tensors)
