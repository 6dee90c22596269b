"""Methods inside Flax's own attention layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import flax_attention_fn, init_params, make_method
from lenext.models.attention import Attention, Context
from tests.attention.common import QUICK, unchecked_types
from tests.attention.reference import reference_attend

BATCH, LENGTH, WIDTH, HEADS, DIM = 2, 9, 12, 4, 8
TRAIN_LENGTH = 4
NOPE = make_method("nope", train_length=TRAIN_LENGTH)
RNG = np.random.default_rng(7)
X = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
VALID = np.arange(LENGTH) < np.array([[LENGTH], [6]])  # padding on the right
COTANGENT = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
PADDING = nnx.make_attention_mask(jnp.ones((BATCH, 1)), jnp.asarray(VALID))
CAUSAL = nnx.make_causal_mask(jnp.ones((BATCH, LENGTH)))


def layer(attention_fn=None, **options):
    """A layer of weights that depend on nothing but the options."""
    if attention_fn is not None:
        options["attention_fn"] = attention_fn
    options = {"decode": False} | options
    return nnx.MultiHeadAttention(
        HEADS, WIDTH, HEADS * DIM, num_kv_heads=2, rngs=nnx.Rngs(3), **options
    )


def value_and_gradients(module, apply):
    """`apply(module, x)` at X, and a cotangent pulled back to the module's weights and x."""
    graphdef, state = nnx.split(module)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(state, x):
        out, pull = jax.vjp(lambda state, x: apply(nnx.merge(graphdef, state), x), state, x)
        return out, *pull(jnp.asarray(COTANGENT))

    return jax.tree.leaves(both(state, X))


