"""Fast compilation: experiments at their smallest take a minute of it for a second of work."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_fast():
    # What is tested here is who runs what and what is made of it, not how fast or how exact.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # or later tests would run what was compiled here, to other last bits
