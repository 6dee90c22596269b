"""Models of kinds that are not supported, refused by what the kind is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenext.errors import UserError

SIGNS = {
    "a mixture of experts": (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
        "num_experts_per_tok",
    ),
    "multi-head latent attention": ("kv_lora_rank", "q_lora_rank"),
    "a vision part": (
        "vision_config", "vision_tower", "mm_vision_tower", "image_token_id", "visual",
    ),
    "an audio part": ("audio_config",),
    "an encoder beside its decoder": ("is_encoder_decoder",),
}  # fmt: skip
"""What a model has, and keys of a config.json of which any says so."""

KINDS = {
    "a mixture of experts": ("mixtral", "dbrx", "grok"),
    "multi-head latent attention": ("deepseek2",),
    "an encoder beside its decoder": ("t5",),
}
"""Those whose config.json says so by "model_type" alone."""


def check_supported(path: Path, content: Mapping[str, Any]) -> None:
    """Checks that a model is a decoder or an encoder alone, of tokens, and dense.

    Args:
      path: of the file that says so.
      content: of its config.json.

    Raises:
      UserError: it is not.
    """
    kind = content.get("model_type")
    for what, signs in SIGNS.items():
        said = [key for key in signs if content.get(key) not in (None, False, 0, "", [], {})]
        if said or kind in KINDS.get(what, ()):
            by = f"by {said[0]}" if said else f"as {kind}"
            raise UserError(f"{path}: the model has {what} ({by}), which is not supported")


def hint(folder: Path) -> str:
    """Where a model may lie whose config.json was looked for in another folder; "" for nowhere."""
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if snapshots:
        return f"; it is a hub's cache, which has them in {snapshots[-1].parent}"
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"; of GGUF files, name one: --source={files[0]}"
    if (folder / "params.json").is_file():
        return "; it is in Meta's own form, and Hugging Face's is often in the folder above"
    return ""
