"""What a folder's config.json says of its model: ours, and which tensor is which parameter.

Everything that changes what a model computes is either taken over or refused by name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lenext.errors import UserError
from lenext.files import read_json
from lenext.importing.gemma import gemma
from lenext.importing.keys import Keys
from lenext.importing.neox import neox
from lenext.importing.refused import check_supported, hint
from lenext.importing.rope import rope_method
from lenext.importing.rules import Recipe, Rule, beside_layers, layer_norm, linear, pattern
from lenext.importing.tensors import open_tensors


def read_recipe(folder: Path, *, layers: int = 0, said: Path | None = None) -> Recipe:
    """The recipe of a folder's config.json.

    Args:
      folder: that holds it.
      layers: how many of its layers, the first; 0 for all.
      said: the file that says so in its place, and has as many tensors as layers.

    Raises:
      UserError: there is none, its model is of no kind known here, or it asks for something that
        is not supported; it has fewer layers.
    """
    path = folder / "config.json"
    try:
        if not folder.is_dir():
            raise UserError(f"{folder}: should be a folder that holds config.json and weights")
        if not path.exists():
            raise UserError(
                f"{folder}: holds no config.json; looked for that and weights{hint(folder)}"
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    content = read_json(path)
    path = said or path
    kind = content.get("model_type") if isinstance(content, dict) else None
    if isinstance(content, dict):
        check_supported(path, content)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: model_type={kind!r}: should be one of {', '.join(KINDS)}")
    if layers:
        content = _first_layers(path, content, layers)
    keys = Keys(path, content)
    if said is None:
        _check_layers(folder, keys)
    keys.only("quantization_config", None)
    recipe = KINDS[kind](keys)
    keys.check_rest()
    return recipe._replace(config=content, said=path)


MANY_LAYERS = 1024
"""Up to so many, a recipe is made at once; nobody has trained as many."""


def _check_layers(folder: Path, keys: Keys) -> None:
    """Checks that a folder has at least a tensor a layer, before a rule is made for each.

    Raises:
      UserError: it has not.
    """
    for key in ("n_layer", "num_hidden_layers"):
        layers = keys.content.get(key)
        if type(layers) is int and layers > MANY_LAYERS:
            there = len(open_tensors(folder))
            if keys.whole(key) > there:
                raise UserError(
                    f"{keys.path}: {key}={layers}: the folder's weights are {there} tensors"
                )


def _first_layers(path: Path, content: Mapping[str, Any], layers: int) -> dict[str, Any]:
    key = "n_layer" if "n_layer" in content else "num_hidden_layers"
    there = content.get(key)
    if type(there) is not int or not 1 <= layers <= there:
        raise UserError(f"--layers={layers}: should be from 1 to {there}, which {path} has")
    kinds = content.get("layer_types")
    cut = {"layer_types": kinds[:layers]} if isinstance(kinds, list) else {}
    return {**content, key: layers, **cut}


def _llama(
    keys: Keys, *, attention_bias: str, qk_norm: bool, windows: str, fused: bool = False
) -> Recipe:
    """Llama's shape; Mistral, Qwen2, Qwen3 and Phi-3 are this and that more.

    Args:
      keys: of the config.
      attention_bias: on which maps of attention, of "qkvo"; "asked" for what the config says.
      qk_norm: whether queries and keys are normalised.
      windows: which layers have a window: "none", "all" (but where it is null), "given" (all,
        where there is one), or those that "layer_types" names ("named").
      fused: whether q, k and v are one tensor, and gate and up another; as in Phi-3, which may turn
        a part of each head.
    """
    heads, hidden = keys.whole("num_attention_heads"), keys.whole("hidden_size")
    layers, tied = keys.whole("num_hidden_layers"), keys.flag("tie_word_embeddings", False)
    length = keys.whole("max_position_embeddings")
    keys.only("is_causal", True)
    keys.only("hidden_act", "silu", "swish")
    attention_bias, mlp_bias = _biases(keys, attention_bias)
    heads_of_all = windows in ("none", "given")
    kv_heads = keys.whole("num_key_value_heads", heads if heads_of_all else None)
    if heads % kv_heads:
        raise UserError(
            f"{keys.path}: num_key_value_heads={kv_heads}: should divide "
            f"num_attention_heads={heads}"
        )
    size = keys.whole("head_dim", 128 if qk_norm else hidden // heads)
    if fused:
        for key in ("interpolate_factor", "full_attn_mod"):  # in Phi-4's, and without effect at 1
            keys.only(key, 1)
    method = rope_method(
        keys, length, head_dim=size if fused else 0,
        also=dict.fromkeys(("su", "yarn"), "longrope") if fused else {},
    )  # fmt: skip
    slides = _slides(keys, layers, windows)
    window = keys.whole("sliding_window", 4096) if any(slides) else 0
    model = {
        "family": "decoder",
        "method": pattern(
            [f"{method}+windowed(window={window})" if slide else method for slide in slides]
        ),
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "key_size": size,
        "mlp": "gated",
        "norm": "rms",
        "norm_epsilon": keys.number("rms_norm_eps", 1e-5 if fused else 1e-6),
        "qk_norm": qk_norm,
        "tied_head": tied,
        "use_bias": mlp_bias,
        "attention_bias": "" if mlp_bias else attention_bias,
    }
    rules, copies = beside_layers(tied=tied)
    for i in range(layers):
        rules += _llama_layer(i, attention_bias, mlp_bias, qk_norm=qk_norm, fused=fused)
    made = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(layers)]
    return Recipe(model, length, rules, copies, made, prefixes=("model.",))


def _biases(keys: Keys, of_attention: str) -> tuple[str, bool]:
    """Which maps of attention have one, of "qkvo", and whether those of the MLP have."""
    if of_attention == "asked":
        of_attention = "qkvo" if keys.flag("attention_bias", False) else ""
    of_mlp = keys.flag("mlp_bias", False)
    if of_mlp and of_attention != "qkvo":
        raise UserError(f"{keys.path}: mlp_bias=True is not supported without attention_bias=True")
    return of_attention, of_mlp


def _slides(keys: Keys, layers: int, windows: str) -> list[bool]:
    """Which layers have a window, see `_llama`."""
    if windows == "named":
        return _sliding_layers(keys, layers)
    if windows == "none":
        keys.only("layer_types", ["full_attention"] * layers)
        return [False] * layers
    missing = "sliding_window" not in keys.content
    slides = bool(keys.get("sliding_window", 0)) or (windows == "all" and missing)
    return [slides] * layers


def _llama_layer(
    i: int, attention_bias: str, mlp_bias: bool, *, qk_norm: bool, fused: bool
) -> list[Rule]:
    """The rules of a layer, by its number."""
    theirs, ours = f"model.layers.{i}", f"layers.{i}"
    rules = [
        Rule(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.scale",)),
        Rule(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.scale",)),
    ]
    for names in ("qkv", "o") if fused else "qkvo":
        rules += linear(
            f"{theirs}.self_attn.{names}_proj",
            *(f"{ours}.self_attention.{name}_proj" for name in names),
            bias=names in attention_bias,
        )
    for name in "qk" if qk_norm else "":
        norm = f"{name}_norm"
        rules.append(
            Rule(f"{theirs}.self_attn.{norm}.weight", (f"{ours}.self_attention.{norm}.scale",))
        )
    for names in (("gate", "up"), ("down",)) if fused else (("gate",), ("up",), ("down",)):
        rules += linear(
            f"{theirs}.mlp.{'_'.join(names)}_proj",
            *(f"{ours}.mlp.{name}_proj" for name in names),
            bias=mlp_bias,
        )
    return rules


def _sliding_layers(keys: Keys, layers: int) -> list[bool]:
    """Qwen's: which layers have the window "sliding_window"."""
    none = "sliding_window" in keys.content and keys.content["sliding_window"] is None
    keys.asked.add("sliding_window")  # which no layer need have
    if not keys.flag("use_sliding_window", False) or none:
        kinds = keys.get("layer_types", [])
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise UserError(f"{keys.path}: layer_types: has windows, and use_sliding_window none")
        return [False] * layers
    first = keys.get("max_window_layers", 28)
    if type(first) is not int:
        raise UserError(f"{keys.path}: max_window_layers={first!r}: should be a whole number")
    named = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    kinds = keys.get("layer_types", named)
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(kind not in known for kind in kinds)
    ):
        raise UserError(
            f"{keys.path}: layer_types: should be {layers} times full_attention or "
            "sliding_attention"
        )
    return [kind == "sliding_attention" for kind in kinds]


