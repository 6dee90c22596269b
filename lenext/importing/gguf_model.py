"""A GGUF file as a folder of Hugging Face's transformers would say it.

llama.cpp names sizes and tensors its own way, and changes some numbers; here all of that is undone,
so that recipes, checks and the way back are those of a folder.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lenext.errors import UserError
from lenext.importing.gguf_file import GGUF
from lenext.importing.gguf_tokenizer import write_settings, write_tokenizer
from lenext.importing.keys import Keys
from lenext.importing.refused import check_supported
from lenext.importing.tensors import Tensor

WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""Maps and gains, by their names there."""

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Those of a layer."""

FACTORS = "rope_freqs.weight"
"""By which Llama 3's scaling divides each pair's frequency; the metadata does not say it."""

MADE = (FACTORS, ".attn_rot_embd.weight", ".rope.freqs")
"""Endings of tensors that tell of the rotation alone."""


class Architecture(NamedTuple):
    """What is an architecture's own.

    Attributes:
      model_type: what a config.json calls it.
      turned: whether rows of q and k are those of pairs side by side, which were halves before.
      gains_plus_one: whether 1 was added to the gains of its norms.
      layer: names of a layer's maps and gains where they are others than `LAYER` says, or more.
      config: what its config.json has beside what `_read_config` writes for all, of its keys.
    """

    model_type: str
    turned: bool = False
    gains_plus_one: bool = False
    layer: Mapping[str, str] = LAYER
    config: Callable[[Keys, GGUF], dict[str, Any]] = lambda keys, gguf: {}


def _llama_config(keys: Keys, gguf: GGUF) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
    }


def _qwen2_config(keys: Keys, gguf: GGUF) -> dict[str, Any]:
    return {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3_config(keys: Keys, gguf: GGUF) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "use_sliding_window": False,
    }


def _gemma3_config(keys: Keys, gguf: GGUF) -> dict[str, Any]:
    """What the metadata leaves open is as llama.cpp has it."""
    layers, heads = keys.whole("gemma3.block_count"), _same(keys, "attention.head_count")
    hidden = keys.whole("gemma3.embedding_length")
    size = keys.whole("gemma3.attention.key_length", max(1, hidden // heads))
    slides = keys.get("gemma3.attention.sliding_window_pattern", 6)
    if not isinstance(slides, list):
        every = keys.whole("gemma3.attention.sliding_window_pattern", 6)
        slides = [bool((i + 1) % every) for i in range(min(layers, len(gguf.tensors)))]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention" if x else "full_attention" for x in slides],
        "sliding_window": keys.whole("gemma3.attention.sliding_window"),
        "rope_local_base_freq": keys.number("gemma3.rope.freq_base_swa", 10000.0),
        # By the number of layers the largest, 27B, is told from the others.
        "query_pre_attn_scalar": hidden // heads if layers == 62 else size,
    }


ARCHITECTURES = {
    "gemma3": Architecture(
        "gemma3_text",
        gains_plus_one=True,
        layer=LAYER
        | {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        config=_gemma3_config,
    ),
    "llama": Architecture("llama", turned=True, config=_llama_config),
    "qwen2": Architecture("qwen2", config=_qwen2_config),
    "qwen3": Architecture("qwen3", config=_qwen3_config),
}
"""By "general.architecture"."""


def unpack_gguf(gguf: GGUF, folder: Path, *, with_tokenizer: bool) -> dict[str, Tensor]:
    """Makes a folder's files of what a GGUF file says, all but its weights.

    Args:
      gguf: the file.
      folder: to write config.json into, and the tokeniser's files.
      with_tokenizer: whether the tokeniser is wanted.

    Returns:
      Its tensors, by the names that they have in such a folder.

    Raises:
      UserError: it is of an architecture that is not known, asks for something that is not
        supported, has a value of the wrong type, or a tokeniser that cannot be made.
    """
    path, kind = gguf.path, gguf.metadata.get("general.architecture")
    what = gguf.metadata.get("general.type", "model")
    if kind == "clip" or what == "mmproj":
        raise UserError(
            f"{path}: is the vision part of a model, which is not supported; its text part lies in "
            "another file"
        )
    if what != "model":
        raise UserError(f"{path}: general.type={what!r}: should be a model")
    check_supported(path, _as_config(kind, gguf))
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={kind!r}: should be one of {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[kind]
    keys = Keys(path, {key: x for key, x in gguf.metadata.items() if key.startswith(f"{kind}.")})
    config = _read_config(keys, kind, architecture, gguf)
    keys.check_rest()
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    tensors = {}
    for name, tensor in gguf.tensors.items():
        if name.endswith(MADE):
            continue
        theirs = _name(name, architecture)
        part = theirs.partition(".layers.")[2].partition(".")[2].rpartition(".")[0]
        if architecture.turned and part in heads:
            tensor = _halved(tensor, heads[part])
        if architecture.gains_plus_one and theirs.endswith("norm.weight"):
            tensor = _less_one(tensor)
        if theirs in tensors:
            raise UserError(f"{path}: tensors {tensors[theirs].name} and {name} are the same one")
        tensors[theirs] = tensor
    config |= write_settings(gguf, config["vocab_size"], folder)
    if with_tokenizer:
        write_tokenizer(gguf, config["vocab_size"], folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tensors


def _as_config(kind: Any, gguf: GGUF) -> dict[str, Any]:
    """Of what is refused by its name, the keys of a config.json that say the same."""
    has = {
        key.partition(".")[2]: x
        for key, x in gguf.metadata.items()
        if isinstance(kind, str) and key.startswith(f"{kind}.")
    }
    return {
        "model_type": kind,
        "num_experts": has.get("expert_count"),
        "kv_lora_rank": has.get("attention.kv_lora_rank"),
        "vision_config": next((x for x in gguf.tensors if x.startswith(("v.", "mm."))), None),
    }


def _name(name: str, architecture: Architecture) -> str:
    """What a tensor is called in a folder; its own name where it is not known."""
    part, _, ending = name.rpartition(".")
    if part in WHOLE:
        return f"{WHOLE[part]}.{ending}"
    block, _, part = part.partition(".")
    number, _, part = part.partition(".")
    if block == "blk" and part in architecture.layer:
        return f"model.layers.{number}.{architecture.layer[part]}.{ending}"
    return name


def _halved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of q or k, of a head's pairs side by side, as they were: all firsts, all seconds."""
    rows = tensor.shape[0]
    if rows % (2 * heads):  # whose shape is refused later
        return tensor

    def read() -> np.ndarray:
        turned = tensor.read().reshape(heads, rows // heads // 2, 2, -1)
        return turned.swapaxes(1, 2).reshape(tensor.shape)

    return tensor._replace(read=read)


def _less_one(tensor: Tensor) -> Tensor:
    def read() -> np.ndarray:
        gains = tensor.read()
        return gains - gains.dtype.type(1)

    return tensor._replace(read=read)


def _read_config(keys: Keys, kind: str, architecture: Architecture, gguf: GGUF) -> dict[str, Any]:
    """A config.json of the metadata.

    Raises:
      UserError: a value is missing, of the wrong type, or not supported.
    """
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{gguf.path}: tensor token_embd.weight is missing")
    layers = keys.whole(f"{kind}.block_count")
    if layers > len(gguf.tensors):  # before a rule is made for each
        raise UserError(
            f"{gguf.path}: {kind}.block_count={layers}: the file holds {len(gguf.tensors)} tensors"
        )
    vocabulary = embedding.shape[0]
    if keys.whole(f"{kind}.vocab_size", vocabulary) != vocabulary:
        raise UserError(
            f"{gguf.path}: {kind}.vocab_size={keys.whole(f'{kind}.vocab_size')}: tensor "
            f"token_embd.weight has {vocabulary} rows"
        )
    hidden, heads = keys.whole(f"{kind}.embedding_length"), _same(keys, "attention.head_count")
    size = keys.whole(f"{kind}.attention.key_length", max(1, hidden // heads))
    if keys.whole(f"{kind}.attention.value_length", size) != size:
        raise UserError(
            f"{gguf.path}: {kind}.attention.value_length: should be attention.key_length, {size}"
        )
    length = keys.whole(f"{kind}.context_length")
    turned = keys.whole(f"{kind}.rope.dimension_count", size)
    keys.only(f"{kind}.attention.causal", True)
    keys.only(f"{kind}.expert_count", 0)
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": _same(keys, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _same(keys, "attention.head_count_kv", heads),
        "head_dim": size,
        "rms_norm_eps": keys.number(f"{kind}.attention.layer_norm_rms_epsilon", 1e-6),
        "max_position_embeddings": length,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_theta": keys.number(f"{kind}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys, kind),
    }
    if turned != size:
        config["partial_rotary_factor"] = turned / size
    if FACTORS in gguf.tensors:
        if config["rope_scaling"] is not None:
            raise UserError(f"{gguf.path}: has both {FACTORS} and {kind}.rope.scaling")
        config["rope_scaling"] = _llama3_scaling(
            gguf.tensors[FACTORS], config["rope_theta"], turned
        )
    return config | architecture.config(keys, gguf)


def _same(keys: Keys, name: str, default: int | None = None) -> int:
    """A whole number, which may stand there once for each layer.

    Raises:
      UserError: it is none, or layers differ.
    """
    kind = next(iter(keys.content), "").partition(".")[0]
    key = f"{kind}.{name}"
    value = keys.get(key, default)
    if isinstance(value, list) and value and value.count(value[0]) == len(value):
        return Keys(keys.path, {key: value[0]}).whole(key)
    if isinstance(value, list):
        raise UserError(f"{keys.path}: {key}: differs between layers, which is not supported")
    return keys.whole(key, default)


def _rope_scaling(keys: Keys, kind: str) -> dict[str, Any] | None:
    """The object "rope_scaling" of a config.json.

    Raises:
      UserError: it is of a kind that is not supported.
    """
    scaling = f"{kind}.rope.scaling"
    older = keys.get(f"{kind}.rope.scale_linear", None)
    name = keys.get(f"{scaling}.type", "none" if older is None else "linear")
    keys.asked |= {f"{scaling}.finetuned"}
    if name == "none":
        return None
    if name not in ("linear", "yarn"):
        raise UserError(
            f"{keys.path}: {scaling}.type={name!r} is not supported, only none, linear, yarn"
        )
    factor = keys.number(f"{scaling}.factor", 1.0 if older is None else older)
    original = keys.get(f"{scaling}.original_context_length", None)
    if name == "linear":
        return {"rope_type": name, "factor": factor}
    keys.only(f"{scaling}.yarn_ext_factor", 1.0, -1.0)
    keys.only(f"{scaling}.yarn_attn_factor", 1.0)
    keys.only(f"{scaling}.attn_factor", 1.0)
    turns = {
        "beta_fast": keys.number(f"{scaling}.yarn_beta_fast", 32.0),
        "beta_slow": keys.number(f"{scaling}.yarn_beta_slow", 1.0),
    }
    said = {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_type": name, "factor": factor} | said | turns


def _llama3_scaling(tensor: Tensor, base: float, size: int) -> dict[str, Any] | None:
    """Llama 3's scaling of RoPE, of what it divides each pair's frequency by.

    A wavelength w below L / high is left alone, one above L / low is multiplied by the factor, and
    in between its share s = (L / w - low) / (high - low) of itself goes on. Of L, low and high the
    numbers tell L / low and L / high alone: 1 is taken for low, and 4 for high where it will do.

    Raises:
      UserError: the numbers are not of that form.
    """
    if tensor.shape != (size // 2,):
        raise UserError(
            f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}, and {[size // 2]} by "
            "the metadata"
        )
    there = tensor.read().astype(np.float64)
    waves = 2 * math.pi * base ** (np.arange(0, size, 2) / size)
    factor = float(np.max(there))
    if np.all(there == 1.0):
        return None
    between = (there > 1.0) & (there < factor)
    if factor > 1.0 and between.any():
        share = (1 / there[between] - 1 / factor) / (1 - 1 / factor)
        guesses = [(float(np.mean(waves[between] * (1 + 3 * share))), 4.0)]
        if between.sum() > 1:  # s = L / (high - 1) / w - 1 / (high - 1)
            slope, shift = np.polyfit(1 / waves[between], share, 1)
            guesses.append((slope / -shift, 1 - 1 / shift))
        for original, high in guesses:
            if not (math.isfinite(original) and original >= 2 and high > 1):
                continue
            length, high = round(original), round(high, 3)
            smooth = np.clip((length / waves - 1) / (high - 1), 0, 1)
            if np.allclose(1 / ((1 - smooth) / factor + smooth), there, rtol=2e-5, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": length,
                }
    raise UserError(f"{tensor.file}: tensor {tensor.name} holds other factors than Llama 3's")
