"""What tests of imports share."""

from pathlib import Path

import jax
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """Nothing is run often enough for fast code to be worth its making; gone with the module."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def folder(tmp_path):
    """A copy of a Llama's folder that a test may change."""
    return copy(GOLDEN / "llama", tmp_path / "llama")


def copy(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def golden_rows():
    """The rows of tokens of `peers.sequences`, which golden logits are of, and their mask."""
    rng = np.random.default_rng(0)
    return rng.integers(3, 37, (2, 24)), np.arange(24)[None] < np.asarray([[24], [19]])
