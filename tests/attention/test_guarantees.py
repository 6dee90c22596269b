"""What the library promises of every method, whatever its formula: ten guarantees.

Methods come from `method_names()`, so a new one is held to them from its first day. Nothing here
asks the reference about it: what a guarantee has to know of a method, the method shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, make_method, method_options, unsuited_axes
from lenext.attention.catalogue import CATALOGUE
from lenext.attention.compute.places import Places, located, rows_at, visible
from tests.attention.common import (
    EVERY_NAME,
    QUICK,
    SURFACE,
    TRAIN_LENGTH,
    beyond_its_floor,
    everywhere,
    hiding,
    in_every_way,
    inputs,
    out_and_weights,
    quick_attend,
    quick_statistics,
    quick_weights,
    unequal_params,
    value_and_grads,
    ways,
)
from tests.attention.reference import infoscale

DOCUMENT = 63  # four times the training length, and odd
KEYS = 111  # of rows that hold a document among others
EXACT = 6e-5  # the same sums in another order, and rotations from other positions; most by CosScale

every_name = pytest.mark.parametrize("method", EVERY_NAME)
both_ways = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@functools.cache
def document():
    """One document, [1, 63, ...]."""
    return inputs(seed=11, batch=1, queries=DOCUMENT, keys=DOCUMENT)


@functools.cache
def alone(method: str, causal: bool):
    """Output and weights of the document on its own."""
    made = beyond_its_floor(method, TRAIN_LENGTH)
    params = unequal_params(made)
    out, weights = out_and_weights(*document(), params, {}, method=made, causal=causal)
    return np.asarray(out), np.asarray(weights)


# 1. The temperature is 1 at n = L, and not elsewhere.

SOFTMAX = make_method("softmax", train_length=TRAIN_LENGTH)
TEMPERATURES = {
    name: made.temperature
    for name in EVERY_NAME
    if (made := make_method(name, train_length=TRAIN_LENGTH)).temperature != SOFTMAX.temperature
}
# A temperature that suits any weights is swapped into trained ones: it must not change what they
# were trained with. SSMax is trained with, and starts there.
FREE = [name for name, choice in TEMPERATURES.items() if choice.kind == "any" or name == "ssmax"]


@pytest.mark.parametrize("method", FREE)
def test_temperature_is_one_at_the_training_length_only(method):
    """A temperature that is no such law says so: it has a `trained_kind` of its own."""
    length = 512 if method == "softmax_plus" else TRAIN_LENGTH
    options = {"floor": length + 1} if "floor" in method_options(method) else {}
    q, k, _ = inputs(seed=12, batch=1, queries=4, keys=length + 8)
    made = make_method(method, train_length=length, **options)
    plain = make_method(method, train_length=length, temperature="softmax")
    assert made != plain
    for size, same in [(length, True), (length + 8, False)]:
        places = {
            "q_positions": np.arange(size - 4, size),
            "kv_mask": np.arange(length + 8)[None] < size,
        }
        ours, theirs = quick_weights(q, k, made, **places), quick_weights(q, k, plain, **places)
        assert np.allclose(ours, theirs, atol=1e-6) == same


# 2. A row's temperature may as well be a factor on its query.


@pytest.mark.parametrize("method", ["infoscale", "alibi+infoscale", "yarn+infoscale"])
@both_ways
def test_temperature_folds_into_the_query(method, causal):
    """On the similarity only: with ALiBi the bias stays as it is."""
    q, k, v = document()
    made = make_method(method, train_length=TRAIN_LENGTH)
    plain = make_method(method, train_length=TRAIN_LENGTH, temperature="softmax")
    n = np.arange(1, DOCUMENT + 1) if causal else np.full(DOCUMENT, DOCUMENT)
    factor = np.maximum(1, infoscale(n.astype(np.float64), q.shape[-1], TRAIN_LENGTH))
    folded = (q * factor[None, :, None, None]).astype(np.float32)
    np.testing.assert_allclose(
        quick_attend(q, k, v, made, causal=causal),
        quick_attend(folded, k, v, plain, causal=causal),
        atol=EXACT,
    )


@pytest.mark.parametrize("method", TEMPERATURES)
def test_every_temperature_is_one_factor_a_row(method):
    """Read off the largest logits of NoPE, and put on the queries of ALiBi."""
    q, k, v = document()

    def with_temperature(base, name):
        options = {"floor": 8} if "floor" in method_options(name) else {}
        return make_method(base, train_length=TRAIN_LENGTH, temperature=name, **options)

    params = unequal_params(with_temperature("nope", method))
    ours, plain = (
        quick_statistics(q, k, with_temperature("nope", name), causal=True, params=learned)
        for name, learned in [(method, params), ("softmax", {})]
    )
    factor = np.asarray(ours.max_logit) / np.asarray(plain.max_logit)
    folded = q * factor.swapaxes(1, 2)[..., None]
    out = quick_attend(q, k, v, with_temperature("alibi", method), causal=True, params=params)
    expected = quick_attend(folded, k, v, with_temperature("alibi", "softmax"), causal=True)
    np.testing.assert_allclose(out, expected, atol=EXACT)
    assert np.ptp(factor) > 1e-3


# 3. Generating a token at a time gives what the whole sequence gives.


@every_name
def test_decoding_equals_prefill(method):
    """63 steps as one batch: a query each, on a cache with room whose unused part holds noise."""
    q, k, v = document()
    made = beyond_its_floor(method, TRAIN_LENGTH)
    room = DOCUMENT + 7
    noise = np.random.default_rng(13).normal(scale=30, size=(DOCUMENT, room, 2, 16))
    filled = np.arange(room) <= np.arange(DOCUMENT)[:, None]  # [step, cache]
    cache_k, cache_v = noise.astype(np.float32), noise[..., :6].astype(np.float32)
    for cache, x in [(cache_k, k), (cache_v, v)]:
        cache[:, :DOCUMENT] = np.where(filled[:, :DOCUMENT, None, None], x, cache[:, :DOCUMENT])
    out = quick_attend(
        np.swapaxes(q, 0, 1), cache_k, cache_v, made, causal=True,
        q_positions=np.arange(DOCUMENT)[:, None], kv_mask=filled, params=unequal_params(made),
        length=np.int32(DOCUMENT),
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(out)[:, 0], alone(method, True)[0][0], atol=EXACT)


@every_name
def test_continuing_equals_prefill(method):
    """The last 9 queries on all keys, with default positions; in blocks, each on its prefix."""
    q, k, v = document()
    made = beyond_its_floor(method, TRAIN_LENGTH)
    out = quick_attend(
        q[:, -9:], k, v, made, causal=True, params=unequal_params(made),
        implementation="blockwise", block_size=5,
    )  # fmt: skip
    np.testing.assert_allclose(out, alone(method, True)[0][:, -9:], atol=EXACT)


@every_name
def test_what_a_cache_drops_is_seen_no_more(method):
    """Rows see no more than a document's first and nearest keys, as many as they say."""
    visibility = beyond_its_floor(method, TRAIN_LENGTH).visibility
    place = np.arange(DOCUMENT)
    delta, ordinal = place[:, None] - place, np.tile(place, (DOCUMENT, 1))
    seen = visibility(*(jnp.asarray(x, jnp.int32)[None, None] for x in (delta, ordinal)))
    assert (seen is None) == visibility.sees_all
    if visibility.keeps() is None:
        return
    assert seen is not None
    seen, (first, last) = np.asarray(seen)[0, 0], visibility.keeps()
    assert not np.any(seen & (ordinal >= first) & (np.abs(delta) >= last))
    # And they say no more than they see: it would be kept for nothing.
    assert np.max(delta[seen & (ordinal >= first)]) == last - 1
    assert first == 0 or seen[-1, first - 1]


