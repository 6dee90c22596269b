"""What transformers says of a folder that was written for it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenext.importing.rules import Recipe


def check_with_transformers(
    folder: Path, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Lets transformers read config.json and make its model of it, without numbers.

    Args:
      folder: with config.json.
      recipe: of that.
      shapes: of the tensors that lie beside it, by name.

    Returns:
      What is wrong; "" for nothing, where transformers or PyTorch is not installed, or for a kind
      of model that it does not know.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch  # pyright: ignore[reportMissingImports]
            import transformers  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ""
    kind = str(recipe.config["model_type"])
    if kind not in transformers.CONFIG_MAPPING:
        return ""
    kinds: Any = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if recipe.model["family"] == "decoder"
        else transformers.MODEL_FOR_MASKED_LM_MAPPING
    )
    logging = transformers.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.from_pretrained(folder)
            theirs = {
                name: tuple(x.shape) for name, x in kinds[type(config)](config).state_dict().items()
            }
    except Exception as error:  # whatever a library may raise of a config that it cannot do with
        return " ".join(str(error).split())
    finally:
        logging.set_verbosity(verbosity)
    forms = {recipe.form(name): shape for name, shape in theirs.items()}
    for name, shape in shapes.items():
        form = recipe.form(name)
        wanted = forms.get(form)
        if form is not None and wanted != shape:
            said = "none of that name" if wanted is None else list(wanted)
            return f"tensor {name} is {list(shape)}, and {said} in its model"
    return ""
