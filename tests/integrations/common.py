"""A small random Llama, in the form that transformers saves, and what it makes of tokens."""

import json

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lenext.models import with_method
from lenext.workdirs.pretrained import load_run
from tests.data import kinds

VOCAB, HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, LENGTH = 403, 32, 48, 4, 2, 2, 48
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
CHAT = """
{%- if messages[0]['role'] == 'system' and messages|length > 3 -%}
  {{ raise_exception('too many') }}
{%- endif -%}
{{ bos_token }}
{%- for message in messages %}
<{{ message['role'] }}>{{ message['content'] | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}
<assistant>
{%- endif -%}
"""
TEXT = "Pass key A: 48213\nabcd efgh é\n" * 4
"""Longer than LENGTH tokens."""


def save_llama(folder):
    """Writes random weights, a tokeniser, and a chat template."""
    kinds.save("llama3", folder)
    rng = np.random.default_rng(0)
    key = HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV_HEADS * key, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * key, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    named = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in shapes.items()
    }
    named |= {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }  # fmt: skip
    weights = {
        name: (rng.normal(size=shape) * 0.4 + (len(shape) == 1)).astype(np.float32)
        for name, shape in named.items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "hidden_act": "silu",
        "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "chat_template": CHAT,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def under(workdir, method):
    """The model by itself, under a method that starts from its own rotation."""
    run = load_run(workdir)
    return with_method(run.model, run.read_methods(method or "trained"))


def compiled(model):
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))
    return lambda tokens: np.asarray(run(state, np.asarray([tokens], np.int32)))[0]


def log_likelihoods(model, tokens):
    """Of each token after the first, from all logits, and whether it is the likeliest.

    The last token is not read: for a method that follows the length the text is as long as what is.
    """
    logits = compiled(model)(tokens[:-1]).astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return logs[np.arange(len(tokens) - 1), tokens[1:]], logits.argmax(axis=-1) == tokens[1:]
