"""A decoder of ours as a folder of Llama's kind says it."""

import json
from pathlib import Path

from lenext.attention.axes.position import Rope
from lenext.config import Config, read_methods
from lenext.errors import UserError


def write_llama_source(folder: Path, config: Config, vocab_size: int, workdir: Path) -> None:
    """Writes the config.json of Llama, Qwen2 or Qwen3, whichever has what the model has.

    Args:
      folder: where to.
      config: of the run.
      vocab_size: of its model.
      workdir: of the run.

    Raises:
      UserError: none of them has.
    """
    model = config.model
    kinds = {
        ("", False): ("llama", {}),
        ("qkvo", False): ("llama", {"attention_bias": True}),
        ("qkv", False): ("qwen2", {}),
        ("", True): ("qwen3", {}),
        ("qkvo", True): ("qwen3", {"attention_bias": True}),
    }
    kind = kinds.get((model.attention_bias, model.qk_norm))
    shape = (model.family, model.mlp, model.norm, model.max_positions, model.use_bias)
    if kind is None or shape != ("decoder", "gated", "rms", 0, False):
        raise UserError(
            f"workdir {workdir}: only a decoder with mlp=gated, norm=rms, no learned positions and "
            "no use_bias has a form in other libraries (Llama's, Qwen2's or Qwen3's)"
        )
    methods = read_methods(model.method, config.data.train_length)
    position = methods[0].position
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
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
