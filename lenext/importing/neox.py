"""GPT-NeoX as its config.json says it: Pythia and GPT-NeoX-20B."""

from lenext.errors import UserError
from lenext.importing.keys import Keys
from lenext.importing.rope import rope_method
from lenext.importing.rules import Recipe, Rule, layer_norm, linear

ACTIVATIONS = {"gelu": "erf"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "plain"
)


def neox(keys: Keys) -> Recipe:
    """Attention and MLP side by side, a part of each head turned, q, k and v head by head."""
    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    layers, tied = keys.whole("num_hidden_layers"), keys.flag("tie_word_embeddings", False)
    length = keys.whole("max_position_embeddings", 2048)
    keys.only("attention_bias", True)
    keys.only("hidden_act", *ACTIVATIONS)
    keys.asked |= {"hidden_dropout", "is_decoder"}
    if hidden % heads:
        raise UserError(
            f"{keys.path}: num_attention_heads={heads}: should divide hidden_size={hidden}"
        )
    method = rope_method(
        keys, length, head_dim=hidden // heads, theta="rotary_emb_base", share="rotary_pct",
        default_share=0.25,
    )  # fmt: skip
    model = {
        "family": "decoder",
        "method": method,
        "vocab_size": keys.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "key_size": hidden // heads,
        "mlp": ACTIVATIONS[keys.get("hidden_act", "gelu")],
        "norm": "layer",
        "norm_epsilon": keys.number("layer_norm_eps", 1e-5),
        "parallel_residual": keys.flag("use_parallel_residual", True),
        "tied_head": tied,
        "use_bias": True,
    }
    rules = [
        Rule("gpt_neox.embed_in.weight", ("embedding.embedding",)),
        *layer_norm("gpt_neox.final_layer_norm", "norm"),
    ]
    if not tied:
        rules += linear("embed_out", "head", bias=False)
    for i in range(layers):
        theirs, ours = f"gpt_neox.layers.{i}", f"layers.{i}"
        maps = [f"{ours}.self_attention.{name}_proj" for name in "qkv"]
        rules += [
            *layer_norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm"),
            *layer_norm(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm"),
            *linear(f"{theirs}.attention.query_key_value", *maps, bias=True, heads=heads),
            *linear(f"{theirs}.attention.dense", f"{ours}.self_attention.o_proj", bias=True),
            *linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up_proj", bias=True),
            *linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down_proj", bias=True),
        ]
    copies = {"embed_out.weight": "gpt_neox.embed_in.weight"} if tied else {}
    made = [
        f"gpt_neox.layers.{i}.attention.{name}"
        for i in range(layers)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    ]
    return Recipe(model, length, rules, copies, made, prefixes=("gpt_neox.",))
