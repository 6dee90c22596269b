"""Methods of shares of the heads: each is computed as if its heads were all there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import (
    Gates,
    HeadMethods,
    attend,
    attention_weights,
    choose_implementation,
    init_params,
    make_method,
    make_pattern,
    method_options,
    row_statistics,
    unsuited_axes,
)
from lenext.attention.axes.bias import alibi_slopes
from lenext.attention.compute.attend import key_heads
from tests.attention.common import DIM, HEADS, QUICK, TRAIN_LENGTH, everywhere, inputs
from tests.attention.reference import reference_attend, reference_weights
from tests.attention.stand_ins import gates_for

LENGTH = 29
PACK = everywhere(2, LENGTH, LENGTH)
PACK["kv_mask"][1, :4] = False
PACK["kv_segment_ids"][:, 13:] = PACK["q_segment_ids"][:, 13:] = 3
PACK["length"] = np.where(PACK["kv_segment_ids"] == 3, 16, 13)


def made(name):
    return make_method(name, train_length=TRAIN_LENGTH)


@pytest.mark.parametrize(
    "name", ["alibi/nope+log_length", "lssar*1/rerope*3", "alibi*3/windowed*1"]
)
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_heads_give_what_the_reference_gives_of_each_share(name, implementation):
    """N = 4 on K = 2: a share that ends within a group of query heads reads its key heads too."""
    q, k, v = inputs(1, 2, LENGTH, LENGTH)
    out = attend(q, k, v, made(name), causal=True, implementation=implementation, block_size=16)
    first, second = (part.split("*") for part in name.split("/"))
    border = 4 * int(first[1]) // 4 if len(first) > 1 else 2
    k, v = (np.repeat(x, 2, axis=2) for x in (k, v))
    for (method, *_), span in ((first, slice(0, border)), (second, slice(border, 4))):
        expected = reference_attend(
            q[:, :, span], k[:, :, span], v[:, :, span], method, TRAIN_LENGTH, causal=True
        )
        np.testing.assert_allclose(out[:, :, span], expected, atol=3e-4)


def test_each_share_counts_its_own_heads():
    """ALiBi's slopes: of four heads 2^-2 … 2^-8, of a share of two 2^-4 and 2^-8."""
    zeros = np.zeros((1, 3, 4, 8), np.float32)
    weights = attention_weights(zeros, zeros, made("nope/alibi"), causal=True)
    np.testing.assert_allclose(weights[0, :2, 2], np.full((2, 3), 1 / 3), rtol=1e-6)
    logs = np.log(np.asarray(weights[0, 2:, 2]))
    np.testing.assert_allclose(logs[:, 2] - logs[:, 1], [2**-4, 2**-8], rtol=1e-4)
    np.testing.assert_array_equal(alibi_slopes(2), [2**-4, 2**-8])


