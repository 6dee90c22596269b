"""Functions that kernels trace beforehand return what they return as they are."""

import jax
import jax.numpy as jnp
import numpy as np

from lenext.attention.compute.trimmed import Trimmed, cut_by_row

TILE, ROW = (1, 2, 5, 7), (1, 2, 5, 1)


def shape(size, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(size, dtype)


def random(seed, size):
    return jax.random.uniform(jax.random.key(seed), size, minval=0.1)


def primitives(function, *arguments):
    return [str(step.primitive) for step in jax.make_jaxpr(function)(*arguments).eqns]


def test_what_results_do_not_follow_is_not_asked_for():
    def function(x, none, y, z):
        assert none is None
        del y
        return {"sum": x + 1, "product": x * z}

    def refuse():
        raise AssertionError("nobody needs it")

    x, z = random(0, ROW), random(1, ROW)
    trimmed = Trimmed(function, shape(ROW), None, shape(ROW), shape(ROW))
    found = trimmed(x, None, refuse, lambda: z)
    np.testing.assert_array_equal(found["sum"], x + 1)
    np.testing.assert_array_equal(found["product"], x * z)


def test_what_is_of_a_row_is_made_once():
    table = np.arange(7, dtype=np.float32)

    def function(x, a, n):
        flat = a < 0.5  # of booleans, and of whole numbers
        scale = jnp.exp(a) / jnp.where(n > 3, n, 1)
        return jnp.where(flat, x, jnp.sin(x * scale - jnp.cos(a))) + table[None, None, None]

    numbers, rest = cut_by_row(function, shape(TILE), shape(ROW), shape(ROW, jnp.int32))
    x, a = random(0, TILE), random(1, ROW)
    n = jnp.arange(2 * 5, dtype=jnp.int32).reshape(ROW)
    made = numbers(a, n)
    assert len(made) == 3  # flat, the scale, the cosine
    assert all(one.shape == ROW and one.dtype == jnp.float32 for one in made)
    np.testing.assert_allclose(rest(x, *made), function(x, a, n), rtol=1e-6)
    assert not {"exp", "cos", "lt", "gt"} & {*primitives(rest, x, *made)}
    assert {"exp", "cos"} < {*primitives(numbers, a, n)}

    def slope(f):
        return jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)

    np.testing.assert_allclose(
        slope(lambda x: rest(x, *made)), slope(lambda x: function(x, a, n)), rtol=1e-5
    )