# 4. A document gives the same alone, padded, and packed beside others.


@in_every_way(EVERY_NAME)
def test_padding_and_packing(method, causal):
    """Right padding, left padding, behind and before another document; positions 0..S-1.

    Padded keys and values are NaN. The documents of a pack are told apart by ids only, so the count
    of visible keys and the sinks have to start over by themselves; once more with positions that
    start over, and once with padding before and another document behind.
    """
    q, k, v = document()
    made = beyond_its_floor(method, TRAIN_LENGTH)
    other = KEYS - DOCUMENT
    starts = [0, other, other, 0, other, 20]
    rng = np.random.default_rng(14)
    parts = [rng.normal(scale=5, size=(6, KEYS, *x.shape[2:])).astype(np.float32) for x in (k, v)]
    places = everywhere(6, DOCUMENT, KEYS)
    mask, segments, positions, lengths = (
        places[name] for name in ("kv_mask", "kv_segment_ids", "kv_positions", "length")
    )
    lengths[:] = DOCUMENT
    for i, start in enumerate(starts):
        inside = slice(start, start + DOCUMENT)
        for part, x in zip(parts, (k, v), strict=True):
            part[i, inside] = x[0]
        if i < 2:
            mask[i] = False
            mask[i, inside] = True
        else:
            segments[i, inside] = [3, -1, 3, 7][i - 2]
            lengths[i, segments[i] == 0] = other
    positions[4, other:] -= other
    mask[5, :20] = False
    for part in parts:
        part[~mask] = np.nan
    for i, start in enumerate(starts):
        for name in ("positions", "segment_ids"):
            places[f"q_{name}"][i] = places[f"kv_{name}"][i, start : start + DOCUMENT]
    out, weights = out_and_weights(
        np.repeat(q, 6, axis=0), *parts, unequal_params(made), places, method=made, causal=causal
    )
    expected, expected_weights = alone(method, causal)
    for i, start in enumerate(starts):
        np.testing.assert_allclose(np.asarray(out)[i], expected[0], atol=EXACT)
        row = np.asarray(weights)[i]
        inside = row[..., start : start + DOCUMENT]
        np.testing.assert_allclose(inside, expected_weights[0], atol=EXACT)
        assert np.count_nonzero(row) == np.count_nonzero(inside)


