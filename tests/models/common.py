"""What tests of models share."""

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from lenext.models import named_parameters, places_of


def fill(model, draw):
    """Sets parameters to draw(name, shape), parameter by parameter and layer by layer.

    Where it gives None they stay as they are.
    """
    leaves, places = dict(nnx.to_flat_state(nnx.state(model))), places_of(model)
    for name in sorted(places, key=_order):
        leaf, index = leaves[places[name].path], places[name].index
        value = draw(name, leaf[...][index].shape)
        if value is not None:
            leaf[...] = leaf[...].at[index].set(jnp.asarray(value, jnp.float32))


def _order(name):
    parts = name.split(".")
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def by_public_name(tree, places):
    """Parameters, or what is said of them, by public names; `places` from `places_of`.

    What is not there is left out, and what is said once of a stack holds for each of its rows.
    """
    arrays = traverse_util.flatten_dict(tree)
    return {
        name: np.asarray(arrays[path] if np.ndim(arrays[path]) == 0 else arrays[path][index])
        for name, (path, index) in places.items()
        if path in arrays
    }


def weights_of(model):
    """Parameters by public names, float64."""
    return {name: np.asarray(x, np.float64) for name, x in named_parameters(model).items()}