def assert_agree(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert max(float(jnp.abs(x).max()) for x in ours[1:]) > 0.1


@pytest.mark.parametrize(
    ("options", "ours", "theirs"),
    [
        ({}, {}, {}),
        ({}, {"mask": PADDING}, {"mask": PADDING}),
        ({"causal": True}, {"mask": PADDING}, {"mask": nnx.combine_masks(PADDING, CAUSAL)}),
        ({}, {"is_causal": True}, {"mask": CAUSAL}),
        ({}, {"mask": PADDING[:1]}, {"mask": PADDING[:1]}),
    ],
    ids=["plain", "padding", "causal and padding", "the layer's is_causal", "a mask for all"],
)
def test_without_positions_it_is_flax_s_own(options, ours, theirs):
    function = flax_attention_fn(NOPE, **options)
    assert_agree(
        value_and_gradients(layer(function), lambda module, x: module(x, **ours)),
        value_and_gradients(layer(), lambda module, x: module(x, **theirs)),
    )


@pytest.mark.parametrize(("causal", "implementation"), [(False, "naive"), (True, "blockwise")])
def test_as_our_own_layer_between_the_same_projections(causal, implementation):
    method = make_method("rerope(window=3)+infoscale", train_length=TRAIN_LENGTH)
    function = flax_attention_fn(method, causal=causal, implementation=implementation, block_size=4)
    attention = Attention(
        method, hidden_size=HEADS * DIM, num_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM,
        causal=causal,
    )  # fmt: skip

    def by_our_layer(module, x):
        q, k, v = module.query(x), module.key(x), module.value(x)
        return module.out(attention(q, k, v, x, Context(mask=jnp.asarray(VALID)))[0])

    assert_agree(
        value_and_gradients(layer(function), lambda module, x: module(x, mask=PADDING)),
        value_and_gradients(layer(), by_our_layer),
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_number_of_batch_axes(batch):
    q, k, v = (RNG.normal(size=(*batch, 5, n, 8)).astype(np.float32) for n in (4, 2, 2))
    valid = RNG.random((*batch, 5)) < 0.7
    valid[..., 0] = True
    name = "yarn(scale=3)+ssmax"  # without a scale it would follow what each mask shows
    method = make_method(name, train_length=TRAIN_LENGTH)
    params = {"temperature": {"slope": jnp.asarray([0.5, 1.0, 1.5, 2.0])}}
    out = flax_attention_fn(method, causal=True, params=params)(
        q, k, v, mask=jnp.asarray(valid[..., None, None, :])
    )
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    expected = reference_attend(
        flat_q, flat_k, flat_v, name, TRAIN_LENGTH,
        causal=True, kv_mask=valid.reshape(-1, 5), params=params,
    )  # fmt: skip
    np.testing.assert_allclose(out, expected.reshape(*batch, 5, 4, 8), atol=3e-5)


class TestDecoding:
    """One token at a time over the layer's cache, whose capacity is more than is used."""

    CAPACITY = 12

    def decoded(self, function, **masks):
        module = layer(function, decode=True)
        module.init_cache((BATCH, self.CAPACITY, WIDTH))
        graphdef, state = nnx.split(module)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def step(state, x):
            module = nnx.merge(graphdef, state)
            out = module(x, **masks)
            return out, nnx.state(module)

        outs = []
        for i in range(LENGTH):
            out, state = step(state, X[:, i : i + 1])
            outs.append(out)
        return np.concatenate(outs, axis=1)

    @pytest.mark.parametrize(
        "name",
        ["rerope(window=3)+log_length", "alibi+mistral3", "pi(scale=2)+lssar", "streaming_llm"],
    )
    def test_gives_what_the_whole_gives(self, name):
        method = make_method(name, train_length=TRAIN_LENGTH)
        function = flax_attention_fn(method, causal=True)
        whole = layer(function)(X)
        np.testing.assert_allclose(self.decoded(function), whole, atol=2e-5)
        # So it does where only the cache hides what is to come.
        np.testing.assert_allclose(self.decoded(flax_attention_fn(method)), whole, atol=2e-5)

    @pytest.mark.parametrize("name", ["pi", "yarn+infoscale", "dynamic_ntk", "longrope", "llama3"])
    def test_what_follows_the_length_counts_what_the_mask_shows(self, name):
        """The last token's row is that of the whole text, whatever the cache's capacity."""
        function = flax_attention_fn(make_method(name, train_length=TRAIN_LENGTH), causal=True)
        whole = layer(function)(X)
        np.testing.assert_allclose(self.decoded(function)[:, -1], whole[:, -1], atol=2e-5)

    def test_with_padding_on_the_left(self):
        method = make_method("rerope(window=3)+log_length", train_length=TRAIN_LENGTH)
        function = flax_attention_fn(method, causal=True)
        valid = np.arange(self.CAPACITY) >= np.array([[0], [2]])
        mask = jnp.asarray(valid[:, None, None, :])
        whole = layer(function)(X, mask=mask[..., :LENGTH])
        np.testing.assert_allclose(self.decoded(function, mask=mask), whole, atol=2e-5)


def test_gradients_reach_given_params():
    method = make_method("ssmax", train_length=TRAIN_LENGTH)

    def loss(params):
        return jnp.sum(layer(flax_attention_fn(method, params=params))(X) * COTANGENT)

    grads = jax.grad(loss)(init_params(method, HEADS, DIM))
    assert jnp.all(jnp.abs(grads["temperature"]["slope"]) > 1e-3)


def test_dtypes():
    q, k, v = (RNG.normal(size=(1, 5, 2, 8)).astype(np.float32) for _ in range(3))
    function = flax_attention_fn(NOPE)
    assert function(q, k, v).dtype == jnp.float32
    assert function(q, k, v, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    half = jnp.asarray(q, jnp.bfloat16)
    assert function(half, half, half).dtype == jnp.bfloat16
    assert function(half, k, v).dtype == jnp.float32
    cast = function(q, k, v, promote_dtype=nnx.nn.dtypes.promote_dtype, dtype=jnp.bfloat16)
    assert cast.dtype == jnp.bfloat16
    assert layer(function, dtype=jnp.bfloat16)(X).dtype == jnp.bfloat16


class TestRefusals:
    def assert_refused(self, says, **call):
        with unchecked_types(), pytest.raises(ValueError, match=says) as caught:
            layer(flax_attention_fn(NOPE, causal=True), dropout_rate=0.1)(
                X, **{"deterministic": True} | call
            )
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "mask",
        [
            CAUSAL,
            nnx.make_attention_mask(jnp.asarray(VALID), jnp.asarray(VALID)),
            PADDING[0],
            PADDING[..., :5],
            jnp.ones((BATCH, HEADS, 1, LENGTH)),
            jnp.ones((3, 1, 1, LENGTH)),
        ],
        ids=["causal", "pairs", "no batch", "too short", "by head", "another batch"],
    )
    def test_masks(self, mask):
        self.assert_refused(r"mask \(.*\): should be \(2, 1, 1, 9\).*causal=True", mask=mask)

    def test_dropout_on_weights(self):
        self.assert_refused(r"dropout_rate=0.1: should be 0", deterministic=False, rngs=nnx.Rngs(0))

    def test_weights_to_be_sown(self):
        self.assert_refused("sow_weights=True: should be False", sow_weights=True)

    def test_other_numbers_of_queries(self):
        self.assert_refused("9 queries on 5 keys: should be as many, or one", inputs_k=X[:, :5])
        self.assert_refused("9 queries on 11 keys", inputs_k=np.concatenate([X, X[:, :2]], axis=1))

    def test_bias(self):
        q = jnp.ones((1, 3, 2, 8))
        with pytest.raises(ValueError, match="bias: should be None"):
            flax_attention_fn(NOPE)(q, q, q, bias=jnp.zeros((1, 2, 3, 3)))