# 5. No name is another word for softmax.


@in_every_way([name for name in EVERY_NAME if name != "softmax"])
def test_every_method_differs_from_softmax(method, causal):
    out, plain = alone(method, causal)[0], alone("softmax", causal)[0]
    # The one that softmax1 adds to a sum over 63 keys is a hundredth: small, but no rounding.
    assert np.max(np.abs(out - plain)) > 1e-3


def test_methods_differ_from_each_other():
    """Two names for one thing would be a mix-up in the catalogue."""
    outs = {method: alone(method, True)[0] for method in EVERY_NAME}
    # The factors of LongRoPE are a model's own; without any it is position interpolation. Dynamic
    # NTK is NTK at the length at hand; they part where a scale is given, which one adds to that.
    same = {("longrope", "pi"), ("dynamic_ntk", "ntk")}
    for a, b in [(a, b) for a in outs for b in outs if a < b and (a, b) not in same]:
        assert np.max(np.abs(outs[a] - outs[b])) > 1e-3, (a, b)


# 6. Blocks give what the definition gives, in value and gradient.


def packed(batch: int, length: int):
    """A padded pack: two documents and padding on either side, in the second sequence only."""
    places = hiding(batch, length)
    places["kv_mask"][1, :5] = places["kv_mask"][1, -11:] = False
    places["kv_segment_ids"][:, :27] = places["q_segment_ids"][:, :27] = 1
    return places


@functools.cache
def problem():
    """q, k, v and a cotangent, B = 2, T = S = 111."""
    q, k, v = inputs(seed=15, batch=2, queries=KEYS, keys=KEYS)
    cotangent = np.random.default_rng(16).normal(size=(*q.shape[:3], v.shape[-1]))
    return q, k, v, cotangent.astype(np.float32)


def solve(method, causal, implementation, *, arguments=None, places=None, dtype="float32", **kw):
    """Output and gradients as float32 arrays, from arguments rounded to dtype.

    Padded keys are NaN and padded values infinite: none of it may reach either.
    """
    places = packed(2, KEYS) if places is None else places
    q, k, v, cotangent = arguments or problem()
    seen = places["kv_mask"][:, :, None, None]
    arguments = q, np.where(seen, k, np.nan), np.where(seen, v, np.inf), cotangent
    arguments = [jnp.asarray(x, dtype) for x in arguments]
    params = unequal_params(method)
    out, gradients = value_and_grads(
        *arguments,
        params,
        places,
        method=method,
        causal=causal,
        implementation=implementation,
        **kw,
    )
    assert {x.dtype for x in [out, *gradients[:3]]} == {jnp.dtype(dtype)}
    return [np.asarray(x, np.float32) for x in jax.tree.leaves((out, gradients))]


@functools.cache
def rounded_problem():
    """The problem's numbers as bfloat16 has them, in float32."""
    return [np.asarray(jnp.asarray(x, "bfloat16"), np.float32) for x in problem()]


