"""Small models of transformers, randomly initialised: what imports are compared with.

Wants torch and transformers, and for GAU-α `pip install --no-deps gau-alpha==0.0.3`. Makes the
golden values, too, for where these are missing:

    python -m tests.importing.peers
"""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 24
VOCAB = 37

LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA3 = LLAMA | {
    "rms_norm_eps": 1e-6, "head_dim": 8, "num_hidden_layers": 5, "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    "query_pre_attn_scalar": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
NEOX = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": LENGTH, "initializer_range": 0.3,
    "hidden_act": "gelu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PHI3 = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": LENGTH,
    "original_max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.75,
    "short_factor": [0.9978, 1.0, 1.05, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 1.2, 1.5, 3.0, 5.0, 7.0],
}  # fmt: skip
ROFORMER = {
    "vocab_size": VOCAB, "hidden_size": 16, "embedding_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
}  # fmt: skip
GAU = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "attention_key_size": 8, "max_position_embeddings": LENGTH, "initializer_range": 0.3,
}  # fmt: skip


def scaled(kind: str, **rope: Any) -> dict[str, Any]:
    return LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **rope}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gau_alpha": ("GAUAlphaForMaskedLM", GAU),
    "gau_alpha_relu": ("GAUAlphaForMaskedLM", GAU | {"normalization": "squared_relu"}),
    "gau_alpha_softmax": (
        "GAUAlphaForMaskedLM", GAU | {"normalization": "softmax", "use_bias": True},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LENGTH,
         "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama_attention_bias": ("LlamaForCausalLM", LLAMA | {"attention_bias": True}),
    "llama_biased": ("LlamaForCausalLM", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama_dynamic": ("LlamaForCausalLM", scaled("dynamic", factor=2.0)),
    "llama_linear": ("LlamaForCausalLM", scaled("linear", factor=2.5)),
    "llama_llama3": (
        "LlamaForCausalLM",
        scaled("llama3", factor=8.0, original_max_position_embeddings=12, low_freq_factor=1.0,
               high_freq_factor=4.0),
    ),
    "llama_tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True, "head_dim": 6}),
    "llama_yarn": (
        "LlamaForCausalLM",
        scaled("yarn", factor=3.0, original_max_position_embeddings=8, beta_fast=2, beta_slow=0.5),
    ),
    "llama_yarn_mscale": (
        "LlamaForCausalLM",
        scaled("yarn", factor=3.0, original_max_position_embeddings=8, mscale=1.0,
               mscale_all_dim=0.5),
    ),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": 7, "head_dim": 8}),
    "mistral_full": ("MistralForCausalLM", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2_windows": (
        "Qwen2ForCausalLM",
        LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
                 "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 8}),
    "roformer": ("RoFormerForMaskedLM", ROFORMER),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX),
    "gpt_neox_serial": (
        "GPTNeoXForCausalLM",
        NEOX | {"use_parallel_residual": False, "hidden_act": "gelu_fast",
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0,
                                    "partial_rotary_factor": 1.0}},
    ),
    "phi3": ("Phi3ForCausalLM", PHI3 | {"sliding_window": 7}),
    "phi3_longrope": (
        "Phi3ForCausalLM",
        PHI3 | {"original_max_position_embeddings": 8, "rope_parameters": LONGROPE,
                "tie_word_embeddings": True},
    ),
    "phi3_longrope_short": (
        "Phi3ForCausalLM",
        PHI3 | {"max_position_embeddings": 4 * LENGTH, "rope_parameters": LONGROPE},
    ),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3),
    "gemma3_linear": (
        "Gemma3ForCausalLM",
        GEMMA3 | {"query_pre_attn_scalar": 8, "tie_word_embeddings": False, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        GEMMA3 | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
                  "layer_types": None, "num_hidden_layers": 3},
    ),
}  # fmt: skip


def make(name: str) -> torch.nn.Module:
    """A model with every parameter at random, gains and offsets too."""
    kind, sizes = CASES[name]
    cls = _gau_alpha() if kind.startswith("GAU") else getattr(transformers, kind)
    torch.manual_seed(list(CASES).index(name))  # a new case goes to the end
    model = cls(cls.config_class(**copy.deepcopy(sizes))).eval()  # which it may fill in
    with torch.no_grad():
        if kind.startswith("GAU"):  # which the package leaves to who loads weights
            embedding = model.get_input_embeddings().weight
            model.get_output_embeddings().weight = embedding
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            assert "embed_positions" in path or torch.any(parameter != 0), path
    return model


def _gau_alpha() -> Any:
    """The class, from a package that names something that transformers has no more, in vain."""
    transformers.modeling_utils.SequenceSummary = None
    import gau_alpha  # pyright: ignore[reportMissingImports]

    return gau_alpha.GAUAlphaForMaskedLM


def save(model: torch.nn.Module, folder: Path) -> None:
    """As its library does; GAU-α's as it was released."""
    if model.config.model_type == "gau_alpha":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)


def sequences(length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of tokens, and the mask that hides the last of the second row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCAB, (2, length))
    return tokens, np.arange(length)[None] < np.asarray([[length], [length - 5]])


def logits(model: torch.nn.Module, length: int = LENGTH) -> np.ndarray:
    """Of these sequences, padded ones too."""
    tokens, mask = sequences(length)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            return_dict=True,
        )
    return out.logits.float().numpy()


def main() -> None:
    for name in sys.argv[1:] or CASES:
        model = make(name)
        save(model, GOLDEN / name)
        np.save(GOLDEN / name / "logits.npy", logits(model))


if __name__ == "__main__":
    main()
