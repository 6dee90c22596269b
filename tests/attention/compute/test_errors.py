"""Wrong arguments of the public functions: a ValueError of one line each, never a guess."""

import jax.numpy as jnp
import numpy as np
import pytest

from lenext.attention import attend, attention_weights, init_params, make_method, row_statistics
from tests.attention.common import HEADS, inputs, unchecked_types

METHOD = make_method("softmax", train_length=8)
SSMAX = make_method("ssmax", train_length=8)


@pytest.fixture(autouse=True)
def as_users_call():
    with unchecked_types():
        yield


def arguments(queries: int = 9, keys: int = 9):
    return inputs(seed=41, batch=2, queries=queries, keys=keys)


def assert_refused(function, *args, says: str, **kwargs) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


q, k, v = arguments()
ids = np.zeros((2, 9), np.int32)


@pytest.mark.parametrize("name", ["dual_chunk", "stick_breaking+infoscale"])
def test_causality(name):
    made = make_method(name, train_length=8)
    for function, arrays in ((attend, (q, k, v)), (attention_weights, (q, k))):
        assert_refused(function, *arrays, made, says=f"{name.split('+')[0]}.*causal=True only")
        function(*arrays, made, causal=True)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"q": q[0]}, r"q .*\[B, T, N, H\]"),
        ({"k": k[0]}, r"\[B, S, K"),
        ({"q": q[:1]}, "q"),
        ({"q": q[..., :8]}, "q"),
        ({"k": k[..., :8]}, "k"),
        ({"q": q[:, :, :3]}, "3 query heads.*multiple of 2"),
        ({"v": v[:, :8]}, "v"),
        ({"v": v[:1]}, "v"),
        ({"v": v[:, :, :1]}, "v"),
        ({"v": v[0]}, "v"),
    ],
    ids=range(10),
)
def test_shapes(changed, says):
    arrays = {"q": q, "k": k, "v": v} | changed
    assert_refused(attend, *arrays.values(), METHOD, says=says)
    if "v" not in changed:
        assert_refused(attention_weights, arrays["q"], arrays["k"], METHOD, says=says)
        assert_refused(row_statistics, arrays["q"], arrays["k"], METHOD, says=says)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_whole_numbers_are_refused(which):
    """Outputs of q's type would be cut off."""
    arrays = {"q": q, "k": k, "v": v}
    arrays[which] = arrays[which].astype(np.int32)
    says = f"^{which} is int32: should be floating"
    assert_refused(attend, *arrays.values(), METHOD, says=says)
    if which != "v":
        assert_refused(attention_weights, arrays["q"], arrays["k"], METHOD, says=says)
        assert_refused(row_statistics, arrays["q"], arrays["k"], METHOD, says=says)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"q_segment_ids": ids}, "q_segment_ids and kv_segment_ids"),
        ({"kv_segment_ids": ids}, "q_segment_ids and kv_segment_ids"),
        ({"q_positions": np.arange(9.0)}, "q_positions.*float"),
        ({"kv_positions": np.arange(9.0)}, "kv_positions.*float"),
        ({"q_positions": np.ones((2, 9), bool)}, "q_positions.*bool"),
        ({"q_positions": np.arange(8)}, "q_positions"),
        ({"kv_positions": np.zeros((3, 9), int)}, "kv_positions"),
        ({"kv_positions": np.zeros((2, 9, 1), int)}, "kv_positions"),
        ({"kv_mask": np.ones((2, 8), bool)}, "kv_mask"),
        ({"kv_mask": np.ones((2, 9), int)}, "kv_mask.*int"),
        ({"kv_mask": np.ones((2, 9), np.float32)}, "kv_mask.*float"),
        ({"kv_mask": np.ones((2, 9, 9), bool)}, "kv_mask"),
        ({"q_segment_ids": ids, "kv_segment_ids": ids[:, :8]}, "kv_segment_ids"),
        ({"q_segment_ids": ids.astype("f4"), "kv_segment_ids": ids}, "q_segment_ids.*float"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_places(places, says):
    assert_refused(attend, q, k, v, METHOD, says=says, **places)
    assert_refused(attention_weights, q, k, METHOD, says=says, **places)
    assert_refused(row_statistics, q, k, METHOD, says=says, **places)


def test_more_queries_than_keys_need_positions():
    """Nobody can know where they stand; once said, all is well."""
    q, k, v = arguments(queries=9, keys=5)
    assert_refused(attend, q, k, v, METHOD, says="9 queries.*5 keys.*q_positions")
    assert_refused(attend, q, k, v, METHOD, kv_positions=np.arange(5), says="q_positions")
    out = attend(q, k, v, METHOD, q_positions=np.arange(9))
    assert out.shape == (2, 9, HEADS, 6)


@pytest.mark.parametrize(
    "params",
    [
        {"slope": jnp.ones(HEADS)},
        {"temperature": {"slopes": jnp.ones(HEADS)}},
        {"temperature": {"slope": jnp.ones(HEADS), "other": jnp.ones(HEADS)}},
        {},
        [],
        jnp.ones(HEADS),
        {"temperature": {"slope": jnp.ones(HEADS - 1)}},
        {"temperature": {"slope": jnp.ones(1)}},
        {"temperature": {"slope": jnp.ones((HEADS, 1))}},
        {"temperature": {"slope": 1.0}},
    ],
    ids=[
        "no axis",
        "wrong name",
        "more",
        "none",
        "list",
        "array",
        "few",
        "one",
        "matrix",
        "number",
    ],
)
def test_params_of_another_form(params):
    """One value for four heads would even broadcast, and be wrong in silence."""
    assert_refused(attend, q, k, v, SSMAX, params=params, says="params")
    assert_refused(attention_weights, q, k, SSMAX, params=params, says="params")


def test_params_where_nothing_is_learned():
    params = init_params(SSMAX, HEADS, 16)
    assert_refused(attend, q, k, v, METHOD, params=params, says="params")
    assert attend(q, k, v, METHOD, params={}).shape == (2, 9, HEADS, 6)


@pytest.mark.parametrize("block_size", [0, -1])
def test_block_size(block_size):
    assert_refused(
        attend, q, k, v, METHOD,
        implementation="blockwise", block_size=block_size, says=f"block_size.*{block_size}",
    )  # fmt: skip
    assert_refused(row_statistics, q, k, METHOD, block_size=block_size, says="block_size")


@pytest.mark.parametrize("implementation", ["", "Naive", "cudnn", None])
def test_implementation(implementation):
    says = "implementation.*auto.*naive.*blockwise"
    assert_refused(attend, q, k, v, METHOD, implementation=implementation, says=says)


def test_a_name_is_no_method():
    assert_refused(attend, q, k, v, "softmax", says="softmax.*make_method")
    assert_refused(attention_weights, q, k, None, says="make_method")


def test_rotation_needs_pairs():
    """An odd head size is refused, unless nothing is rotated."""
    odd_q, odd_k = q[..., :5], k[..., :5]
    assert_refused(attend, odd_q, odd_k, v, METHOD, says="5 is odd")
    for name, options in [("nope", {}), ("alibi", {}), ("softmax", {"position": "none"})]:
        made = make_method(name, train_length=8, **options)
        assert attend(odd_q, odd_k, v, made).shape == (2, 9, HEADS, 6)