def test_harmonic_slopes():
    """NAPE's: 1, 1/2, 1/3."""
    zeros = np.zeros((1, 2, 3, 8), np.float32)
    weights = attention_weights(zeros, zeros, made("alibi(slopes='harmonic')"), causal=True)
    near, far = np.asarray(weights[0, :, 1, 1]), np.asarray(weights[0, :, 1, 0])
    np.testing.assert_allclose(np.log(near / far), [1, 1 / 2, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "group", "read"),
    [
        ((0, 2), 2, [0]), ((2, 4), 2, [1]), ((0, 1), 2, [0]), ((1, 4), 2, [0, 1, 1]),
        ((0, 3), 2, [0, 0, 1]), ((0, 4), 2, [0, 1]), ((1, 3), 2, [0, 1]), ((2, 4), 1, [2, 3]),
        ((1, 3), 4, [0]), ((4, 12), 4, [1, 2]), ((2, 6), 4, [0, 1]),
    ],
)  # fmt: skip
def test_key_heads_of_a_share(heads, group, read):
    """Query head h of the share, of N heads on K of them, reads the one at h // (N / K)."""
    span = slice(*heads)
    assert key_heads(span, group) == read
    count = span.stop - span.start
    by_head = [read[h // (count // len(read))] for h in range(count)]
    assert by_head == [head // group for head in range(*heads)]


NAME = "ssmax+yarn/forgetting+softmax_sink*2/asentmax"


@functools.partial(jax.jit, static_argnames=("method", "implementation"), compiler_options=QUICK)
def solved(q, k, v, params, *, method, implementation):
    """Outputs in a pack, and the gradient of their squares."""

    def loss(q, k, v, params):
        gates = None
        if isinstance(method, HeadMethods):
            shares = method.of_heads(q.shape[2])
            read = {share: jnp.array(key_heads(span, 2)) for share, (_, span) in shares.items()}
            of_share = {
                share: gates_for(own, q[:, :, span], k[:, :, read[share]], PACK["kv_mask"])
                for share, (own, span) in shares.items()
            }
            gates = {share: own for share, own in of_share.items() if own is not None}
        out = attend(
            q, k, v, method, causal=True, params=params, gates=joined(gates),
            implementation=implementation, block_size=16, **PACK,
        )  # fmt: skip
        return jnp.sum(out**2), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(q, k, v, params)
    return out, grads


def joined(gates):
    """Gates of shares as those of methods of heads."""
    return Gates(*({share: own[side] for share, own in gates.items()} for side in (0, 1)))


def test_blocks_learned_parts_and_gates():
    method = made(NAME)
    q, k, v = inputs(2, 2, LENGTH, LENGTH)
    params = init_params(method, HEADS, DIM)
    assert params["heads1"]["weighting"]["sink"].shape == (2,)
    assert params["heads0"]["temperature"]["slope"].shape == (1,)
    ours, theirs = (
        solved(q, k, v, params, method=method, implementation=way) for way in ("naive", "blockwise")
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=6e-5 * np.max(np.abs(b)) + 1e-6)
    for gradient in jax.tree.leaves(ours[1][3]):
        assert np.all(gradient != 0)


def test_looks_at_rows_have_all_heads():
    q, k, _ = inputs(3, 2, LENGTH, LENGTH)
    method = made("lssa/infoscale")
    weights = attention_weights(q, k, method, causal=True)
    expected = reference_weights(q[:, :, 2:], k[:, :, 1:], "infoscale", TRAIN_LENGTH, causal=True)
    np.testing.assert_allclose(weights[:, 2:], expected, atol=1e-5)
    entropy = row_statistics(q, k, method, causal=True).entropy
    assert entropy.shape == (2, HEADS, LENGTH)
    seen = np.where(np.asarray(weights) > 0, weights, 1.0)
    np.testing.assert_allclose(entropy, -np.sum(weights * np.log(seen), axis=-1), atol=1e-4)


def test_what_a_method_says_of_itself():
    both = made("alibi/pi")
    assert isinstance(both, HeadMethods)
    assert both == make_pattern("softmax|alibi*2/pi*2", train_length=TRAIN_LENGTH)[1]
    assert both != made("alibi*1/pi*2")
    assert both.follows_length
    assert not made("alibi/nope").follows_length
    assert made("nope/forgetting").causal_only
    assert unsuited_axes(both, made("softmax")) == ["position"]
    assert unsuited_axes(both, made("alibi/softmax")) == []
    assert unsuited_axes(both, made("softmax/alibi")) == ["position"]
    assert made("softmax*3") == made("softmax")


def test_trained_is_what_each_share_was_trained_with():
    trained = made("alibi*1/yarn(scale=4)*3")

    def swapped(name):
        return make_method(name, train_length=TRAIN_LENGTH, trained=trained)

    assert swapped("trained") == trained
    both = swapped("trained+infoscale")
    assert both == made("alibi+infoscale*1/yarn(scale=4)+infoscale*3")
    assert swapped("trained+log_length*1/trained*3").methods[1] == trained.methods[1]
    # What is of the weights stays, as with one method: here the pairs' speeds.
    rerope = make_method("yarn(scale=4)+rerope", train_length=TRAIN_LENGTH)
    assert swapped("rerope").methods == (made("rerope"), rerope)
    assert swapped("nope+lssa") == made("nope+lssa")  # what takes nothing of a share is one for all
    with pytest.raises(ValueError, match=r"should be one for all of them, or …\*1/…\*3"):
        swapped("trained/softmax")


@pytest.mark.parametrize(
    ("name", "heads", "message"),
    [
        ("alibi/nope", 3, "3 heads cannot be shared as 1 and 1: should be a multiple of 2, or "
         "shares such as 2 and 1"),
        ("alibi*1/nope*3", 6, "should be a multiple of 4, or shares such as 2 and 4"),
        ("alibi/nope", 1, "1 heads cannot be shared as 1 and 1: should be a multiple of 2$"),
    ],
)  # fmt: skip
def test_heads_that_do_not_go_into_shares(name, heads, message):
    q = np.zeros((1, 3, heads, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        attend(q, q, q, made(name))


def test_what_is_asked_of_one_method_is_refused():
    q, k, v = inputs(4, 1, 5, 5)
    with pytest.raises(ValueError, match="is several, to be asked for by one: alibi, nope"):
        choose_implementation(q, k, v, made("alibi/nope"))
    with pytest.raises(ValueError, match="should be one method, not several of heads by /"):
        method_options("alibi/nope")
    with pytest.raises(ValueError, match="options should stand in its parts' brackets"):
        make_method("windowed/nope", train_length=8, window=3)
    with pytest.raises(ValueError, match="as init_params gives"):
        attend(q, k, v, made("ssmax/nope"), params={"heads0": {}, "heads1": {}})
    with pytest.raises(ValueError, match=r"q \(5, 4, 16\), k .*: should be"):
        attend(q[0], k, v, made("alibi/nope"))
