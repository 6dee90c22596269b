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
from lenext.config.checks import check_above, check_bounds, check_choices, check_least
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
    return SCHEDULES[config.schedule](config, min(config.warmup_steps, steps - 1), steps)


def _cosine(config: Config, warmup: int, steps: int) -> optax.Schedule:
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        init_value=_start(peak, warmup), peak_value=peak, warmup_steps=warmup, decay_steps=steps
    )


def _linear(config: Config, warmup: int, steps: int) -> optax.Schedule:
    return _stable(config.learning_rate, warmup, steps - warmup, steps)


def _wsd(config: Config, warmup: int, steps: int) -> optax.Schedule:
    return _stable(config.learning_rate, warmup, config.decay_steps, steps)


def _stable(peak: float, warmup: int, decay: int, steps: int) -> optax.Schedule:
    """At the peak until the last `decay` steps."""
    parts = [
        optax.linear_schedule(_start(peak, warmup), peak, warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, 0.0, decay),
    ]
    return optax.join_schedules(parts, [warmup, steps - decay])


def _start(peak: float, warmup: int) -> float:
    return peak / max(warmup, 1)  # no step is wasted at a rate of 0


SCHEDULES = {"cosine": _cosine, "linear": _linear, "wsd": _wsd}


def make_optimizer(
    config: Config, schedule: optax.Schedule, kinds: Mapping[str, str]
) -> optax.GradientTransformation:
    """The optimiser `config.name`, behind clipping by the norm of all gradients together.

    Weight decay is decoupled, times the learning rate, on what `config.decay_mask` says. `kinds`
    are the parameters', from `lenext.models.kinds_of`.
    """
    decays = _by_parameter(DECAY_MASKS[config.decay_mask], kinds)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[config.name](config, schedule, decays, kinds),
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


Mask = Callable[[Any], Any]
"""Parameters to a tree like them."""


def _by_parameter(f: Callable[[int, str], Any], kinds: Mapping[str, str]) -> Mask:
    """f(rank, kind) of each parameter."""

    def of(path: tuple, x: Any) -> Any:
        names = [str(part.key) for part in path]
        rank = x.ndim - (names[0] == "layers")  # they are stacked
        return f(rank, kinds.get(".".join(names), ""))

    return lambda params: jax.tree_util.tree_map_with_path(of, params)


def _adamw(
    config: Config, schedule: optax.Schedule, mask: Mask, kinds: Mapping[str, str]
) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
    )


def _lion(
    config: Config, schedule: optax.Schedule, mask: Mask, kinds: Mapping[str, str]
) -> optax.GradientTransformation:
    """Signs of a momentum (arXiv 2302.06675); wants a rate 3 to 10 times below AdamW's."""
    return optax.lion(
        schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
    )


def _muon(
    config: Config, schedule: optax.Schedule, mask: Mask, kinds: Mapping[str, str]
) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW for all else.

    An orthogonal matrix [m, n] has entries of root mean square 1 / sqrt(max(m, n)). Scaled to
    `MUON_RMS` whatever the shape, its steps are as long as AdamW's, and one learning rate serves
    both halves. Embeddings and head, and what an attention method learns, which may be a table or
    a stack of heads, stay with AdamW.
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
    halves: dict[Any, Any] = {"muon": muon, "adamw": _adamw(config, schedule, mask, kinds)}
    return optax.partition(
        halves, _by_parameter(lambda _, kind: "muon" if kind == "matrix" else "adamw", kinds)
    )


OPTIMIZERS = {"adamw": _adamw, "lion": _lion, "muon": _muon}
DECAY_MASKS: dict[str, Callable[[int, str], bool]] = {
    "matrices": lambda rank, _: rank > 1,
    "no_embeddings": lambda rank, kind: rank > 1 and kind != "embedding",
    "all": lambda *_: True,
}
"""Whether a parameter of a rank and a kind decays."""


def check_optimizer(config: Config, steps: int) -> None:
    """Checks the section `optimizer`, of a run of so many steps.

    Raises:
      UserError: naming the first key that is off.
    """
    check_choices(config, "optimizer", name=OPTIMIZERS, schedule=SCHEDULES, decay_mask=DECAY_MASKS)
    check_least(config, "optimizer", 0, "warmup_steps", "decay_steps", "weight_decay")
    check_bounds(config, "optimizer", "b1", "b2")
    check_above(config, "optimizer", "learning_rate", "clip_norm")
    check_least(config, "optimizer", 0, "learning_rate")  # finite; a clip_norm of inf clips nothing
    if config.schedule == "wsd" and config.warmup_steps + config.decay_steps > steps:
        raise UserError(
            f"config.optimizer.decay_steps={config.decay_steps}: with warmup_steps="
            f"{config.warmup_steps} should be at most training.steps={steps}"
        )