@functools.cache
def by_definition(method: str, causal: bool):
    made = make_method(method, train_length=TRAIN_LENGTH)
    return solve(made, causal, "naive", arguments=rounded_problem())


@pytest.mark.parametrize(
    ("method", "causal"),
    [*((name, True) for name in EVERY_NAME), ("softmax", False), ("lssar", False)],
)
def test_blocks_equal_the_definition_in_bfloat16(method, causal):
    """Against the definition in float32, from the same rounded inputs: 2 % of the largest."""
    made = make_method(method, train_length=TRAIN_LENGTH)
    ours = solve(made, causal, "blockwise", block_size=64, dtype="bfloat16")
    for a, b in zip(ours, by_definition(method, causal), strict=True):
        assert np.all(np.isfinite(b))
        # A constant on all logits, as FIRE's last bias, has no gradient but rounding: hence 1e-5.
        np.testing.assert_allclose(a, b, atol=2e-2 * np.max(np.abs(b)) + 1e-5)
    if causal:  # behind padding on the left there is nothing to see
        assert not np.any(ours[0][1, :5])


# Those of the public surface stand against the reference in float32 too, without a pack.
NEW = [name for name in EVERY_NAME if name not in SURFACE]


@in_every_way(["lm_infinite+ssmax", "lssar", "alibi+relu", "softmax_sink", *NEW])
def test_blocks_equal_the_definition_in_a_pack(method, causal):
    made = make_method(method, train_length=TRAIN_LENGTH)
    # Causal: as below, where rows see nothing.
    ours = solve(made, causal, "blockwise", block_size=64 if causal else 48)
    for a, b in zip(ours, solve(made, causal, "naive"), strict=True):
        np.testing.assert_allclose(a, b, atol=EXACT * np.max(np.abs(b)) + 1e-6)


def test_results_are_the_same_to_the_bit_each_time():
    made = make_method("lssar", train_length=TRAIN_LENGTH)
    for a, b in zip(solve(made, True, "naive"), solve(made, True, "naive"), strict=True):
        np.testing.assert_array_equal(a, b)


# 7. A row that sees nothing is zero and hurts no gradient.


# Blocks run the same definition: three methods say enough of them. In bfloat16 and causal, rows
# behind padding see nothing in the tests of blocks above.
NOTHING_SEEN = [
    *((name, ways(name)[0], "naive") for name in EVERY_NAME),
    *((name, True, "naive") for name in ("softmax", "lssar", "lm_infinite")),
    *((name, True, "blockwise") for name in ("softmax", "lssar", "lm_infinite")),
]


@pytest.mark.parametrize(("method", "causal", "implementation"), NOTHING_SEEN)
def test_rows_that_see_nothing(method, causal, implementation):
    """A sequence of padding alone, and queries of a document without keys."""
    places = packed(2, KEYS)
    places["kv_mask"][0] = False
    places["q_segment_ids"][1, 40:50] = 8
    made = make_method(method, train_length=TRAIN_LENGTH)
    block_size = None if implementation == "naive" else 64
    out, dq, dk, dv, *_ = results = solve(
        made, causal, implementation, places=places, block_size=block_size
    )
    assert all(np.all(np.isfinite(x)) for x in results)
    assert not np.any(out[0])
    assert not np.any(out[1, 40:50])
    for gradient in (dq[0], dk[0], dv[0], dq[1, 40:50]):
        assert not np.any(gradient)
    seen = np.any(out[1, 5:40], axis=(1, 2))
    # Rows that do not see themselves have nothing where a document starts.
    starts = np.isin(np.arange(5, 40), (5, 27)) & (not alone(method, causal)[0][0, 0].any())
    np.testing.assert_array_equal(seen, ~starts)


# 8. Weights are weights, whatever the logits.


UNNORMALISED = {"sigmoid", "relu", "relu2", "softmax1", "softmax_sink", "stick_breaking"}


