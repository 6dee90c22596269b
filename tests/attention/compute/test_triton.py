"""The kernels for GPUs: Pallas' interpreter against the definition, and lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import make_method
from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute import fused, kernels
from lenext.attention.compute.kernel_steps import steps_of
from lenext.attention.compute.triton import TritonKernel, _by_kind
from tests.attention.compute.by_kernel import (
    KINDS,
    TRAIN_LENGTH,
    arrays,
    assert_agree,
    by_kernel,
    call_of,
)


@pytest.fixture(autouse=True)
def of_any_type(monkeypatch):
    """Of float32, too, where what is exact shows: as kernels they take 16 bits."""
    monkeypatch.setattr(TritonKernel, "types", ("bfloat16", "float16", "float32"))


@pytest.mark.parametrize(
    ("name", "queries", "keys", "causal"),
    [
        ("softmax", 300, 300, True),
        ("lssar", 300, 300, True),
        ("lssar(norm='none')", 257, 257, False),
        ("dual_chunk", 300, 300, True),
        ("lm_infinite(window=130,sinks=5)", 128, 400, True),
        ("softmax1+rerope", 257, 257, False),
    ],
)
def test_is_the_definition(name, queries, keys, causal):
    method = make_method(name, train_length=TRAIN_LENGTH)
    given = arrays(queries, keys, jnp.float32, heads=4, kv_heads=2, batch=2)
    assert_agree(method, given, causal=causal, atol=1e-5, kernel=fused.TRITON)


@pytest.mark.parametrize("name", ["lssar", "rerope", "sigmoid"])
def test_sixteen_bits(name):
    method = make_method(name, train_length=TRAIN_LENGTH)
    given = arrays(300, 300, jnp.bfloat16)
    assert_agree(method, given, causal=True, atol=2e-2, kernel=fused.TRITON)


@pytest.mark.parametrize("by_tile", [False, True])
def test_every_step_is_taken_once_by_its_sum(by_tile):
    """Windows and their sinks in blocks of 128 queries and 64 keys, several kinds of step."""
    method = make_method("lm_infinite(window=200)", train_length=TRAIN_LENGTH)
    plan, _ = TritonKernel.plans(call_of(method, *arrays(900, 900, jnp.float32), causal=True))
    steps = steps_of(plan, by_tile=by_tile)
    count = plan.key_blocks if by_tile else plan.query_blocks
    met, (first, last) = _by_kind(steps, count, by_tile=by_tile)
    found = {
        (kind, own, int(other))
        for kind in range(len(steps.kinds))
        for own in range(count)
        for other in met[first[kind, own] : last[kind, own]]
    }
    pairs = (steps.tile, steps.block) if by_tile else (steps.block, steps.tile)
    assert found == {*zip((steps.what >> 2).tolist(), *(x.tolist() for x in pairs), strict=True)}
    assert len(steps.kinds) > 1
    assert np.sum(last - first) == len(met) == len(found)


@pytest.mark.parametrize("name", KINDS.values())
def test_every_kind_is_lowered_for_a_gpu(name):
    """Three kernels, four for two stages; what Triton lacks an operation for would raise."""
    method = make_method(name, train_length=TRAIN_LENGTH)
    attended = by_kernel(method, causal=True, interpret=False, kernel=fused.TRITON)

    def summed(*given):
        return jnp.sum(attended(*given).astype(jnp.float32))

    given = arrays(300, 300, jnp.bfloat16, dim=64)
    traced = jax.export.export(
        jax.jit(jax.grad(summed, (0, 1, 2))), platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
    )(*given)  # fmt: skip
    number = 4 if isinstance(method.weighting, TwoStage) else 3
    assert traced.mlir_module().count("@__gpu$xla.gpu.triton") == number


@pytest.mark.parametrize(
    ("name", "dim", "length", "why"),
    [
        ("rerope", 256, 256, "heads of up to 128 dimensions"),
        ("lssa", 64, 2**18, "its tiles are more than"),
        ("lssa", 64, 256, "16-bit floats, not float32"),
    ],
)
def test_what_it_declines(monkeypatch, name, dim, length, why):
    monkeypatch.undo()  # the types that it takes
    q = jax.ShapeDtypeStruct((1, length, 2, dim), jnp.float32 if "32" in why else jnp.bfloat16)
    method = make_method(name, train_length=TRAIN_LENGTH)
    assert why in str(kernels.why_not(call_of(method, q, q, q, causal=True), TritonKernel))
