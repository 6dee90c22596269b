"""Functions traced beforehand: without what their results do not follow, or cut in two."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float


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


def cut_by_row(
    function: Callable[..., Any], tile: Any, *rows: Any
) -> tuple[Callable[..., list[Float[Array, "B N T 1"]]], Callable[..., Any]]:
    """A function of a tile and of numbers of its rows as two: what is of a row is then made once.

    Args:
      function: it returns an array like the tile.
      tile: the tile's shape, [B, N, T, S].
      rows: those of the numbers, [B, N, T, 1].

    Returns:
      numbers: of the rows' numbers, what `rest` takes of them.
      rest: of the tile, and what `numbers` returns: what the function returns.
    """
    closed = jax.make_jaxpr(function)(tile, *rows)
    jaxpr, consts, _ = partial_eval.dce_jaxpr_consts(closed.jaxpr, [True], instantiate=True)
    kept = [x for x, used in zip(closed.consts, consts, strict=True) if used]
    of_tile, *of_rows = jaxpr.invars
    known, first, then = set(of_rows), [], []
    for step in jaxpr.eqns:
        sizes: list[Any] = [x.aval for x in step.outvars]
        of_rows_alone = all(x in known for x in _variables(step.invars))
        if of_rows_alone and all(size.shape[3:] == (1,) for size in sizes):
            known.update(step.outvars)
            first.append(step)
        else:
            then.append(step)
    met = dict.fromkeys(x for step in then for x in _variables(step.invars))
    taken = [x for x in met if x in known]

    def part(steps: list[Any], given: list[Any], wanted: list[Any]) -> Callable[..., list[Array]]:
        jaxpr_of_it = jaxpr.replace(eqns=steps, invars=given, outvars=wanted)
        return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr_of_it, kept))

    make, finish = part(first, of_rows, taken), part(then, [of_tile, *taken], jaxpr.outvars)

    def numbers(*given: Array) -> list[Array]:
        return [x.astype(jnp.float32) for x in make(*given)]

    def rest(given: Array, *made: Array) -> Array:
        typed = (x.astype(of.aval.dtype) for x, of in zip(made, taken, strict=True))
        (out,) = finish(given, *typed)
        return out

    return numbers, rest


def _variables(atoms: Sequence[Any]) -> list[Any]:
    """Without the numbers among them."""
    return [x for x in atoms if not isinstance(x, jax.extend.core.Literal)]