@in_every_way(EVERY_NAME)
def test_weights_are_finite_positive_and_sum_to_one(method, causal):
    """Queries so large that the logits of a dot product reach 1e4 and more, either sign.

    A method whose rows sum to 1 in an ordinary document has to keep to that here. bfloat16 inputs
    give what the same numbers give in float32: only the output is rounded. (Causal ones do in the
    tests of blocks above, and by the definition for one method of each kind of weighting.)
    """
    sums_to_one = np.allclose(alone(method, causal)[1].sum(axis=-1), 1, atol=1e-5)
    assert sums_to_one == (method not in UNNORMALISED) or method not in SURFACE
    made = make_method(method, train_length=TRAIN_LENGTH)
    q, k, v = (
        np.asarray(jnp.asarray(x, "bfloat16"), np.float32)
        for x in inputs(seed=15, batch=6, queries=DOCUMENT, keys=KEYS)
    )
    grouped = q.reshape(6, DOCUMENT, 2, 2, 16)
    largest = np.max(np.abs(np.einsum("btkgh,bskh->bkgts", grouped, k))) / 4
    sizes = 2.0 ** np.array([np.ceil(np.log2(1e4 / largest)), 0] * 3)  # three sequences each
    q = (q * sizes[:, None, None, None]).astype(np.float32)
    # Two documents in all but the first two; some rows of the last two see nothing but padding.
    places, params = everywhere(6, DOCUMENT, KEYS), unequal_params(made)
    places["kv_segment_ids"][2:] = np.arange(KEYS) < 70
    places["q_segment_ids"][2:] = places["kv_segment_ids"][2:, -DOCUMENT:]
    places["kv_mask"][4:, :52] = places["kv_mask"][4:, -11:] = False
    out, weights = out_and_weights(q, k, v, params, places, method=made, causal=causal)
    out, weights = np.asarray(out), np.asarray(weights)
    assert np.all(np.isfinite(out))
    assert np.all(weights >= 0)
    if sums_to_one:
        total = weights.sum(axis=-1)
        some = np.broadcast_to(np.any(weights > 0, axis=(1, 3))[:, None], total.shape)
        np.testing.assert_allclose(total[some], 1, rtol=1e-5)
        assert np.mean(some) > 0.8
    if causal and method not in ("softmax", "lssar", "sigmoid", "sparsemax"):
        return
    half = [jnp.asarray(x, "bfloat16") for x in (q, k, v)]
    half_out, half_weights = out_and_weights(*half, params, places, method=made, causal=causal)
    assert half_out.dtype == jnp.bfloat16
    np.testing.assert_allclose(half_weights, weights, atol=1e-6)
    np.testing.assert_allclose(np.asarray(half_out, np.float32), out, rtol=2**-8, atol=1e-6)


@every_name
def test_gradients_are_finite_at_extreme_logits(method):
    made = make_method(method, train_length=TRAIN_LENGTH)
    q, k, v, cotangent = problem()
    for result in solve(made, True, "naive", arguments=(q * 3000, k, v, cotangent)):
        assert np.all(np.isfinite(result))


@pytest.mark.parametrize("phi", ["softplus", "relu", "relu2", "sigmoid", "gelu_shifted"])
def test_first_stages_stand_extreme_logits(phi):
    """LSSA's own cosines keep far from overflow; dot products need not."""
    axes = {"similarity": "softmax", "temperature": "softmax"}
    made = make_method("lssa", train_length=TRAIN_LENGTH, phi=phi, **axes)
    q, k, v, cotangent = problem()
    out, *gradients = solve(made, True, "naive", arguments=(q * 3000, k, v, cotangent))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    # Weighted means of the values.
    assert np.all(np.abs(out) <= np.max(np.abs(v)) * (1 + 1e-5))
    assert np.any(out)


@every_name
def test_gradients_are_finite_for_zero_vectors(method):
    """Embeddings of padding are often zero: no direction, so no cosine, but no NaN either."""
    made = make_method(method, train_length=TRAIN_LENGTH)
    q, k, v, cotangent = (x.copy() for x in problem())
    q[:, 20:23], k[:, 20:30] = 0, 0
    for result in solve(made, True, "naive", arguments=(q, k, v, cotangent)):
        assert np.all(np.isfinite(result))


# 9. What cannot be done is refused.


def test_an_unknown_implementation_is_refused():
    q, k, v = document()
    made = make_method("softmax", train_length=TRAIN_LENGTH)
    with pytest.raises(ValueError, match=r"flash.*naive.*blockwise"):
        attend(q, k, v, made, implementation="flash")


# And causality, by gradient.


