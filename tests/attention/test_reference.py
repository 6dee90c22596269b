"""Every method against the float64 reference: values, weights and gradients."""

import functools

import jax
import numpy as np
import pytest

from lenext.attention import attend, attention_weights, make_method
from tests.attention.common import (
    COMPOSITIONS,
    DIM,
    EVERY_METHOD,
    EVERY_NAME,
    HEADS,
    SURFACE,
    TOGETHER,
    TRAIN_LENGTH,
    V_DIM,
    everywhere,
    hiding,
    in_every_way,
    inputs,
    known_to_reference,
    out_and_weights,
    quick_attend,
    unequal_params,
    value_and_grads,
    ways,
)
from tests.attention.reference import reference_attend, reference_weights, weighted_sums

# Float32 against float64. Most methods stay below 1e-6; cosscale's factor 128 and LSSAR's 15th
# power make a rounding of the logits some hundred times larger.
TOLERANCE = 3e-4
LENGTH = 111  # odd, a multiple of no block size
STEP = 1e-7  # central differences in float64: an error of 1e-16 / STEP, and hardly a kink between

both_ways = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@functools.cache
def problem(method: str, causal: bool):
    """A problem and its answer: inputs, a cotangent, reference output and slopes along directions.

    The derivative of sum(out * cotangent) is taken along one direction in q, k and the learned
    parts together, as they reach the output by the same road; along one in v; and in the first and
    the last key alone, because masks and offsets go wrong where rows start and end.
    """
    q, k, v = inputs(seed=1, batch=2, queries=LENGTH, keys=LENGTH)
    made = make_method(known_to_reference(method), train_length=TRAIN_LENGTH)
    params = unequal_params(made)
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=(2, LENGTH, HEADS, V_DIM)).astype(np.float32)
    leaves, form = jax.tree.flatten(params)
    point = [q, k, v, *(np.asarray(x, np.float64) for x in leaves)]

    def weights(q, k, _, *leaves):
        learned = jax.tree.unflatten(form, leaves)
        return reference_weights(q, k, method, TRAIN_LENGTH, causal=causal, params=learned)

    made_weights = weights(*point)
    assert made_weights.dtype == np.float64

    def slope(direction):
        def at(step):
            return weights(*[x + step * d for x, d in zip(point, direction, strict=True)])

        d_v = direction[2]
        if np.any(d_v):  # the output is linear in the values
            return np.sum(weighted_sums(made_weights, d_v) * cotangent)
        d_weights = (at(STEP) - at(-STEP)) / (2 * STEP)
        return np.sum(weighted_sums(d_weights, v) * cotangent)

    whole = [rng.normal(size=x.shape) for x in point]
    ends = np.zeros(LENGTH)[:, None, None]
    ends[[0, -1]] = 1
    directions = {
        "logits": [d * (i != 2) for i, d in enumerate(whole)],
        "values": [d * (i == 2) for i, d in enumerate(whole)],
        "ends": [d * ends if i == 1 else 0 * d for i, d in enumerate(whole)],
    }
    derivatives = {name: (direction, slope(direction)) for name, direction in directions.items()}
    return made, (q, k, v, cotangent, params), weighted_sums(made_weights, v), derivatives


# The compositions share their parts' code: one way of computing them each, causal and not. So do
# blocks that are not causal: they stand against every choice on an axis, if not in every method.
CASES = [(m, causal, "naive") for m in EVERY_NAME for causal in ways(m)]
CASES += [(m, True, "blockwise") for m in EVERY_NAME]
CASES += [case for m in COMPOSITIONS for case in [(m, False, "naive"), (m, True, "blockwise")]]
CASES += [(m, ways(m)[0], "blockwise") for m in TOGETHER]
AXES = ["position", "similarity", "temperature", "weighting", "visibility"]


def test_together_they_make_every_choice():
    def choices(methods):
        made = [make_method(method, train_length=TRAIN_LENGTH) for method in methods]
        return {(axis, type(getattr(method, axis))) for method in made for axis in AXES}

    assert choices(SURFACE) <= choices(TOGETHER)