def _gpt2(keys: Keys) -> Recipe:
    """GPT-2: learned positions, layer normalisation, biases, q, k and v in one map."""
    hidden, heads, layers = (keys.whole(key) for key in ("n_embd", "n_head", "n_layer"))
    keys.only("is_causal", True)
    keys.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.only("add_cross_attention", False)
    keys.only("tie_word_embeddings", True)
    keys.asked |= {f"summary_{x}" for x in ("type", "use_proj", "activation", "proj_to_labels",
                                            "first_dropout")}  # fmt: skip
    if hidden % heads:
        raise UserError(f"{keys.path}: n_head={heads}: should divide n_embd={hidden}")
    length = keys.whole("n_positions", 1024)
    model = {
        "family": "decoder",
        "method": "nope",
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("n_inner", 4 * hidden),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "key_size": hidden // heads,
        "mlp": "plain",
        "norm": "layer",
        "norm_epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "max_positions": length,
        "tied_head": True,
        "use_bias": True,
    }

    def convolution(theirs: str, *ours: str) -> list[Rule]:
        """Their Conv1D, which has its inputs first, as ours."""
        return [
            Rule(f"{theirs}.weight", tuple(f"{name}.kernel" for name in ours)),
            Rule(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours)),
        ]

    rules = [
        Rule("transformer.wte.weight", ("embedding.embedding",)),
        Rule("transformer.wpe.weight", ("position_embedding.embedding",)),
        *layer_norm("transformer.ln_f", "norm"),
    ]
    for i in range(layers):
        theirs, ours = f"transformer.h.{i}", f"layers.{i}"
        attention = f"{ours}.self_attention"
        rules += layer_norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        rules += layer_norm(f"{theirs}.ln_2", f"{ours}.mlp_norm")
        rules += convolution(
            f"{theirs}.attn.c_attn", *(f"{attention}.{name}_proj" for name in "qkv")
        )
        rules += convolution(f"{theirs}.attn.c_proj", f"{attention}.o_proj")
        rules += convolution(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up_proj")
        rules += convolution(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down_proj")
    copies = {"lm_head.weight": "transformer.wte.weight"}
    made = [f"transformer.h.{i}.attn.{x}" for i in range(layers) for x in ("bias", "masked_bias")]
    return Recipe(model, length, rules, copies, made, prefixes=("transformer.",))


def _roformer(keys: Keys) -> Recipe:
    """RoFormer, with its head for masked language modelling."""
    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    layers = keys.whole("num_hidden_layers")
    keys.only("embedding_size", hidden)
    keys.only("hidden_act", "gelu")
    keys.only("rotary_value", False)
    keys.only("is_decoder", False)
    keys.only("add_cross_attention", False)
    keys.only("tie_word_embeddings", True)
    if hidden % heads:
        raise UserError(
            f"{keys.path}: num_attention_heads={heads}: should divide hidden_size={hidden}"
        )
    length = keys.whole("max_position_embeddings", 1536)
    model = {
        "family": "encoder",
        "method": "softmax",
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "key_size": hidden // heads,
        "type_vocab_size": keys.whole("type_vocab_size", 2),
        "norm_epsilon": keys.number("layer_norm_eps", 1e-12),
    }

    head = "cls.predictions"
    rules = [
        Rule("roformer.embeddings.word_embeddings.weight", ("word_embedding.embedding",)),
        Rule("roformer.embeddings.token_type_embeddings.weight", ("type_embedding.embedding",)),
        *layer_norm("roformer.embeddings.LayerNorm", "embedding_norm"),
        *linear(f"{head}.transform.dense", "transform", bias=True),
        *layer_norm(f"{head}.transform.LayerNorm", "transform_norm"),
        Rule(f"{head}.bias", ("head_bias",)),
    ]
    for i in range(layers):
        theirs, ours = f"roformer.encoder.layer.{i}", f"layers.{i}"
        attention = f"{ours}.self_attention"
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            rules += linear(
                f"{theirs}.attention.self.{name}", f"{attention}.{short}_proj", bias=True
            )
        rules += linear(f"{theirs}.attention.output.dense", f"{attention}.o_proj", bias=True)
        rules += layer_norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
        rules += linear(f"{theirs}.intermediate.dense", f"{ours}.mlp.up_proj", bias=True)
        rules += linear(f"{theirs}.output.dense", f"{ours}.mlp.down_proj", bias=True)
        rules += layer_norm(f"{theirs}.output.LayerNorm", f"{ours}.mlp_norm")
    copies = {
        f"{head}.decoder.weight": "roformer.embeddings.word_embeddings.weight",
        f"{head}.decoder.bias": f"{head}.bias",
    }
    turns = "roformer.encoder.embed_positions.weight"
    made = (turns, "roformer.pooler.*", "cls.seq_relationship.*")
    return Recipe(model, length, rules, copies, made, {turns: _sines_and_cosines})


def _sines_and_cosines(shape: tuple[int, ...]) -> np.ndarray:
    """RoFormer's table of rotations [T, H]: sines of all pairs of dimensions, then cosines."""
    if len(shape) != 2 or shape[1] % 2:
        return np.zeros(())
    angles = np.arange(shape[0])[:, None] * 10000.0 ** (-2 * np.arange(shape[1] // 2) / shape[1])
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _gau_alpha(keys: Keys) -> Recipe:
    """GAU-α in its PyTorch form."""
    hidden, layers = keys.whole("hidden_size"), keys.whole("num_hidden_layers")
    keys.only("embedding_size", hidden)
    keys.only("hidden_act", "swish", "silu")
    keys.only("attention_scale", True)
    keys.only("tie_word_embeddings", True)
    methods = {"softmax_plus": "softmax_plus", "softmax": "softmax", "squared_relu": "relu2"}
    keys.only("normalization", *methods)
    bias = keys.flag("use_bias", False)
    model = {
        "family": "gau",
        "method": methods[keys.get("normalization", "softmax_plus")],
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("intermediate_size"),
        "key_size": keys.whole("attention_key_size", 128),
        "num_layers": layers,
        "type_vocab_size": keys.whole("type_vocab_size", 2),
        "norm_epsilon": keys.number("layer_norm_eps", 1e-12),
        "use_bias": bias,
    }
    embeddings = "gau_alpha.embeddings"
    rules = [
        Rule(f"{embeddings}.word_embeddings.weight", ("word_embedding.embedding",)),
        Rule(f"{embeddings}.token_type_embeddings.weight", ("type_embedding.embedding",)),
    ]
    for i in range(layers):
        theirs, ours = f"gau_alpha.encoder.layer.{i}.gau", f"layers.{i}"
        for name in "io":
            rules += linear(f"{theirs}.{name}_dense", f"{ours}.{name}_dense", bias=bias)
        for name in "qk":
            rules.append(
                Rule(f"{theirs}.{name}_scaleoffset.weight", (f"{ours}.{name}_scale.scale",))
            )
            if bias:
                rules.append(
                    Rule(f"{theirs}.{name}_scaleoffset.bias", (f"{ours}.{name}_scale.offset",))
                )
    copies = {"cls.predictions.decoder.weight": f"{embeddings}.word_embeddings.weight"}
    made = ("gau_alpha.pooler.*",)
    length = keys.whole("max_position_embeddings", 512)
    return Recipe(model, length, rules, copies, made)


def _of_llama(**what: Any) -> Callable[[Keys], Recipe]:
    return lambda keys: _llama(keys, **what)


def _of_gemma(**what: Any) -> Callable[[Keys], Recipe]:
    return lambda keys: gemma(keys, **what)


KINDS: dict[str, Callable[[Keys], Recipe]] = {
    "gau_alpha": _gau_alpha,
    "gemma2": _of_gemma(third=False),
    "gemma3_text": _of_gemma(third=True),
    "gpt2": _gpt2,
    "gpt_neox": neox,
    "llama": _of_llama(attention_bias="asked", qk_norm=False, windows="none"),
    "mistral": _of_llama(attention_bias="", qk_norm=False, windows="all"),
    "phi3": _of_llama(attention_bias="", qk_norm=False, windows="given", fused=True),
    "qwen2": _of_llama(attention_bias="qkv", qk_norm=False, windows="named"),
    "qwen3": _of_llama(attention_bias="asked", qk_norm=True, windows="named"),
    "roformer": _roformer,
}
"""By "model_type" of a config.json."""
