"""Looking at a model from outside: its methods, another method on the same weights, its size."""

import math
from collections.abc import Sequence
from typing import TypeVar

from flax import nnx

from lenext.attention import AnyMethod, Pattern, unsuited_axes
from lenext.models.build import Model
from lenext.models.stack import places_of

M = TypeVar("M", bound=Model)


def model_methods(model: Model) -> tuple[AnyMethod, ...]:
    """The method of each layer, first to last."""
    return model.methods


def with_method(model: M, method: AnyMethod | Sequence[AnyMethod]) -> M:
    """The same weights under another method (or a pattern that repeats over the layers).

    Parameters are shared, not copied, and the model given stays as it is. Learned parts that a
    layer's new method does not share with its old one stand at their initial values: whether the
    weights suit the method at all is `lenext.attention.unsuited_axes`' to say.
    """
    swapped = nnx.merge(*nnx.split(model))
    swapped.layers.attention.set_methods(Pattern.of(method).over(len(model.methods)))
    return swapped


def unsuited(model: Model, trained: Sequence[AnyMethod]) -> list[str]:
    """Axes in which some layer's method wants weights trained for it and these were not.

    Args:
      model: under the methods in question.
      trained: of each layer, the one that the weights were trained with.
    """
    layers = zip(model_methods(model), trained, strict=True)
    return list(dict.fromkeys(axis for ours, was in layers for axis in unsuited_axes(ours, was)))


def parameter_table(model: nnx.Module) -> str:
    """Parameters by module, layers of one shape on one line, and their sum."""
    arrays = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    counts: dict[str, list[int]] = {}
    for name, place in places_of(model).items():
        # A layer's index is the one part of a name that repeats without meaning.
        kind = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        counts.setdefault(kind, []).append(math.prod(place.shape(arrays[place.path])))
    total = sum(map(sum, counts.values()))
    lines = [
        f"  {name:<40} {len(sizes):>3} x {sizes[0]:>12,} = {sum(sizes):>12,}"
        for name, sizes in counts.items()
    ]
    return "\n".join([*lines, f"  {'parameters':<40} {total:>33,}"])
