"""What tests of imports share."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


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
