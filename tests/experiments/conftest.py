"""Benchmarks without what they would measure first, or compare with."""

import pytest

from experiments.benchmarks import measure
from tests.experiments.common import MISSING


@pytest.fixture
def gemm(monkeypatch):
    """Products at 100 and 50 GFLOP/s, and no time spent on them."""
    monkeypatch.setattr(measure, "gemm_rates", lambda: {"jax": 100.0, "torch": 50.0})


@pytest.fixture
def no_torch(monkeypatch, gemm):
    monkeypatch.setattr(measure, "why_no_torch", lambda: MISSING)
