"""Models whose heads have several methods: learned parts, swaps, gradients, meshes and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import init_params, make_method
from lenext.config import read_methods
from lenext.errors import UserError
from lenext.models import named_parameters, with_method
from lenext.models.attention import Attention, Context
from lenext.parallel.meshes import MESH_AXES
from tests.models.test_decoder import build, tokens_of

LEARNED = "layers.{}.self_attention.attention.learned.{}"


def test_learned_parts_belong_to_their_heads():
    model = build("ssmax*1/kerple_log*3|softmax_sink", num_layers=2)
    learned = {name: x for name, x in named_parameters(model).items() if ".learned." in name}
    assert {name: x.shape for name, x in learned.items()} == {
        LEARNED.format(0, "heads0.temperature.slope"): (1,),
        LEARNED.format(0, "heads1.position.log_p"): (3,),
        LEARNED.format(0, "heads1.position.log_a"): (3,),
        LEARNED.format(1, "weighting.sink"): (4,),
    }

    def loss(model):
        return jnp.sum(model(tokens_of(2, 20)) ** 2)

    for path, gradient in nnx.to_flat_state(nnx.grad(loss)(model)):
        if "learned" in path:
            assert np.all(gradient[...] != 0), path


def test_a_share_s_parts_stay_with_what_it_keeps():
    model = build("ssmax/kerple_log", num_layers=1)
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        if "learned" in path:
            parameter[...] = parameter[...] + 0.5
    before = named_parameters(model)

    def parts(text):
        return named_parameters(with_method(model, read_methods(text, 8, model.methods)))

    name = LEARNED.format(0, "heads1.position.log_p")
    slope = LEARNED.format(0, "heads0.temperature.slope")
    kept = parts("trained+sparsemax")  # another weighting: all that is learned stays
    np.testing.assert_array_equal(kept[name], before[name])
    np.testing.assert_array_equal(kept[slope], before[slope])
    swapped = parts("trained+infoscale/trained")  # another temperature for the first
    np.testing.assert_array_equal(swapped[name], before[name])
    assert slope not in swapped
    start = init_params(make_method("ssmax", train_length=8), 4, 8)["temperature"]["slope"]
    whole = parts("ssmax")  # one for all heads
    np.testing.assert_array_equal(whole[LEARNED.format(0, "temperature.slope")], start)


def test_weights_under_one_method_in_shares_are_the_same_model():
    model, tokens = build("rerope(window=4)"), tokens_of(2, 20)
    shared = with_method(model, read_methods("rerope(window=4)/rerope(window=4)*3", 8))
    np.testing.assert_allclose(shared(tokens), model(tokens), atol=1e-4)
    moved = with_method(model, read_methods("softmax*1/rerope(window=4)*3", 8))
    assert np.max(np.abs(moved(tokens) - model(tokens))) > 1e-2


@pytest.mark.parametrize(("name", "fits"), [("alibi*1/nope*3", False), ("alibi/nope", True)])
def test_devices_take_their_part_of_each_share(name, fits):
    layer = Attention(
        make_method(name, train_length=8), hidden_size=8, num_heads=4, num_kv_heads=4, head_dim=8,
        causal=True,
    )  # fmt: skip
    q, x = jnp.zeros((1, 6, 4, 8)), jnp.zeros((1, 6, 8))
    mesh = jax.sharding.AbstractMesh((1, 1, 1, 2), MESH_AXES)

    def traced():
        with jax.sharding.use_abstract_mesh(mesh):
            jax.eval_shape(lambda q: layer(q, q, q, x, Context())[0], q)

    if fits:
        return traced()
    with pytest.raises(UserError, match=r"config\.mesh\.tensor=2 should divide .*: 1, 3"):
        traced()


@pytest.mark.parametrize(
    ("text", "heads", "message"),
    [
        ("alibi/nope", 1, r"1 heads cannot be shared as 1 and 1: should be a multiple of 2$"),
        ("softmax|alibi*1/nope*4", 4, "should be a multiple of 5, or shares such as 1 and 3"),
    ],
)
def test_shares_that_a_config_s_heads_do_not_go_into(text, heads, message):
    with pytest.raises(UserError, match=message):
        read_methods(text, 8, num_heads=heads)


def test_calibration_wants_one_method_for_all_heads():
    model = build("alibi/entropy_matched", num_layers=1)
    with pytest.raises(ValueError, match="with a method for all heads"):
        model.layers.attention.set_learned(0, "temperature", "slopes", 1.0)
