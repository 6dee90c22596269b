"""Functions without what their results do not follow, traced beforehand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax.interpreters import partial_eval


class Trimmed:
    """A function of shapes that are known, without what its results do not follow.

    Attributes:
      used: of the arguments that are arrays, whether the results follow it.
    """

    def __init__(self, function: Callable[..., Any], *shapes: Any):
        closed, form = jax.make_jaxpr(function, return_shape=True)(*shapes)
        outputs = [True] * len(closed.jaxpr.outvars)
        jaxpr, consts, self.used = partial_eval.dce_jaxpr_consts(closed.jaxpr, outputs)
        kept = [x for x, used in zip(closed.consts, consts, strict=True) if used]
        self.run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr, kept))
        self.form = jax.tree.structure(form)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns; of arguments, such as are functions stand for their values."""
        flat = [x for x in arguments if x is not None]
        given = [x() if callable(x) else x for x, used in zip(flat, self.used, strict=True) if used]
        return jax.tree.unflatten(self.form, self.run(*given))
