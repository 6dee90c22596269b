"""Gemma 2, and Gemma 3's language models, as their config.json says it."""

from collections.abc import Mapping

from lenext.errors import UserError
from lenext.importing.keys import Keys
from lenext.importing.rope import rope_method
from lenext.importing.rules import Recipe, Rule, beside_layers, linear, pattern

FULL, SLIDING = "full_attention", "sliding_attention"
BASES = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
"""By kind of layer: the key of RoPE's base in older files, and its default."""

NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def gemma(keys: Keys, *, third: bool) -> Recipe:
    """Layers with a window and layers without; four norms; gains of 1 + w.

    Gemma 2 bounds logits, of attention and over the vocabulary; Gemma 3 (`third`) has two RoPE
    bases and normalises queries and keys in place of that.
    """
    heads, kv_heads = keys.whole("num_attention_heads"), keys.whole("num_key_value_heads")
    layers, tied = keys.whole("num_hidden_layers"), keys.flag("tie_word_embeddings", True)
    length, size = keys.whole("max_position_embeddings"), keys.whole("head_dim", 256)
    keys.only("hidden_activation", "gelu_pytorch_tanh")
    keys.only("attention_bias", False)
    keys.only("use_bidirectional_attention", False)
    keys.only("is_causal", True)
    keys.asked.add("cache_implementation")
    if heads % kv_heads:
        raise UserError(
            f"{keys.path}: num_key_value_heads={kv_heads}: should divide "
            f"num_attention_heads={heads}"
        )
    model = {
        "family": "decoder",
        "method": _methods(keys, layers, length, size, third=third),
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": keys.whole("hidden_size"),
        "intermediate_size": keys.whole("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "key_size": size,
        "mlp": "geglu",
        "norm": "centred_rms",
        "norm_epsilon": keys.number("rms_norm_eps", 1e-6),
        "post_norm": True,
        "qk_norm": third,
        "scaled_embedding": True,
        "tied_head": tied,
        "logit_softcap": _softcap(keys, "final_logit_softcapping", 0 if third else 30.0),
    }
    rules, copies = beside_layers(tied=tied)
    for i in range(layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        for name, norm in NORMS.items():
            rules.append(Rule(f"{theirs}.{name}.weight", (f"{ours}.{norm}.scale",)))
        attention, inner = f"{theirs}.self_attn", f"{ours}.self_attention"
        for name in "qkvo":
            rules += linear(f"{attention}.{name}_proj", f"{inner}.{name}_proj", bias=False)
        for name in "qk" if third else "":
            rules.append(Rule(f"{attention}.{name}_norm.weight", (f"{inner}.{name}_norm.scale",)))
        for name in ("gate", "up", "down"):
            rules += linear(f"{theirs}.mlp.{name}_proj", f"{ours}.mlp.{name}_proj", bias=False)
    return Recipe(model, length, rules, copies, prefixes=("model.",))


def _softcap(keys: Keys, key: str, usual: float) -> float:
    """A bound; 0 for none, which null says too."""
    none = keys.content.get(key, usual) in (None, 0)
    keys.asked.add(key)
    return 0.0 if none else keys.number(key, usual)


def _methods(keys: Keys, layers: int, length: int, size: int, *, third: bool) -> str:
    """The method of each kind of layer, in the order of the layers."""
    every = 2
    if third:
        every = keys.whole("sliding_window_pattern", keys.whole("_sliding_window_pattern", 6))
    usual = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    kinds = keys.get("layer_types", usual)
    if not isinstance(kinds, list) or len(kinds) != layers or not {*map(str, kinds)} <= {*BASES}:
        raise UserError(f"{keys.path}: layer_types: should be {layers} times {FULL} or {SLIDING}")
    scalar, options = keys.number("query_pre_attn_scalar", 256), ""
    if scalar != size:
        options += f",logit_scale={scalar**-0.5!r}"
    if third:  # transformers has no use for it there
        keys.only("attn_logit_softcapping", None)
    elif softcap := _softcap(keys, "attn_logit_softcapping", 50.0):
        options += f",softcap={softcap!r}"
    ropes = _ropes(keys, length) if third else dict.fromkeys(BASES, rope_method(keys, length))
    methods = {kind: f"{rope.removesuffix(')')}{options})" for kind, rope in ropes.items()}
    window = keys.whole("sliding_window", 4096) if SLIDING in kinds else 0
    keys.asked.add("sliding_window")
    methods[SLIDING] += f"+windowed(window={window})"
    return pattern([methods[kind] for kind in kinds])


def _ropes(keys: Keys, length: int) -> dict[str, str]:
    """Gemma 3's rotation of each kind of layer, as a method."""
    newer, older = keys.get("rope_parameters", {}), keys.get("rope_scaling", {})
    if not isinstance(newer, Mapping) or not newer.keys() <= BASES.keys():
        raise UserError(
            f"{keys.path}: rope_parameters: should be an object of {FULL} and {SLIDING}"
        )
    methods = {}
    for kind, (key, default) in BASES.items():
        said = {"rope_theta": keys.number(key, default), "rope_parameters": newer.get(kind)}
        if kind == FULL:  # as transformers does: what was published has a scaling there alone
            said["rope_scaling"] = older
        methods[kind] = rope_method(Keys(keys.path, said), length)
    return methods
