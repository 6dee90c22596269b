"""What tests of models share."""

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from lenext.models import named_parameters, names_of


def fill(model, draw):
    """Sets parameters to draw(name, shape), parameter by parameter and layer by layer.

    Where it gives None they stay as they are.
    """
    rows = [
        (name, path, None if isinstance(own, str) else i)
        for path, own in names_of(model).items()
        for i, name in enumerate([own] if isinstance(own, str) else own)
    ]
    leaves = dict(nnx.to_flat_state(nnx.state(model)))
    for name, path, row in sorted(rows, key=lambda each: _order(each[0])):
        leaf = leaves[path]
        value = draw(name, leaf.shape if row is None else leaf.shape[1:])
        if value is not None:
            value = jnp.asarray(value, jnp.float32)
            leaf[...] = value if row is None else leaf[...].at[row].set(value)


def _order(name):
    parts = name.split(".")
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def by_public_name(tree, names):
    """Parameters, or what is said of them, layer by layer; `names` from `names_of`."""
    found = {}
    for path, x in traverse_util.flatten_dict(tree).items():
        own = names[path]
        if isinstance(own, str):
            found[own] = np.asarray(x)
        else:
            found |= dict(zip(own, np.broadcast_to(x, (len(own), *np.shape(x)[1:])), strict=True))
    return found


def weights_of(model):
    """Parameters by public names, float64."""
    return {name: np.asarray(x, np.float64) for name, x in named_parameters(model).items()}