# Blocks that do not divide 111. With causality the number of blocks is what takes the time to
# compile, as each stands against another number of keys.
@pytest.mark.parametrize(("method", "causal", "implementation"), CASES)
def test_value_and_gradients(method, causal, implementation):
    made, arguments, expected, derivatives = problem(method, causal)
    block_size, places = None, hiding(2, LENGTH)
    if implementation == "blockwise":
        block_size, places = 64 if causal else 40, {}
    out, gradients = value_and_grads(
        *arguments, places, method=made, causal=causal,
        implementation=implementation, block_size=block_size,
    )  # fmt: skip
    np.testing.assert_allclose(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    gradients = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradients)]  # q, k, v, learned
    for name, (direction, derivative) in derivatives.items():
        terms = [g * d for g, d in zip(gradients, direction, strict=True)]
        # The terms have random signs: what they come to is about the root of their squares' sum,
        # and so is what their roundings come to.
        size = np.sqrt(sum(np.sum(term**2) for term in terms))
        assert size > 1e-2
        assert abs(sum(np.sum(term) for term in terms) - derivative) < TOLERANCE * size, name


def hard_places() -> dict[str, np.ndarray]:
    """Six sequences, T = 63 queries on S = 111 keys: see the comments."""
    places = everywhere(6, 63, 111)
    # 0: the defaults
    places["kv_mask"][1, 90:] = False  # padding on the right: some causal rows end in it
    places["kv_mask"][2, :57] = False  # and on the left: the first causal rows see nothing
    places["kv_segment_ids"][3] = np.searchsorted([30, 70], np.arange(111), side="right")
    places["q_segment_ids"][3] = places["kv_segment_ids"][3, 48:]
    # A pack with positions that start over, far out, and ids in no order.
    places["kv_segment_ids"][4] = np.where(np.arange(111) < 66, 7, -3)
    places["q_segment_ids"][4] = places["kv_segment_ids"][4, 48:]
    places["kv_positions"][4] = np.where(np.arange(111) < 66, 5000, -66) + np.arange(111)
    places["q_positions"][4] = places["kv_positions"][4, 48:]
    # Holes, a shift, queries in the midst of the keys, and one document with no key at all.
    places["kv_mask"][5] = np.random.default_rng(3).random(111) < 0.7
    places["kv_positions"][5] += 1000
    places["q_positions"][5] += 970
    places["q_segment_ids"][5, 40:45] = 9
    return places


@in_every_way(EVERY_METHOD)
def test_padding_documents_and_positions(method, causal):
    q, k, v = inputs(seed=4, batch=6, queries=63, keys=111)
    made = make_method(known_to_reference(method), train_length=TRAIN_LENGTH)
    params, places = unequal_params(made), hard_places()
    out, weights = out_and_weights(q, k, v, params, places, method=made, causal=causal)
    known = {"causal": causal, "params": params, **places}
    del known["length"]  # the reference takes all keys for it
    expected = reference_weights(q, k, method, TRAIN_LENGTH, **known)
    np.testing.assert_allclose(weights, expected, atol=TOLERANCE)
    expected = reference_attend(q, k, v, method, TRAIN_LENGTH, **known)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not np.any(np.asarray(out)[5, 40:45])


@both_ways
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
@pytest.mark.parametrize("method", ["lm_infinite+infoscale", "lssar", "yarn"])
def test_fewer_queries_than_keys(method, implementation, causal):
    """The queries are the last T of the keys where nothing else is said, in blocks too."""
    q, k, v = inputs(seed=5, batch=1, queries=41, keys=63)
    made = make_method(method, train_length=TRAIN_LENGTH)
    out = quick_attend(q, k, v, made, causal=causal, implementation=implementation, block_size=24)
    expected = reference_attend(q, k, v, method, TRAIN_LENGTH, causal=causal)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


@pytest.mark.parametrize("method", ["rerope+infoscale", "lssa"])
def test_causal_groups_of_several_blocks(method):
    """12 blocks of 10 rows: more than there are key prefixes, so that some serve several blocks."""
    q, k, v = inputs(seed=6, batch=2, queries=LENGTH, keys=LENGTH)
    made = make_method(method, train_length=TRAIN_LENGTH)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [70]])
    out = quick_attend(
        q, k, v, made, causal=True, kv_mask=mask, implementation="blockwise", block_size=10
    )
    expected = reference_attend(q, k, v, method, TRAIN_LENGTH, causal=True, kv_mask=mask)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


@pytest.mark.parametrize("method", ["softmax", "streaming_llm(window=9)+log_length"])
def test_blocks_follow_positions_in_any_order(method):
    """Causal, and most of what an early query sees stands late: no prefix of the keys will do."""
    q, k, v = inputs(seed=17, batch=1, queries=63, keys=63)
    rng = np.random.default_rng(18)
    places = {name: rng.permutation(63)[None] for name in ("q_positions", "kv_positions")}
    made = make_method(method, train_length=TRAIN_LENGTH)
    out = quick_attend(
        q, k, v, made, causal=True, implementation="blockwise", block_size=10, **places
    )
    expected = reference_attend(q, k, v, method, TRAIN_LENGTH, causal=True, **places)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (5, 1)], ids=str)