@every_name
def test_no_output_depends_on_what_comes_after(method):
    """A row in the pack's second document: nothing flows past its ends or to other queries."""
    made = make_method(method, train_length=TRAIN_LENGTH)
    q, k, v, cotangent = problem()
    row = 40
    cotangent = np.where(np.arange(KEYS)[None, :, None, None] == row, cotangent, 0)
    _, dq, dk, dv, *_ = solve(made, True, "naive", arguments=(q, k, v, cotangent))
    for gradient in (dk, dv):
        assert not np.any(gradient[:, row + 1 :])
        assert not np.any(gradient[:, :27])  # the document before
        assert np.all(np.any(gradient[:, row - 5 : row + 1], axis=(1, 2, 3)))
    assert not np.any(np.delete(dq, row, axis=1))
    # Over the heads: a row of sparsemax that rests on one key is flat there.
    assert np.all(np.any(dq[:, row], axis=(1, 2)))


def test_whole_rows_are_causal_in_blocks_too():
    """The Jacobian of a sum over each block's rows, by perturbing one key: only later rows move."""
    made = make_method("rerope+infoscale", train_length=TRAIN_LENGTH)
    q, k, v, _ = problem()
    function = jax.jit(
        functools.partial(
            attend, method=made, causal=True, implementation="blockwise", block_size=20
        ),
        compiler_options=QUICK,
    )
    moved_k, moved_v = k.copy(), v.copy()
    moved_k[:, 33] += 1
    moved_v[:, 33] += 1
    change = np.any(np.asarray(function(q, k, v) != function(q, moved_k, moved_v)), axis=(0, 2, 3))
    np.testing.assert_array_equal(change, np.arange(KEYS) >= 33)


# 10. What promises to stay within the training length rotates by no more.

WITHIN = [
    (method, length)
    for method in (
        "rerope", "leaky_rerope", "self_extend", "lm_infinite", "streaming_llm", "dual_chunk", "pi",
    )
    for length in (2, 5, 64)
    if (method, length) != ("streaming_llm", 2)  # which its four sinks exceed by themselves
]  # fmt: skip


def furthest_turn(made, length: int, traced: bool) -> float:
    """The longest distance, in tokens, by which a document's visible keys are rotated."""
    far = np.arange(max(0, length - 3), length)
    queries = np.unique(np.concatenate([far, np.linspace(0, length - 1, 60).astype(int)]))
    places = Places(jnp.asarray(queries)[None], jnp.arange(length)[None])
    if traced:
        places = places._replace(kv_lengths=jnp.full((1, length), length))
    places = located(places)
    mask = visible(made, places, True)
    rows = rows_at(
        made, places, mask.sum(-1, keepdims=True), causal=True, length=length, num_heads=1,
        head_dim=4,
    )  # fmt: skip
    turned = jnp.zeros((), jnp.int32)
    for piece in made.position.pieces(rows):
        # The slower of two pairs: a radian in 10^4 tokens, so that no angle goes round.
        q, k = (
            jnp.zeros((1, 1, 1), jnp.uint32) if x is None else x[:, :, 1:]
            for x in (piece.q_phase, piece.k_phase)
        )
        here = (q - k.swapaxes(1, 2)).astype(jnp.int32)[:, None]
        turned = here if piece.where is None else jnp.where(piece.where, here, turned)
    angle = np.abs(np.asarray(turned)[np.broadcast_to(mask, turned.shape)]).max()
    return angle * 2 * np.pi / 2**32 * 1e4


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
@pytest.mark.parametrize(("method", "train_length"), WITHIN)
def test_rotations_stay_within_the_training_length(method, train_length, traced):
    made = make_method(method, train_length=train_length, base=1e8)
    near, far = (
        furthest_turn(made, length, traced)
        for length in (-(-65 * train_length // 64), 64 * train_length)
    )
    assert max(near, far) <= train_length + 1e-3
    # And they make use of it: what is never turned by half of L was not meant.
    assert far > train_length / 2 - 1


SUITED = [
    name
    for name in SURFACE
    if not unsuited_axes(*(make_method(x, train_length=64) for x in (name, "softmax")))
]


@pytest.mark.parametrize("method", SUITED)
def test_the_catalogue_says_which_reach_any_length(method):
    """Of what suits any weights: no visible key turns the slowest pair further than in training."""
    made = make_method(method, train_length=64, base=1e8)
    furthest = furthest_turn(made, 4096, False)
    assert CATALOGUE[method].unlimited == (furthest <= 64 * 1.0001)


def test_plain_rotations_do_not():
    made = make_method("softmax", train_length=64, base=1e8)
    np.testing.assert_allclose(furthest_turn(made, 4096, False), 4095, rtol=1e-4)
