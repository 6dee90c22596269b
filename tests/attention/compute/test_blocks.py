"""What blocks are for, memory, and when they are taken; their values are test_reference.py's."""

import jax
import jax.numpy as jnp
import numpy as np

from lenext.attention import attend, make_method, row_statistics
from lenext.attention.compute.blocks import default_block_size
from tests.attention.common import QUICK, TRAIN_LENGTH

LENGTH, HEADS, DIM = 2048, 2, 8
ROWS = 4 * HEADS * LENGTH**2  # bytes of all rows in float32
# Of complete rows: nothing but those can tell a row's entropy, or its support.
MADE = make_method("adaptive+infoscale", train_length=TRAIN_LENGTH)


def temporaries(function) -> int:
    """Bytes that the compiled function takes besides its arguments and results."""
    x = jax.ShapeDtypeStruct((1, LENGTH, HEADS, DIM), jnp.float32)
    compiled = jax.jit(function, compiler_options=QUICK).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def gradient(implementation, block_size):
    def loss(q, k, v):
        out = attend(q, k, v, MADE, implementation=implementation, block_size=block_size)
        return jnp.sum(jnp.sin(out))

    return jax.grad(loss, argnums=(0, 1, 2))


def test_no_complete_rows_are_kept():
    """Blocks of 64 of 2048 rows, backward pass included: a few 32nds of a complete array."""
    assert temporaries(gradient("blockwise", 64)) < ROWS / 2
    assert temporaries(gradient("naive", None)) > ROWS


def test_statistics_keep_no_complete_rows():
    def figures(q, k, v):
        del v
        return row_statistics(q, k, MADE, block_size=64)

    assert temporaries(figures) < ROWS / 2


def test_gradients_are_summed_over_blocks_in_float32():
    """128 blocks of bfloat16 inputs, against the float32 gradient of the same rounded inputs."""
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(1, 1024, HEADS, DIM)), jnp.bfloat16) for _ in range(4)
    )

    def pulled(dtype, block_size):
        arguments = [x.astype(dtype) for x in (q, k, v)]
        _, pull = jax.vjp(
            lambda q, k, v: attend(
                q, k, v, MADE, implementation="blockwise", block_size=block_size
            ),
            *arguments,
        )
        return pull(cotangent.astype(dtype))

    for ours, exact in zip(pulled(jnp.bfloat16, 8), pulled(jnp.float32, 1024), strict=True):
        error = np.linalg.norm(ours.astype(jnp.float32) - exact) / np.linalg.norm(exact)
        assert error < 5e-3  # a rounding of the result is 2e-3; of each sum, 2e-2


def test_default_block_size():
    """A power of two at or below 2^18 entries of B N S, from 32 to 1024."""
    assert default_block_size(1, 4, 1024) == 64
    assert default_block_size(1, 3, 1024) == 64
    assert default_block_size(2, 1, 512) == 256
    assert default_block_size(1, 1, 1) == 1024
    assert default_block_size(64, 16, 2**20) == 32