def test_grouped_heads(heads):
    """One head, as many, three to one, all to one: query head h reads key head h // (N / K)."""
    rng = np.random.default_rng(7)
    q, k, v = (
        rng.normal(size=(2, 17, n, d)).astype(np.float32)
        for n, d in zip([heads[0], heads[1], heads[1]], [DIM, DIM, 3], strict=True)
    )
    made = make_method("alibi", train_length=8)  # its slopes tell the heads apart
    expected = reference_attend(q, k, v, "alibi", 8)
    np.testing.assert_allclose(quick_attend(q, k, v, made), expected, atol=TOLERANCE)
    expected = reference_weights(q, k, "alibi", 8)
    np.testing.assert_allclose(attention_weights(q, k, made), expected, atol=TOLERANCE)


@both_ways
@pytest.mark.parametrize("block_size", [None, 7, 63, 1000])
@pytest.mark.parametrize("implementation", ["auto", "blockwise"])
def test_block_sizes(implementation, block_size, causal):
    """As users call it: no size given, one that divides, one that does not, one past the end."""
    q, k, v = inputs(seed=10, batch=1, queries=63, keys=63)
    made = make_method("infoscale", train_length=TRAIN_LENGTH)
    out = attend(q, k, v, made, causal=causal, implementation=implementation, block_size=block_size)
    expected = reference_attend(q, k, v, "infoscale", TRAIN_LENGTH, causal=causal)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("infoscale", {"clamp": False}),
        ("log_length", {"clamp": False}),
        ("cosscale", {"cos_scale": 16.0}),
        ("lssar", {"power": 3, "offset": 0.5}),
        ("relu2", {"gau": True}),
        *(("lssa", {"phi": phi}) for phi in ("exp", "relu", "relu2", "sigmoid", "gelu_shifted")),
        ("lssa", {"phi": "softplus", "norm": "none"}),
        ("lssa", {"phi": "relu2", "norm": "none"}),
        ("lssar", {"phi": "relu", "power": 3}),
        ("lssar", {"phi": "gelu_shifted", "norm": "none"}),
        ("reweighted_softmax", {"power": 3, "offset": 0.5}),
        ("yarn", {"scale": 8.0, "base": 500.0}),
        ("ntk", {"scale": 3.0}),
        ("pi", {"scale": 1.5, "pairing": "halves"}),
        ("rerope", {"window": 7, "pairing": "halves"}),
        ("lm_infinite", {"window": 9, "sinks": 2}),
        ("windowed", {"window": 1}),
        ("yarn", {"position": "none"}),
        ("alibi+ssmax", {"position": "none"}),
        ("p_rope", {"fraction": 0.4}),
        ("dynamic_ntk", {"scale": 3.0, "base": 500.0}),
        ("llama3", {"scale": 8.0, "base": 500.0}),
        ("longrope", {"factors": (1.0, 1.5, 2.0, 4, 5.0, 6.5, 8.0, 8.0)}),
        ("leaky_rerope", {"window": 7, "leak": 2.5, "pairing": "halves"}),
        ("self_extend", {"window": 7, "group": 3}),
        ("streaming_llm", {"window": 9, "sinks": 2}),
        ("streaming_llm", {"window": 2, "sinks": 6}),
        ("scale_invariant", {"tau": 2.0, "fraction": 1.0, "base": 500.0}),
        ("llama4", {"floor": 8}),
        ("llama4", {"floor": 5, "beta": 0.5}),
        ("mistral3", {"beta": 0.7}),
    ],
    ids=str,
)
def test_options(method, options):
    """Each option does what its formula says, not only what the defaults need."""
    q, k, v = inputs(seed=8, batch=1, queries=63, keys=63)
    made = make_method(method, train_length=TRAIN_LENGTH, **options)
    params = unequal_params(made)
    out = quick_attend(q, k, v, made, params=params)
    expected = reference_attend(q, k, v, method, TRAIN_LENGTH, params=params, **options)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_results_have_the_stated_types():
    q, k, v = inputs(seed=9, batch=1, queries=9, keys=9)
    made = make_method("softmax", train_length=8)
    q, k, v = (jax.numpy.asarray(x, "bfloat16") for x in (q, k, v))
    assert attend(q, k, v, made).dtype == q.dtype
    assert attention_weights(q, k, made).dtype == np.float32
