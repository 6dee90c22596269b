"""A decoder of ours as a folder of Llama's kind says it."""

import json
import shutil
from pathlib import Path

from lenext.attention import methods_of
from lenext.attention.axes.position import Rope
from lenext.buckets import AnyPath
from lenext.config import Config, read_methods
from lenext.data import Frame, VocabularyTokenizer, open_tokenizer
from lenext.errors import UserError
from lenext.importing.tokenizer import JSON, VOCABULARY
from lenext.workdirs.chat import SETTINGS


def write_llama_source(folder: Path, config: Config, vocab_size: int, workdir: AnyPath) -> None:
    """Writes the config.json of Llama, Mistral, Qwen2 or Qwen3, whichever has what the model has.

    The run's tokeniser goes beside it, and what texts start and end with into both.

    Args:
      folder: where to.
      config: of the run.
      vocab_size: of its model.
      workdir: of the run.

    Raises:
      UserError: none of them has, or the tokeniser is not there.
    """
    model = config.model
    # Llama's own wants heads that share the hidden size among them; Mistral's is the same without.
    shared = model.num_heads and model.hidden_size % model.num_heads == 0
    kinds = {
        ("", False): ("llama", {}) if shared else ("mistral", {"sliding_window": None}),
        ("qkvo", False): ("llama", {"attention_bias": True}),
        ("qkv", False): ("qwen2", {}),
        ("", True): ("qwen3", {}),
        ("qkvo", True): ("qwen3", {"attention_bias": True}),
    }
    kind = kinds.get((model.attention_bias, model.qk_norm))
    shape = (model.family, model.mlp, model.norm, model.max_positions, model.use_bias)
    others = (
        model.parallel_residual, model.post_norm, model.scaled_embedding, model.logit_softcap
    )  # fmt: skip
    if kind is None or shape != ("decoder", "gated", "rms", 0, False) or any(others):
        raise UserError(
            f"workdir {workdir}: only a decoder with mlp=gated, norm=rms, no learned positions, "
            "and no use_bias, parallel_residual, post_norm, scaled_embedding or logit_softcap has "
            "a form in other libraries (Llama's, Qwen2's or Qwen3's)"
        )
    if kind[0] == "llama" and not shared:
        raise UserError(
            f"workdir {workdir}: hidden_size={model.hidden_size} should be a multiple of "
            f"num_heads={model.num_heads} in Llama's form, which alone has these biases"
        )
    frame = _write_tokenizer(folder, config)
    methods = read_methods(model.method, config.data.train_length)
    position = methods_of(methods[0])[0].position
    content = {
        "model_type": kind[0],
        **kind[1],
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        "head_dim": model.key_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon or 1e-6,
        "tie_word_embeddings": model.tied_head,
        "max_position_embeddings": config.data.train_length,
        "rope_theta": position.base if isinstance(position, Rope) else 10000.0,
        # Said where there is none, too: what is left open, transformers fills in with ids 1 and 2.
        "bos_token_id": frame.start[0] if frame.start else None,
        "eos_token_id": list(frame.stops) if len(frame.stops) > 1 else frame.end,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def _write_tokenizer(folder: Path, config: Config) -> Frame:
    """Copies the tokeniser's file, under the name that it has elsewhere; returns what it frames."""
    tokenizer = open_tokenizer(config)
    if not isinstance(tokenizer, VocabularyTokenizer):
        return tokenizer.frame
    path = Path(config.data.tokenizer)
    named = JSON if path.suffix == ".json" else VOCABULARY
    shutil.copyfile(path, folder / named)
    if named == JSON:
        token, frame = tokenizer.library.id_to_token, tokenizer.frame
        settings = {
            # Not Llama's, which would put its own <s> before each text.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(frame.start[0]) if frame.start else None,
            "eos_token": None if frame.end is None else token(frame.end),
            "clean_up_tokenization_spaces": False,
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer.frame
