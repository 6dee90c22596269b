"""What methods make of a layer's input, before attention: their gates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lenext.attention.axes.axis import Params
from lenext.attention.axes.method import AnyMethod, HeadMethods
from lenext.attention.checked import checked

Ar = Array | np.ndarray


class Gates(NamedTuple):
    """Numbers a token and query head, by axis and by name; of methods of heads, by share first.

    Attributes:
      queries: each [B, T, N].
      keys: each [B, S, N].
    """

    queries: dict[str, Any]
    keys: dict[str, Any]

    def of_share(self, share: str) -> "Gates":
        """Those of one of several methods of heads."""
        return Gates(self.queries.get(share, {}), self.keys.get(share, {}))


def init_gates(method: AnyMethod, num_heads: int, width: int) -> Params:
    """Initial values of what makes a method's gates, by axis; {} where it has none.

    Of methods of heads, those of each share, under its name.

    Args:
      method: from `make_method`.
      num_heads: N, query heads.
      width: D, dimensions of the layer's input.
    """
    if isinstance(method, HeadMethods):
        return {
            share: init_gates(own, span.stop - span.start, width)
            for share, (own, span) in method.of_heads(num_heads).items()
        }
    return {axis: choice.init_gates(num_heads, width) for axis, choice in method.gated.items()}


def make_gates(
    method: AnyMethod,
    params: Params,
    x: Float[Ar, "B T D"],
    *,
    num_heads: int,
    mask: Bool[Ar, "#B T"] | None = None,
    before: dict[str, Any] | None = None,
) -> Gates:
    """Gates of T tokens that follow one another, queries and keys alike, as `attend` takes them.

    Args:
      method: from `make_method`.
      params: as `init_gates` gives them.
      x: the layer's input.
      num_heads: N, query heads.
      mask: False marks padding, of which nothing is taken, NaN neither.
      before: the keys' gates of the token before the first, each [B, 1, N], where there is one.

    Raises:
      ValueError: for gates that a choice made in another shape.
    """
    if isinstance(method, HeadMethods):
        made = {
            share: make_gates(
                own, params[share], x, num_heads=span.stop - span.start, mask=mask,
                before=None if before is None else before[share],
            )
            for share, (own, span) in method.of_heads(num_heads).items()
        }  # fmt: skip
        return Gates(*({share: own[side] for share, own in made.items()} for side in (0, 1)))
    x = jnp.asarray(x, jnp.float32)
    if mask is not None:
        x = jnp.where(jnp.asarray(mask)[:, :, None], x, 0.0)
    gates = Gates({}, {})
    sizes = dict(zip("BTN", (*x.shape[:2], num_heads), strict=True))
    for axis, choice in method.gated.items():
        made = choice.gates(params[axis], x, None if before is None else before[axis])
        for side, numbers in zip(gates, made, strict=True):
            side[axis] = {
                name: checked(value, choice, f"gate {name!r}", "B T N", sizes)
                for name, value in numbers.items()
            }
    return gates


def gates_form(method: AnyMethod, num_heads: int) -> Gates:
    """What `make_gates` gives of one token, as shapes: traced, not computed."""
    x = jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)
    return jax.eval_shape(
        lambda x: make_gates(method, init_gates(method, num_heads, 1), x, num_heads=num_heads), x
    )


@jax.custom_jvp
def running_sum(
    x: Float[Array, "B T N"],
    before: tuple[Float[Array, "B 1 N"], Float[Array, "B 1 N"]],
) -> tuple[Float[Array, "B T N"], Float[Array, "B T N"]]:
    """Sums of x up to every token, after `before`: (high, low), two numbers that make one.

    So the difference of any two is as exact as a float32 of its own size is, after millions of
    tokens too, where the sum itself would have lost what it is asked for. Gradients are the high
    number's.
    """
    high, low = jax.lax.associative_scan(_added, (x, jnp.zeros_like(x)), axis=1)
    return _added(before, (high, low))


@running_sum.defjvp
def _running_sum_jvp(primals, tangents):
    (dx, (d_before, _)), made = tangents, running_sum(*primals)
    return made, (jnp.cumsum(dx, axis=1) + d_before, jnp.zeros_like(dx))


def _added(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two such pairs, with what float32 rounds off kept (Knuth's two-sum)."""
    high = a[0] + b[0]
    of_b = high - a[0]
    lost = (a[0] - (high - of_b)) + (b[0] - of_b)
    return high, lost + (a[1] + b[1])


def of_rows(gate: Float[Array, "#B T N"]) -> Float[Array, "#B N T 1"]:
    """A number a row."""
    return gate.swapaxes(1, 2)[..., None]


def differences(
    queries: Float[Array, "#B T N"], keys: Float[Array, "#B S N"]
) -> Float[Array, "#B N T S"]:
    """The query's number less the key's."""
    return of_rows(queries) - keys.swapaxes(1, 2)[:, :, None, :]
