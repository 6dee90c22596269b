"""What "auto" takes and why, and that what is asked for is taken or refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from lenext.attention import attend, choose_implementation, make_method


def choice(method, length, *, heads=2, keys=None, dtype=jnp.float32, batch=1, **options):
    q = jax.ShapeDtypeStruct((batch, length, heads, 64), dtype)
    k = jax.ShapeDtypeStruct((batch, keys or length, heads, 64), dtype)
    return choose_implementation(q, k, k, make_method(method, train_length=64), **options)


def test_rows_of_eight_mebibytes_go_by_blocks():
    assert choice("softmax", 1024).implementation == "blockwise"
    assert choice("softmax", 1024, keys=1023).implementation == "naive"
    assert choice("softmax", 1024, heads=1, batch=2).implementation == "blockwise"


def test_reasons():
    tiles = choice("softmax", 4096)
    assert (tiles.by_tiles, tiles.block_size) == (True, 512)
    assert "key by key" in tiles.why
    assert "not on the cpu" in tiles.why
    rows = choice("sparsemax", 4096)
    assert (rows.by_tiles, rows.block_size) == (False, 32)
    assert "complete rows" in rows.why
    assert "less than" in choice("softmax", 64).why
    asked = choice("softmax", 4096, implementation="blockwise", block_size=96)
    assert (asked.block_size, asked.why) == (96, "asked for; its rows can be summed up key by key")
    assert choice("softmax", 4096, implementation="naive").why == "asked for"


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("softmax", {"dtype": jnp.float32}, "16-bit floats, not float32"),
        ("forgetting", {}, "follows the layer's input"),
        ("alibi", {}, "bias"),
        ("sparsemax", {}, "not a plain softmax"),
        ("softmax", {"masked": True}, "padding and packs"),
        ("softmax", {"ordered": False}, "default positions"),
    ],
)
def test_a_gpu_declines_with_the_reason(monkeypatch, method, options, why):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = {"dtype": jnp.bfloat16} | options
    with pytest.raises(ValueError, match=f"'fused' cannot take this call: .*{why}"):
        choice(method, 256, implementation="fused", **options)
    assert choice(method, 256, **options).implementation == "naive"


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("lssa", {}, "not a plain softmax"),
        ("rerope", {}, "near and far"),
        ("softmax", {"keys": 8192, "causal": True}, "as many queries as keys"),
        ("windowed", {}, "window is causal"),
    ],
)
def test_a_gpu_takes_a_kernel_that_never_ran_where_asked(monkeypatch, method, options, why):
    """Whoever does not ask goes by tiles, and is told."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = {"dtype": jnp.bfloat16} | options
    asked = choice(method, 4096, implementation="fused", **options)
    assert (asked.implementation, asked.kernel) == ("fused", "our own kernel in Triton")
    unasked = choice(method, 4096, **options)
    assert (unasked.implementation, unasked.by_tiles) == ("blockwise", True)
    assert why in unasked.why
    assert "has never run on a GPU" in unasked.why


@pytest.mark.parametrize(
    ("method", "causal"),
    [("softmax", False), ("infoscale+yarn", True), ("cosscale", True), ("windowed", True)],
)
def test_a_gpu_takes_the_others(monkeypatch, method, causal):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = choice(method, 256, causal=causal, dtype=jnp.bfloat16)
    assert (made.implementation, made.block_size) == ("fused", None)
    assert made.why == "cuDNN's kernel: it takes the method"


@pytest.mark.parametrize(
    ("method", "length", "dtype", "kernel", "why"),
    [
        ("windowed", 256, jnp.bfloat16, "splash attention", "it takes the method"),
        ("windowed", 200, jnp.bfloat16, "our own kernel", "multiples of 128"),
        ("windowed", 256, jnp.float32, "our own kernel", "16-bit floats, not float32"),
        ("rerope", 256, jnp.bfloat16, "our own kernel", "near and far"),
        ("lssa", 256, jnp.bfloat16, "our own kernel", "not a plain softmax"),
        ("lssar", 256, jnp.bfloat16, "our own kernel", "not a plain softmax"),
        ("sparsemax", 256, jnp.bfloat16, None, "complete rows"),
        ("softmax_sink", 256, jnp.bfloat16, None, "its weighting learns"),
        ("alibi", 256, jnp.bfloat16, None, "its bias on the logits follows the head"),
        ("kerple_log", 256, jnp.bfloat16, None, "its position learns"),
        ("scale_invariant", 256, jnp.bfloat16, None, "gain on the logits follows the distance"),
        ("forgetting", 256, jnp.bfloat16, None, "follows the layer's input"),
        ("rerope", 100, jnp.bfloat16, None, "a kernel's tile has 128 queries and keys"),
        ("softmax", 2**19, jnp.float32, None, "its tiles are more than"),
    ],
)
def test_a_tpu_takes_one_kernel_or_the_other(monkeypatch, method, length, dtype, kernel, why):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    made = choice(method, length, dtype=dtype, causal=True)
    assert made.kernel == kernel
    assert (made.implementation == "fused") == (kernel is not None)
    if kernel is not None or length > 1000:
        assert why in made.why
    if kernel is None:
        with pytest.raises(ValueError, match=f"'fused' cannot take this call: .*{why}"):
            choice(method, length, dtype=dtype, causal=True, implementation="fused")


def test_a_mesh_that_the_compiler_splits_over_declines(monkeypatch):
    """Kernels are no operations that it could split; inside `shard_map` each device has its own."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for axes, implementation in [((2, 1), "fused"), ((1, 2), "naive")]:
        kinds = (AxisType.Manual, AxisType.Auto)
        mesh = AbstractMesh(axes, ("data", "tensor"), axis_types=kinds)
        with jax.sharding.use_abstract_mesh(mesh):
            made = choice("softmax", 256, dtype=jnp.bfloat16)
        assert made.implementation == implementation


def test_here_there_is_no_fused_kernel():
    q = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match="on GPUs and TPUs, not on the cpu"):
        attend(q, q, q, make_method("softmax", train_length=8), implementation="fused")
