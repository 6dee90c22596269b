"""What a config.json asks for is taken over or refused by name."""

import json

import numpy as np
import pytest

from lenext.attention import make_method, make_pattern
from lenext.errors import UserError
from lenext.importing import import_checkpoint
from lenext.importing.recipes import KINDS, pattern, read_recipe
from lenext.models import load_pretrained
from tests.importing.conftest import GOLDEN, copy, golden_rows


def changed(tmp_path, name, **changes):
    """A folder like a golden one, with keys of its config.json changed; None takes one out."""
    tmp_path.mkdir(exist_ok=True)
    folder = copy(GOLDEN / name, tmp_path / name)
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "gone"}))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "gemma"}, f"'gemma': should be one of {', '.join(KINDS)}"),
        ("llama", {"model_type": "gone"}, "model_type=None"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not"),
        ("llama", {"logit_scale": 0.5}, "logit_scale=0.5 is not known here and may change"),
        ("llama", {"sliding_window": 8}, "sliding_window=8 is not known here"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=['full_"),
        ("qwen2", {"is_causal": False}, "is_causal=False is not supported"),
        ("gpt2", {"is_causal": False}, "is_causal=False is not supported"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved=True is not known here"),
        *[
            (name, {key: 10**9}, f"{key}=1000000000: the folder's weights are ")
            for name, key in (
                ("llama", "num_hidden_layers"), ("qwen2", "num_hidden_layers"),
                ("gpt2", "n_layer"),
            )
        ],
        ("llama", {"hidden_size": 10**400}, "hidden_size: should be below 2^31"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps=1000"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=inf: should be a number above 0"),
        (
            "llama_yarn", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling and rope_parameters differ; take one of them out",
        ),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported without attention_bias"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3: should divide"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0: should be a whole number"),
        ("llama", {"vocab_size": "gone"}, "vocab_size=None: should be a whole number"),
        ("llama", {"rms_norm_eps": -1}, "rms_norm_eps=-1: should be a number above 0"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': should be true or"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (
            "llama", {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "rope_scaling: type 'proportional' is not supported, only default, linear",
        ),
        (
            "phi3_longrope", {"rope_parameters": {"type": "longrope", "long_factor": [1.0] * 8}},
            "rope_scaling: short_factor: should be 8 numbers, and is None",
        ),
        (
            "phi3_longrope", {"rope_parameters": {"rope_type": "su", "long_factor": [1.0]}},
            "rope_scaling: long_factor: should be 8 numbers, and is 1 numbers",
        ),
        (
            "phi3_longrope", {"rope_parameters": {"rope_type": "su", "long_factor": [0] * 8}},
            "rope_scaling: long_factor=0: should be a number above 0",
        ),
        (
            "phi3_longrope", {"rope_parameters": {"rope_type": "longrope"},
                              "original_max_position_embeddings": "gone"},
            "original_max_position_embeddings=None: should be a whole number",
        ),
        ("phi3", {"full_attn_mod": 2}, "full_attn_mod=2 is not supported, only 1"),
        (
            "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0,
                                          "partial_rotary_factor": 0.5}},
            "rope_scaling: partial_rotary_factor is not supported",
        ),
        (
            "llama", {"rope_parameters": {"rope_type": "linear", "mrope_section": [1]}},
            "rope_scaling: key 'mrope_section' is not supported with type 'linear'",
        ),
        ("llama", {"rope_parameters": {"type": "linear"}}, "factor=None: should be a number above"),
        (
            "llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "truncate=False is not supported",
        ),
        ("qwen2_windows", {"layer_types": ["full_attention"]}, "layer_types: should be 2 times"),
        ("qwen2", {"layer_types": 5}, "has windows, and use_sliding_window none"),
        ("qwen2_windows", {"max_window_layers": "1"}, "max_window_layers='1': should be a whole"),
        ("llama", {"model_type": ["llama"]}, "model_type=['llama']: should be one of"),
        (
            "llama", {"rope_parameters": {"rope_type": ["x"]}},
            "rope_scaling: type ['x'] is not supported",
        ),
        (
            "llama", {"rope_parameters": {"rope_theta": "1e4"}},
            "rope_scaling: rope_theta='1e4': should be a number above 0",
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "has windows, and use_sliding_w"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx=True is not"),
        ("gpt2", {"n_head": 3}, "n_head=3: should divide n_embd=16"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu' or"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias=False is not supported"),
        ("gpt_neox", {"num_attention_heads": 3}, "num_attention_heads=3: should divide hidden_s"),
        (
            "gpt_neox", {"rope_parameters": "gone", "rotary_pct": 0.2},
            "partial_rotary_factor=0.2: should leave an even number of the 16 dimensions",
        ),
        ("gpt_neox", {"rope_parameters": "gone", "rotary_pct": 1.5}, "to turn, and leaves 24"),
        ("roformer", {"rotary_value": True}, "rotary_value=True is not supported"),
        ("roformer", {"embedding_size": 8}, "embedding_size=8 is not supported, only 16"),
        ("gau_alpha", {"attention_scale": False}, "attention_scale=False is not supported"),
        ("gau_alpha", {"normalization": "l1"}, "normalization='l1' is not supported, only"),
    ],
)  # fmt: skip
def test_what_is_not_supported(tmp_path, name, changes, message):
    with pytest.raises(UserError) as error:
        read_recipe(changed(tmp_path, name, **changes))
    assert message in str(error.value)
    assert str(tmp_path / name / "config.json") in str(error.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"should be a folder that holds config.json"):
        read_recipe(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config.json; looked for that and weights"):
        read_recipe(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: should be JSON"):
        read_recipe(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config.json: should be JSON"):
        read_recipe(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        read_recipe(tmp_path / ("x" * 300))


def test_what_published_configs_say_beside(tmp_path):
    """SmolLM2, mirrors of Llama 3.2, and older conversions of LLaMA."""
    folder = changed(
        tmp_path, "llama", is_llama_config=True, rope_interleaved=False, unsloth_fixed=True,
        unsloth_version="2024.9", max_sequence_length=2048, layer_types=["full_attention"] * 2,
        is_causal=True, **{"transformers.js_config": {"dtype": "q4"}},
    )  # fmt: skip
    assert read_recipe(folder).model == read_recipe(GOLDEN / "llama").model


# (model, hidden_size, heads, intermediate_size, layers, activation, dimensions that turn)
NEOX = [
    ("pythia-70m", 512, 8, 2048, 6, "gelu", 16), ("pythia-2.8b", 2560, 32, 10240, 32, "gelu", 20),
    ("gpt-neox-20b", 6144, 64, 24576, 44, "gelu_fast", 24),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hidden", "heads", "inside", "layers", "act", "turned"), NEOX)
def test_published_gpt_neox_configs(tmp_path, name, hidden, heads, inside, layers, act, turned):
    """As these were published, years before `rope_parameters`."""
    content = {
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": act, "hidden_size": hidden, "initializer_range": 0.02,
        "intermediate_size": inside, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "model_type": "gpt_neox", "num_attention_heads": heads, "num_hidden_layers": layers,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
        "use_parallel_residual": True, "vocab_size": 50304,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    recipe = read_recipe(tmp_path)
    assert recipe.model["method"] == f"softmax(base=10000.0,pairing='halves',rotary_dim={turned})"
    assert recipe.model["mlp"] == {"gelu": "erf", "gelu_fast": "plain"}[act]
    assert recipe.makes("gpt_neox.layers.5.attention.masked_bias")


GEMMA = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
LOCAL, GLOBAL = (f"softmax(base={base},pairing='halves'" for base in ("10000.0", "1000000.0"))


def read_gemma(tmp_path, **more):
    content = {k: x for k, x in (GEMMA | more).items() if x != "gone"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_recipe(tmp_path)


def test_published_gemma3_configs(tmp_path):
    """1B, whose 26 layers are four times six and two, and 270M; and the text part of 27B."""
    recipe = read_gemma(
        tmp_path, cache_implementation="hybrid", hidden_size=1152, intermediate_size=6912,
        num_hidden_layers=26, sliding_window_pattern=6,
    )  # fmt: skip
    local = f"{LOCAL})+windowed(window=512)"
    assert recipe.model["method"] == "|".join([local] * 5 + [f"{GLOBAL})"])
    assert recipe.model["tied_head"]
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 3
    small = read_gemma(
        tmp_path, _sliding_window_pattern=6, layer_types=kinds, use_bidirectional_attention=False,
        hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
    )  # fmt: skip
    assert small.model["method"] == recipe.model["method"]
    large = read_gemma(
        tmp_path, hidden_size=5376, head_dim=128, num_attention_heads=32, num_key_value_heads=16,
        num_hidden_layers=62, intermediate_size=21504, query_pre_attn_scalar=168,
        sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"},
    )  # fmt: skip
    layers = make_pattern(large.model["method"], train_length=131072).over(62)
    dot = make_method("softmax", train_length=8, logit_scale=168**-0.5).similarity
    assert layers[60].similarity == layers[5].similarity == dot
    assert (layers[5].position.base, layers[5].position.scale) == (1e6, 8.0)
    assert layers[61].position == make_method("softmax(pairing='halves')", train_length=8).position
    assert layers[61].visibility.window == 1024


def test_published_gemma2_configs(tmp_path):
    """2B, and 27B, whose scale is not that of its heads; bounds are there where nobody says so."""
    shared = {"model_type": "gemma2", "rope_local_base_freq": "gone", "rope_theta": 10000.0,
              "max_position_embeddings": 8192, "sliding_window": 4096}  # fmt: skip
    small = read_gemma(
        tmp_path, **shared, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, cache_implementation="hybrid",
    )  # fmt: skip
    capped = f"{LOCAL},softcap=50.0)"
    assert small.model["method"] == f"{capped}+windowed(window=4096)|{capped}"
    assert (small.model["logit_softcap"], small.model["qk_norm"]) == (30.0, False)
    large = read_gemma(
        tmp_path, **shared, hidden_size=4608, intermediate_size=36864, num_hidden_layers=46,
        head_dim=128, query_pre_attn_scalar=144, attn_logit_softcapping="gone",
        final_logit_softcapping="gone",
    )  # fmt: skip
    scaled = f"{LOCAL},logit_scale={144**-0.5},softcap=50.0)"
    assert large.model["method"] == f"{scaled}+windowed(window=4096)|{scaled}"
    assert large.model["logit_softcap"] == 30.0
    none = read_gemma(
        tmp_path, **shared, hidden_size=64, intermediate_size=32, num_hidden_layers=2
    )  # where null says there is none
    assert none.model["method"] == f"{LOCAL})+windowed(window=4096)|{LOCAL})"
    assert none.model["logit_softcap"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": -1}, "final_logit_softcapping=-1: should be a number above 0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not"),
        ({"layer_types": ["full_attention"]}, "layer_types: should be 2 times full_attention or"),
        ({"layer_types": [["x"], 1]}, "layer_types: should be 2 times full_attention or"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters: should be an object of full"),
        ({"rope_parameters": {"full_attention": 3}}, "should be an object"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: should divide"),
        ({"sliding_window": 0}, "sliding_window=0: should be a whole number"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu' is not supported, only 'gelu_"),
        (
            {"rope_parameters": {"full_attention": {"type": "linear", "factor": 2.0}},
             "rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling and rope_parameters differ",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_of_gemma3(tmp_path, changes, message):
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
    with pytest.raises(UserError) as error:
        read_gemma(tmp_path, **sizes, **changes)
    assert message in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


def published_phi3(tmp_path, **more):
    """What the config.json files of microsoft's have in common, and `more`."""
    content = {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True,
        "vocab_size": 32064,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content | more))
    return read_recipe(tmp_path)


def test_published_phi3_configs(tmp_path):
    """Phi-3-mini-4k, -128k as first published and Phi-4-mini."""
    recipe = published_phi3(
        tmp_path, max_position_embeddings=4096, rope_scaling=None, sliding_window=2047
    )
    plain = "softmax(base=10000.0,pairing='halves')+windowed(window=2047)"
    assert (recipe.train_length, recipe.model["method"]) == (4096, plain)
    for kind, turned, pairs in (("su", {}, 48), ("longrope", {"partial_rotary_factor": 0.75}, 36)):
        longs, shorts = [1.0 + i for i in range(pairs)], [1.05] * pairs
        recipe = published_phi3(
            tmp_path, max_position_embeddings=131072, sliding_window=262144, **turned,
            rope_scaling={"type": kind, "long_factor": longs, "short_factor": shorts},
        )  # fmt: skip
        method = make_method(recipe.model["method"], train_length=recipe.train_length)
        made = method.position
        assert (made.scale, made.original_length) == (32.0, 4096)
        assert (made.factors, made.short_factors) == (tuple(longs), tuple(shorts))
        assert made.rotary_dim == (72 if turned else None)
        assert method.follows_length


def test_the_older_spelling_may_stand_beside_the_newer(tmp_path):
    content = json.loads((GOLDEN / "llama_yarn" / "config.json").read_text())
    folder = changed(tmp_path, "llama_yarn", rope_scaling=content["rope_parameters"])
    assert read_recipe(folder).model == read_recipe(GOLDEN / "llama_yarn").model


@pytest.mark.parametrize(
    ("rope", "method"),
    [
        ({}, "softmax(base=10000.0,pairing='halves')"),
        ({"rope_theta": 5e5}, "softmax(base=500000.0,pairing='halves')"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 100},
            "pi(base=100.0,pairing='halves',scale=2.0)",
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "dynamic_ntk(base=10000.0,pairing='halves',scale=2.0,original_length=24)",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 12}},
            "llama3(base=10000.0,pairing='halves',scale=8.0,original_length=12,fast_turns=4.0,"
            "slow_turns=1.0)",
        ),
    ],
)  # fmt: skip
def test_rope_as_older_files_say_it(tmp_path, rope, method):
    folder = changed(tmp_path, "llama", rope_parameters="gone", **rope)
    assert read_recipe(folder).model["method"] == method


def test_mistral_has_its_window_where_nobody_says_none(tmp_path):
    folder = changed(tmp_path, "mistral", sliding_window="gone")
    assert read_recipe(folder).model["method"].endswith("+windowed(window=4096)")


def test_qwen_has_none_where_the_window_is_null(tmp_path):
    folder = changed(tmp_path, "qwen2_windows", sliding_window=None, layer_types=None)
    assert "windowed" not in read_recipe(folder).model["method"]
    folder = changed(tmp_path / "again", "qwen2_windows", sliding_window=None)
    with pytest.raises(UserError, match="layer_types: has windows"):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ("aaaa", "a"),
        ("abab", "a|b"),
        ("aabb", "a|a|b|b"),
        ("aba", "a|b"),
        ("abca", "a|b|c"),
        ("aab", "a|a|b"),
        ("a", "a"),
    ],
)
def test_pattern(methods, expected):
    assert pattern(list(methods)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts (by num_local_"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "a mixture of experts (by num_experts)"),
        ({"model_type": "dbrx"}, "a mixture of experts (as dbrx)"),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "multi-head latent attention (by kv_"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder beside its decoder (by is_"),
        ({"model_type": "llava", "vision_config": {"a": 1}}, "a vision part (by vision_config)"),
        ({"model_type": "qwen2_audio", "audio_config": {"a": 1}}, "an audio part (by audio_"),
        ({"model_type": "llama", "num_experts": 8}, "a mixture of experts (by num_experts)"),
    ],
)  # fmt: skip
def test_kinds_of_models_that_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        read_recipe(tmp_path)
    assert str(refused.value).startswith(f"{path}: the model has {message}")
    assert str(refused.value).endswith("), which is not supported")


def test_what_says_that_there_is_none_of_it(tmp_path):
    folder = changed(tmp_path, "llama", is_encoder_decoder=False, num_experts=0, vision_config=None)
    assert read_recipe(folder).train_length == 24


def test_rotations_by_type_of_layer(tmp_path):
    """As transformers 5 may say them; of a family that has one, all are to be the same."""
    same = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    other, types = same | {"factor": 4.0}, ["full_attention", "sliding_attention"]
    plain = changed(tmp_path / "a", "qwen2_windows", rope_parameters=same, layer_types=types)
    wanted = read_recipe(plain).model["method"]
    assert wanted.startswith("pi(base=500.0,pairing='halves',scale=2.0)|")
    nested = changed(
        tmp_path / "b", "qwen2_windows", rope_parameters=dict.fromkeys(types, same),
        layer_types=types,
    )  # fmt: skip
    assert read_recipe(nested).model["method"] == wanted
    differ = changed(
        tmp_path / "c", "qwen2_windows", layer_types=types,
        rope_parameters=dict(zip(types, (same, other), strict=True)),
    )  # fmt: skip
    with pytest.raises(UserError, match="differ between full_attention and sliding_attention"):
        read_recipe(differ)


def test_older_keys_of_a_rotation(tmp_path):
    """As in the files of Llama 2, of YaRN's authors, and of Llama 3.1 before transformers 5."""
    for i, (scaling, method) in enumerate(
        [
            ({"type": "linear", "factor": 2.0}, "pi(base=700.0,pairing='halves',scale=2.0)"),
            (None, "softmax(base=700.0,pairing='halves')"),
            (
                {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6,
                 "finetuned": True},
                "yarn(base=700.0,pairing='halves',scale=4.0,original_length=6,",
            ),
        ]
    ):  # fmt: skip
        folder = changed(
            tmp_path / str(i), "llama", rope_parameters="gone", rope_theta=700.0,
            rope_scaling=scaling,
        )  # fmt: skip
        assert read_recipe(folder).model["method"].startswith(method)


def test_a_hub_cache_as_it_lies(tmp_path):
    """Links to files named by their hashes; several formats, and another model's, side by side."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b2c"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((GOLDEN / "llama").iterdir())):
        (blobs / f"{i:064x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
                 "consolidated.safetensors", "model.gguf"):  # fmt: skip
        (snapshot / name).write_bytes(b"another format")
    (snapshot / "original").mkdir()
    (snapshot / "original" / "params.json").write_text("{}")
    (snapshot / "original" / "consolidated.00.pth").write_bytes(b"another format")
    import_checkpoint(snapshot, tmp_path / "run")
    tokens, mask = golden_rows()
    logits = np.asarray(load_pretrained(tmp_path / "run")(tokens, mask=mask))
    expected = np.load(GOLDEN / "llama" / "logits.npy")
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)

    for folder, message in (
        (tmp_path, rf"looked for that and weights; it is a hub's cache, .* in {snapshot}$"),
        (
            snapshot / "original",
            r"original: holds no config\.json; .* is often in the folder above$",
        ),
        (blobs, r"blobs: holds no config\.json; looked for that and weights$"),
    ):
        with pytest.raises(UserError, match=message):
            read_recipe(folder)
    (blobs / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"of GGUF files, name one: --source=.*m\.gguf$"):
        read_recipe(blobs)
