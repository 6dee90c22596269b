"""What the ranges of a tile's places say, against what its queries see of its keys."""

import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import make_method
from lenext.attention.compute.call import Call
from lenext.attention.compute.places import Places, located, visible
from lenext.attention.compute.plan import plan_of, seen_of

METHODS = ["softmax", "windowed(window=3)", "streaming_llm(window=3,sinks=2)", "chunked(chunk=5)"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_ranges_keep_their_promises(method, causal):
    """Random tiles of 4 queries and 5 keys, with padding and documents; and both are used."""
    rng, made = np.random.default_rng(0), make_method(method, train_length=8)
    q, k = (1, 4, 1, 8), (1, 5, 1, 8)
    call = Call(made, q, k, k, "float32", causal, ordered=False, masked=True, length=5)
    plan, found = plan_of(call, 8), []
    for trial in range(60):
        first = rng.integers(0, 30, size=2)
        ids = {}
        if trial % 3 == 0:
            split = rng.integers(0, 6)
            theirs = np.arange(5)[None] < split
            ids = {"q_segment_ids": jnp.ones((1, 4), jnp.int32)}
            ids["kv_segment_ids"] = jnp.asarray(theirs, jnp.int32)
        mask = jnp.ones((1, 5), bool) if trial % 2 else jnp.asarray(rng.random((1, 5)) < 0.7)
        places = located(
            Places(
                jnp.asarray(first[0] + np.arange(4), jnp.int32)[None],
                jnp.asarray(first[1] + np.arange(5), jnp.int32)[None], kv_mask=mask, **ids,
            )
        )  # fmt: skip
        said, sees = seen_of(plan, places), np.asarray(visible(made, places, causal))
        assert bool(said.some) or not sees.any()
        assert not bool(said.all) or np.broadcast_to(sees, (1, 1, 4, 5)).all()
        found.append((bool(said.some), bool(said.all)))
    assert {some for some, _ in found} == {True, False}
    assert any(whole for _, whole in found) == made.visibility.sees_all
