"""Schedules and Optax optimisers from configs."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array
from optax import contrib

from lenext.config import Config
from lenext.errors import UserError
from lenext.models import Place

# Both as published: Muon's momentum (Jordan 2024), and the root mean square of Adam's updates, to
# which Muon's are scaled (arXiv 2502.16982, equation 4).
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate by step, counted from 0: linear warm-up to the peak, then by `config.schedule`.

    "cosine" and "linear" fall from there to zero at `steps`. "wsd" (warm-up, stable, decay; arXiv
    2404.06395) stays at the peak and falls linearly over the last `config.decay_steps` steps, so
    that runs of different lengths share all that lies before their decay.
    """
    warmup = min(config.warmup_steps, steps - 1)
    peak = config.learning_rate
    start = peak / max(warmup, 1)  # no step is wasted at a rate of 0
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=start, peak_value=peak, warmup_steps=warmup, decay_steps=steps
        )
    decay = config.decay_steps if config.schedule == "wsd" else steps - warmup
    return optax.join_schedules(
        [
            optax.linear_schedule(start, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [warmup, steps - decay],
    )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser `config.name`, behind clipping by the norm of all gradients together.

    Weight decay is decoupled, times the learning rate, on what `config.decay_mask` says.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[config.name](config, schedule, DECAY_MASKS[config.decay_mask]),
    )


def frozen_parameters(patterns: str, places: Mapping[str, Place]) -> Any:
    """Which parameters stay as they are.

    A pattern is a parameter's name, such as "word_embedding.embedding", or the first parts of
    names, such as "layers.0"; * stands for any characters, dots among them, as in `fnmatch`. After
    an exclamation mark it says what does not stay: of several that fit, the last decides, so
    "*,!layers.*.attention.learned" trains what methods learn and nothing else.

    Args:
      patterns: separated by commas.
      places: of the model's parameters, see `lenext.models.places_of`.

    Returns:
      A tree like the parameters: True where a pattern fits. For what is stacked and stays in part,
      an array over its rows.

    Raises:
      UserError: one fits nothing.
    """

    def fits(name: str, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, end) for end in (pattern, f"{pattern}.*"))

    wanted = [word.strip() for word in patterns.split(",") if word.strip()]
    for pattern in wanted:
        if not any(fits(name, pattern.lstrip("!")) for name in places):
            # Layers are mostly alike.
            kinds = dict.fromkeys(
                ".".join("*" if part.isdecimal() else part for part in name.split("."))
                for name in places
            )
            raise UserError(
                f"config.optimizer.frozen: {pattern!r} fits no parameter; there are "
                f"{', '.join(kinds)}"
            )
    rows: dict[tuple[Any, ...], list[bool]] = {}
    for name, place in places.items():
        fitting = [pattern for pattern in wanted if fits(name, pattern.lstrip("!"))]
        stays = bool(fitting) and not fitting[-1].startswith("!")
        rows.setdefault(place.path, []).append(stays)
    return traverse_util.unflatten_dict(
        {path: x[0] if len(set(x)) == 1 else np.array(x) for path, x in rows.items()}
    )


def where_frozen(frozen: Any, still: Any, moved: Any) -> Any:
    """Parameters: `still` where `frozen` says so (see `frozen_parameters`), `moved` elsewhere."""

    def choose(stays: bool | np.ndarray, x: Array, y: Array) -> Array:
        if isinstance(stays, bool):
            return x if stays else y
        return jnp.where(stays.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, frozen, still, moved)


def _rank(path: tuple, x: Any) -> int:
    """A parameter's own: layers are stacked in front."""
    return x.ndim - (_names(path)[0] == "layers")


Mask = Callable[[Any], Any]
"""Parameters to a tree of True and False."""


def _adamw(config: Config, schedule: optax.Schedule, mask: Mask) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
    )


def _lion(config: Config, schedule: optax.Schedule, mask: Mask) -> optax.GradientTransformation:
    """Signs of a momentum (arXiv 2302.06675); wants a rate 3 to 10 times below AdamW's."""
    return optax.lion(
        schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
    )


def _muon(config: Config, schedule: optax.Schedule, mask: Mask) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW for all else.

    An orthogonal matrix [m, n] has entries of root mean square 1 / sqrt(max(m, n)). Scaled to
    `MUON_RMS` whatever the shape, its steps are as long as AdamW's, and one learning rate serves
    both halves.
    """
    muon = contrib.muon(
        schedule,
        beta=MUON_MOMENTUM,
        weight_decay=config.weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params
        ),
        consistent_rms=MUON_RMS,
    )
    # Optax's Muon brings an Adam of its own, with Nesterov momentum and no mask for the decay.
    return optax.partition({"muon": muon, "adamw": _adamw(config, schedule, mask)}, _halves)


def _halves(params: Any) -> Any:
    """Each parameter's half: muon for the layers' matrices, adamw for embeddings and all else.

    What an attention method learns stays with AdamW too: it may be a table or a stack of heads.
    """

    def half(path: tuple, x: Any) -> str:
        names = _names(path)
        hidden = names[0] == "layers" and names[-1] == "kernel" and "learned" not in names
        return "muon" if hidden and _rank(path, x) == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(half, params)


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: _rank(path, x) > 1, params)


def _no_embeddings(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _rank(path, x) > 1 and _names(path)[-1] != "embedding", params
    )


def _all(params: Any) -> Any:
    return jax.tree.map(lambda x: True, params)


def _names(path: tuple) -> list[str]:
    return [str(part.key) for part in path]


OPTIMIZERS = {"adamw": _adamw, "lion": _lion, "muon": _muon}
DECAY_MASKS = {"matrices": _matrices, "no_embeddings": _no_embeddings, "all": _all}
