"""Which methods a fused kernel can compute, and why not the others."""

import dataclasses

import jax.numpy as jnp
import pytest

from lenext.attention import make_method, method_names
from lenext.attention.fused import why_not_fused
from lenext.attention.position import Rope

WEIGHTS = "its weights are not a plain softmax of the logits"
SIMILARITY = "its similarity is neither a scaled dot product nor a cosine"
VISIBILITY = "its rows see something other than all keys or a window"
ROTATIONS = "it rotates near and far keys differently, which takes a score matrix each"
GAIN = "its gain on the logits follows the distance"
BIAS = "its bias on the logits is an array of all queries by all keys"

REFUSED = {
    **dict.fromkeys(["lssa", "lssar", "reweighted_softmax", "reweighted_sigmoid"], WEIGHTS),
    **dict.fromkeys(["sigmoid", "relu", "relu2", "softmax1", "sparsemax", "adaptive"], WEIGHTS),
    "soft": SIMILARITY,
    **dict.fromkeys(["lm_infinite", "streaming_llm"], VISIBILITY),
    **dict.fromkeys(["rerope", "leaky_rerope", "self_extend", "rerope_log"], ROTATIONS),
    "scale_invariant": GAIN,
    **dict.fromkeys(["alibi", "kerple_log", "fire"], BIAS),
}


def reason(name: str, **options) -> str | None:
    return why_not_fused(make_method(name, train_length=8, **options), 4, 16)


@pytest.mark.parametrize("name", method_names())
def test_catalogue(name):
    assert reason(name) == REFUSED.get(name)


def test_options_and_compositions():
    assert reason("rerope", position="none") is None  # nothing is rotated, near or far
    assert reason("alibi+infoscale") == BIAS
    assert reason("yarn(scale=4)+cosscale+ssmax+windowed") is None
    assert reason("lssa(phi='exp')") == WEIGHTS
    factors = make_method("longrope(factors=(1.0, 2.0))", train_length=8)
    assert why_not_fused(factors, 4, 4) is None
    with pytest.raises(ValueError, match="2 factors: should be 8"):
        why_not_fused(factors, 4, 16)


def test_a_position_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class GainOfRows(Rope):
        """A gain for whole rows, which goes into q."""

        def gain(self, rows):
            return jnp.log1p(rows.n)

    @dataclasses.dataclass(frozen=True)
    class OnlyNear(Rope):
        """One rotation, but not for all keys."""

        def pieces(self, rows):
            (piece,) = super().pieces(rows)
            return [dataclasses.replace(piece, where=rows.delta < 2)]

    method = make_method("softmax", train_length=8)
    assert why_not_fused(dataclasses.replace(method, position=GainOfRows()), 4, 16) is None
    assert why_not_fused(dataclasses.replace(method, position=OnlyNear()), 4, 16) == ROTATIONS
