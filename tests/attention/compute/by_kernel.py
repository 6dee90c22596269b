"""Attention by kernels of our own, interpreted, and how it is held to the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from lenext.attention import attend, init_params, make_method, method_names
from lenext.attention.compute import fused, kernels, naive
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, located
from lenext.attention.compute.tpu import TpuKernel

TRAIN_LENGTH = 64


def arrays(queries, keys, dtype, *, heads=2, kv_heads=1, dim=16, v_dim=24, batch=1):
    rng = np.random.default_rng(0)
    shapes = [
        (batch, queries, heads, dim),
        (batch, keys, kv_heads, dim),
        (batch, keys, kv_heads, v_dim),
    ]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def call_of(method, q, k, v, *, causal):
    dtype = jnp.dtype(q.dtype).name
    return Call(method, q.shape, k.shape, v.shape, dtype, causal, ordered=True, masked=False,
                length=k.shape[1])  # fmt: skip


def by_kernel(method, *, causal, interpret, kernel=fused.OWN):
    """The kernels as `attend` calls them, on a TPU if no other is named, of q, k and v."""

    def attended(q, k, v):
        call, keys = call_of(method, q, k, v, causal=causal), k.shape[1]
        assert kernels.why_not(call, fused.KINDS[kernel]) is None
        positions = jnp.arange(keys, dtype=jnp.int32)[None]
        places = located(Places(positions[:, keys - q.shape[1] :], positions))
        return fused.attend_fused(
            q, k, v, call, init_params(method, q.shape[2], q.shape[3]), places, kernel=kernel,
            interpret=interpret,
        )  # fmt: skip

    return attended


def with_gradients(attended):
    """A function of q, k, v and the output's gradient: the output, and their gradients."""

    @jax.jit
    def run(given, d_out):
        out, pull = jax.vjp(attended, *given)
        return [out, *pull(d_out)]

    return run


def assert_agree(method, given, *, causal, atol, kernel=fused.OWN):
    """Value and gradients of both, against each array's largest entry."""
    interpret = pltpu.InterpretParams() if kernel == fused.OWN else True
    ours = by_kernel(method, causal=causal, interpret=interpret, kernel=kernel)
    definition = functools.partial(attend, method=method, causal=causal, implementation="naive")
    shape = jax.eval_shape(definition, *given)
    d_out = jnp.asarray(np.random.default_rng(1).normal(size=shape.shape), shape.dtype)
    pairs = (with_gradients(attended)(given, d_out) for attended in (ours, definition))
    for a, b in zip(*pairs, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=atol * np.max(np.abs(b)))


def takes(name):
    method = make_method(name, train_length=TRAIN_LENGTH)
    call = call_of(method, *arrays(300, 300, jnp.float32), causal=True)
    return kernels.why_not(call, TpuKernel) is None


TAKEN = [name for name in method_names() if takes(name)]


def as_a_kernel_sees_it(name):
    """What its program follows. All else of a method is in the sides of the products, and in n."""
    method = make_method(name, train_length=TRAIN_LENGTH)
    plan, _ = TpuKernel.plans(call_of(method, *arrays(300, 300, jnp.float32), causal=True))
    wheres, *_ = naive.position_shapes(method, 2, 16)
    position = method.position if len(wheres) > 1 else None
    size = naive.inner_size(method.similarity, 16)
    return method.weighting, method.visibility, position, size, plan.shifted


KINDS = {as_a_kernel_sees_it(name): name for name in reversed(TAKEN)}
"""A method of each, by what its program follows."""
