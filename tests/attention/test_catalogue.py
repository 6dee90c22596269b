"""Names, options and composition: the strings that configs and command lines hold."""

import copy
import dataclasses
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from lenext.attention import (
    init_params,
    make_method,
    method_names,
    method_options,
    register,
    unsuited_axes,
)
from lenext.attention.catalogue import CATALOGUE
from tests.attention.common import (
    DIM,
    HEADS,
    SURFACE,
    TRAIN_LENGTH,
    inputs,
    known_to_reference,
    quick_attend,
    unchecked_types,
    ways,
)
from tests.attention.reference import METHODS, reference_attend

AXES = ("position", "similarity", "temperature", "weighting", "visibility")


def make(name: str, **options):
    return make_method(name, train_length=64, **options)


def test_names():
    """The catalogue may grow, by names of one's own too, but lose nothing."""
    assert set(SURFACE) <= set(method_names())
    for name in method_names():
        assert make(name).train_length == 64


def test_every_name_has_a_reference():
    """A name of one's own may do without: the tests against the reference then skip it."""
    assert set(SURFACE) <= set(METHODS)


@pytest.mark.parametrize("name", method_names())
def test_methods_are_values(name):
    """Equal arguments, equal and equally hashed methods: jit compiles once for both."""
    one, two = make(name), make(name)
    assert one == two
    assert hash(one) == hash(two)
    assert one is not two
    assert {one: 1}[two] == 1
    assert make_method(name, train_length=65) != one
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.train_length = 3


def test_no_two_names_are_one_method():
    assert len({make(name) for name in method_names()}) == len(method_names())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rerope_log", "rerope+log_length"),
        ("rerope_log", "log_length+rerope"),
        ("infoscale_cosscale", "cosscale+infoscale"),
        ("infoscale_cosscale", "infoscale+cosscale"),
        ("softmax+yarn", "yarn"),
        ("yarn+softmax", "yarn"),
        ("infoscale+log_length", "log_length"),
        ("rerope + infoscale", "rerope+infoscale"),
        ("alibi+rerope", "rerope"),
        ("rerope+alibi", "alibi"),
        ("lm_infinite+windowed", "rerope+windowed"),
        ("infoscale+lssa", "lssa"),
        ("infoscale()", "infoscale"),
    ],
)
def test_composition(one, other):
    assert make(one) == make(other)
    assert hash(make(one)) == hash(make(other))


def test_order_matters_where_parts_share_an_axis():
    assert make("lssa+infoscale") != make("infoscale+lssa")
    assert make("lssa+infoscale").weighting == make("lssa").weighting
    assert make("lssa+infoscale").temperature == make("infoscale").temperature


def test_axis_keywords():
    """An axis by keyword is that axis of the named entry, whole."""
    plus = make("rerope+infoscale", window=16)
    assert make("rerope", temperature="infoscale", window=16) == plus
    assert make("softmax", position="rerope", temperature="infoscale", window=16) == plus
    assert make("lssa", temperature="softmax").temperature == make("softmax").temperature
    assert make("softmax", weighting="lssar", power=3).weighting == make("lssar", power=3).weighting
    assert make("infoscale", similarity="cosscale") == make("infoscale_cosscale")
    assert make("rerope", visibility="lm_infinite") == make("lm_infinite")


def test_options_reach_every_part():
    """lm_infinite has a window on two axes; a shared option goes to all parts of a composition."""
    made = make("lm_infinite", window=16)
    assert made.position == make("rerope", window=16).position
    assert made.visibility != make("lm_infinite").visibility
    assert make("rerope+windowed", window=16).visibility == make("windowed", window=16).visibility
    assert make("rerope+windowed", window=16).position == made.position
    both = make("yarn+infoscale", scale=4.0, clamp=False)
    assert both.position == make("yarn", scale=4.0).position
    assert both.temperature == make("infoscale", clamp=False).temperature


def test_options_in_brackets_belong_to_their_part():
    made = make("rerope(window=16)+windowed(window=32)")
    assert made.position == make("rerope", window=16).position
    assert made.visibility == make("windowed", window=32).visibility
    assert make("rerope(window=16)+infoscale") == make("rerope+infoscale", window=16)
    assert make("lssar(power=3, offset=0.5)") == make("lssar", power=3, offset=0.5)
    assert make("yarn(pairing='halves')") == make("yarn", pairing="halves")
    assert make("infoscale(clamp=False)") == make("infoscale", clamp=False)


def test_brackets_change_no_axis_that_the_part_leaves_alone():
    """InfoScale has no position of its own: its `base` must not undo the ReRoPE before it."""
    try:
        made = make("rerope+infoscale(base=500)")
    except ValueError:
        return  # refusing is as good
    assert made.position in (make("rerope").position, make("rerope", base=500).position)


def test_defaults():
    """The default window is L, said or not, and the same for numbers of either type."""
    assert make("rerope") == make("rerope", window=64)
    assert make("windowed") == make("windowed", window=64)
    assert make("lm_infinite") == make("lm_infinite", window=64, sinks=4)
    assert make("cosscale") == make("cosscale", cos_scale=128)
    assert make("lssar") == make("lssar", power=15, offset=1)
    assert make("infoscale") == make("infoscale", clamp=True)
    assert make("softmax") == make("softmax", base=10000.0, pairing="interleaved")
    assert hash(make("lssar")) == hash(make("lssar", power=15.0))


def test_options_tell_methods_apart():
    methods = [
        make("softmax"), make("softmax", base=500), make("softmax", pairing="halves"),
        make("softmax", position="none"), make("pi", scale=2), make("pi", scale=4), make("pi"),
        make("cosscale", cos_scale=16), make("infoscale", clamp=False), make("lssar", power=3),
    ]  # fmt: skip
    assert len(set(methods)) == len(methods)


def test_method_options_are_what_make_method_takes():
    for name in [*method_names(), "rerope+infoscale", "yarn(scale=2)+lssar"]:
        options = method_options(name)
        chosen = {key: value for key, value in options.items() if value is not None}
        assert make(name, **chosen) == make(name)
    assert {"window", "base", "pairing", "clamp"} <= method_options("rerope+infoscale").keys()
    assert "window" not in method_options("softmax")
    assert method_options("lssar")["power"] == 15


@pytest.mark.parametrize("name", [name for name in method_names() if name != "nope"])
def test_position_none(name):
    """Rotation is off, so neither base nor pairing matters; a bias stays."""
    known_to_reference(name)
    off = make(name, position="none")
    assert off.temperature == make(name).temperature
    if name in ("alibi", "kerple_log", "fire", "t5_bias", "stick_breaking"):
        assert off == make(name)
        return
    q, k, v = inputs(seed=21, batch=1, queries=40, keys=40)
    made = make_method(name, train_length=TRAIN_LENGTH, position="none")
    kw = {"causal": ways(name)[0], "params": init_params(made, HEADS, DIM)}
    expected = reference_attend(q, k, v, name, TRAIN_LENGTH, position="none", **kw)
    np.testing.assert_allclose(quick_attend(q, k, v, made, **kw), expected, atol=3e-4)


@pytest.mark.parametrize("name", ["softmax", "yarn", "rerope+infoscale"])
def test_halves_are_interleaved_pairs_of_permuted_dimensions(name):
    q, k, v = inputs(seed=22, batch=1, queries=40, keys=40)
    order = np.arange(DIM).reshape(2, DIM // 2).T.ravel()  # 0, 8, 1, 9, ...
    interleaved = make_method(name, train_length=TRAIN_LENGTH, pairing="interleaved")
    halves = make_method(name, train_length=TRAIN_LENGTH, pairing="halves")
    expected = quick_attend(q, k, v, halves, causal=True)
    out = quick_attend(q[..., order], k[..., order], v, interleaved, causal=True)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.max(np.abs(quick_attend(q, k, v, interleaved, causal=True) - expected)) > 1e-2


def test_init_params():
    """Deterministic; nothing where nothing is learned; parts of a composition are kept."""
    assert init_params(make("rerope+infoscale"), HEADS, DIM) == {}
    for name in ["ssmax", "alibi+ssmax", "ssmax+lm_infinite"]:
        learned = init_params(make(name), HEADS, DIM)["temperature"]["slope"]
        np.testing.assert_allclose(learned, np.full(HEADS, 1 / np.log(64)), rtol=1e-6)
    learned = init_params(make("ssa"), HEADS, DIM)["temperature"]
    np.testing.assert_array_equal(learned["beta"], [2] * HEADS)
    np.testing.assert_array_equal(learned["query"], np.zeros((HEADS, DIM)))
    learned = init_params(make("kerple_log"), HEADS, DIM)["position"]
    assert all(not np.any(x) for x in learned.values())  # logarithms of p = a = 1
    learned = init_params(make("fire"), HEADS, DIM)["position"]
    np.testing.assert_allclose(learned["c"], 0.1, rtol=1e-6)
    assert learned["threshold"] == 1
    assert learned["outer"].shape == (32, HEADS)
    again = init_params(make("fire"), HEADS, DIM)["position"]
    assert all(np.array_equal(learned[name], again[name]) for name in learned)


compositions = st.lists(st.sampled_from(SURFACE), min_size=1, max_size=4)


@hypothesis.given(compositions)
def test_a_later_part_replaces_the_axes_in_which_it_differs_from_softmax(names):
    made, softmax = make("+".join(names)), make("softmax")
    for axis in AXES:
        parts = [getattr(make(name), axis) for name in names]
        chosen = [part for part in parts if part != getattr(softmax, axis)]
        assert getattr(made, axis) == (chosen or [getattr(softmax, axis)])[-1]
    assert made == make("+".join(["softmax", *names, "softmax"]))


@hypothesis.settings(max_examples=12)
@hypothesis.given(compositions, st.booleans())
def test_any_composition_computes_what_its_axes_say(names, causal):
    q, k, v = inputs(seed=23, batch=1, queries=25, keys=25)
    method = "+".join(names)
    causal = causal or ways(method)[0]
    # Scaled by 128 and then raised to the 15th power, a rounding of the logits is no small thing.
    options = {"cos_scale": 16.0} if "cos_scale" in method_options(method) else {}
    made = make_method(method, train_length=8, **options)
    params = init_params(made, HEADS, DIM)
    out = quick_attend(q, k, v, made, causal=causal, params=params)
    expected = reference_attend(q, k, v, method, 8, causal=causal, params=params, **options)
    np.testing.assert_allclose(out, expected, atol=3e-4, rtol=3e-4)


# Mistakes: one line, which names what was wrong and what would be right.


def complaint(*args, **kwargs) -> str:
    with unchecked_types(), pytest.raises(ValueError) as caught:  # noqa: PT011
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_names_the_choices():
    for name in ["infoscales", "rerope+infoscales", "softmax+infoscales+rerope"]:
        message = complaint(name)
        assert "infoscales" in message
        assert all(choice in message for choice in SURFACE)
    message = complaint("softmax", temperature="infoscales")
    assert "infoscales" in message
    assert "ssmax" in message


def test_an_unknown_option_names_the_choices():
    message = complaint("rerope+infoscale", windows=3)
    assert all(word in message for word in ["windows", "window", "clamp", "base", "pairing"])
    assert "windows" in complaint("rerope(windows=3)")
    # An option of some other method is as unknown as any.
    for name, options in [
        ("softmax", {"window": 3}),
        ("infoscale", {"scale": 2}),
        ("lssa", {"power": 3}),
        ("alibi", {"base": 500}),
        ("windowed", {"sinks": 3}),
        ("log_length", {"all_heads": True}),
        ("cosscale", {"clamp": False}),
        ("softmax_plus", {"clamp": True}),
    ]:
        assert next(iter(options)) in complaint(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rerope", {"window": 0}),
        ("rerope", {"window": -4}),
        ("rerope", {"window": 2.5}),
        ("rerope", {"window": "64"}),
        ("rerope", {"window": True}),
        ("lm_infinite", {"sinks": -1}),
        ("pi", {"scale": 0.5}),
        ("yarn", {"scale": float("nan")}),
        ("ntk", {"scale": float("inf")}),
        ("softmax", {"base": -1}),
        ("softmax", {"base": None}),
        ("softmax", {"pairing": "thirds"}),
        ("infoscale", {"clamp": 1}),
        ("infoscale", {"clamp": "no"}),
        ("lssar", {"power": 0}),
        ("lssa", {"phi": "tanh"}),
        ("lssar", {"norm": "l2"}),
        ("relu2", {"gau": 1}),
        ("p_rope", {"fraction": 1.5}),
        ("leaky_rerope", {"leak": 0.0}),
        ("self_extend", {"group": 0}),
        ("longrope", {"factors": [1.0, 2.0]}),
        ("longrope", {"factors": (1.0, 0.0)}),
        ("longrope", {"factors": (1.0, "2")}),
        ("scale_invariant", {"tau": 0}),
        ("cosscale", {"cos_scale": "large"}),
        ("windowed", {"window": 2**31}),
        ("yarn", {"base": 1.0}),
        ("rerope(window=0)", {}),
        ("rerope(window='x')+infoscale", {}),
    ],
    ids=str,
)
def test_an_option_out_of_range_names_itself(name, options):
    message = complaint(name, **options)
    option = next(iter(options), "window")
    assert option in message
    assert "should be" in message


def test_factors_are_one_a_pair():
    made = make("longrope(factors=(1, 2.5))")
    assert made == make("longrope", factors=(1.0, 2.5))
    q, k, v = inputs(seed=24, batch=1, queries=3, keys=3)
    with pytest.raises(ValueError, match="2 factors: should be 8, one a pair"):
        quick_attend(q, k, v, made)


def test_what_follows_the_length_says_so():
    following = {name for name in method_names() if make(name).follows_length}
    scaled = {"pi", "ntk", "yarn", "llama3", "longrope", "dynamic_ntk"}
    assert following & set(SURFACE) == {*scaled, "self_extend", "leaky_rerope"}
    assert not make("self_extend", group=8).follows_length
    assert not make("leaky_rerope", leak=8).follows_length
    assert make("dual_chunk", mscale=True).follows_length
    for name in ("pi", "ntk", "yarn", "llama3", "longrope"):
        assert not make(name, scale=2).follows_length
        assert not make(name, position="none").follows_length
    assert make("dynamic_ntk", scale=2).follows_length
    assert not make("longrope", factors=(1.0, 2.0)).follows_length
    assert make("yarn+infoscale").follows_length
    assert not make("yarn+rerope").follows_length


@pytest.mark.parametrize(
    ("method", "trained", "axes"),
    [
        ("rerope+infoscale", "softmax", []),
        ("yarn", "softmax", []),
        ("adaptive", "softmax", []),
        ("lm_infinite", "softmax", []),
        ("cosscale", "softmax", ["similarity"]),
        ("soft", "softmax", ["similarity"]),
        ("cosscale", "lssa", ["weighting"]),
        ("lssa", "softmax", ["similarity", "temperature", "weighting"]),
        ("lssar", "lssa", ["weighting"]),
        ("lssa(phi='relu')", "lssa", ["weighting"]),
        ("lssa(norm='none')", "lssa", ["weighting"]),
        ("lssar(power=3)", "lssar", []),
        ("relu2(gau=True)", "relu2", ["weighting"]),
        *(
            (name, "softmax", ["weighting"])
            for name in ("sigmoid", "relu", "softmax1", "sparsemax")
        ),
        *((name, "softmax", ["temperature"]) for name in ("ssmax", "ssa")),
        *((name, "softmax", ["position"]) for name in ("alibi", "kerple_log", "fire", "nope")),
        ("softmax", "alibi", ["position"]),
        ("softmax(pairing='halves')", "softmax", ["position"]),
        ("p_rope", "softmax", ["position"]),
        ("p_rope(fraction=0.5)", "p_rope", ["position"]),
        ("scale_invariant", "p_rope", ["position"]),
        ("scale_invariant(tau=5)", "scale_invariant", []),
    ],
)
def test_unsuited_axes(method, trained, axes):
    """Where weights would have to be trained for the method, and were for another."""
    assert unsuited_axes(make(method), make(trained)) == axes


def test_an_exponential_is_normalised():
    assert "norm" in complaint("lssa", phi="exp", norm="none")
    assert "norm" in complaint("reweighted_softmax", norm="none")


def test_first_stages_by_name_and_by_option():
    assert make("lssa", phi="exp").weighting == make("lssa(phi='exp')").weighting
    assert make("reweighted_sigmoid").weighting == make("lssar", phi="sigmoid").weighting
    assert make("lssa", phi="relu").weighting.kind != make("lssa").weighting.kind


def test_a_wrong_pairing_names_the_choices():
    message = complaint("softmax", pairing="thirds")
    assert "interleaved" in message
    assert "halves" in message


@pytest.mark.parametrize("length", [1, 0, -3, 2.5, True, float("nan"), "many", None, 2**31])
def test_train_length(length):
    wanted = pytest.raises(ValueError, match=r"train_length.*at least 2")
    with unchecked_types(), wanted as caught:
        make_method("softmax", train_length=length)
    assert "\n" not in str(caught.value)
    assert make_method("softmax", train_length=2).train_length == 2


@pytest.mark.parametrize(
    "name",
    ["", "+", "rerope+", "+rerope", "rerope-infoscale", "rerope(16)", "rerope(window)", "rerope(",
     "rerope(window=16", "rerope infoscale", "rerope(window=os)", "rerope(window=1+1j)", "1",
     "rerope.x", "rerope()()", "rerope(**{})", "[x for x in y]", "rerope\n+infoscale)", None, 3],
    ids=repr,
)  # fmt: skip
def test_malformed_strings(name):
    complaint(name)


WAS = make("llama3(base=5e5,pairing='halves',scale=8)+windowed(window=7)")


class TestOfTrainedWeights:
    def test_is_what_they_were_trained_with(self):
        assert make("trained", trained=WAS) == WAS

    def test_a_part_replaces_what_it_says_and_leaves_the_rest(self):
        method = make("trained+infoscale", trained=WAS)
        scaled = make("infoscale").temperature
        assert method == dataclasses.replace(WAS, temperature=scaled)
        method = make("trained(window=9)", trained=WAS)
        assert method.visibility.window == 9
        assert method.position == WAS.position

    @pytest.mark.parametrize(
        "name", ["trained+rerope", "rerope", "yarn", "softmax", "alibi+rerope"]
    )
    def test_rotations_keep_base_and_pairing(self, name):
        position = make(name, trained=WAS).position
        assert (position.base, position.pairing) == (5e5, "halves")

    def test_unless_the_name_says_others(self):
        method = make("rerope(base=7)", trained=WAS)
        assert (method.position.base, method.position.pairing) == (7, "halves")

    def test_what_has_no_rotation_says_nothing(self):
        alibi = make("alibi")
        assert make("alibi", trained=WAS) == alibi
        assert make("rerope", trained=alibi) == make("rerope")

    def test_there_are_some(self):
        with pytest.raises(ValueError, match="there are no trained weights here"):
            make("trained")

    def test_they_may_come_last(self):
        assert make("softmax+trained", trained=WAS) == WAS
        method = make("infoscale+trained", trained=WAS)
        assert method == dataclasses.replace(WAS, temperature=make("infoscale").temperature)


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        ("rerope", CATALOGUE["yarn"], "name 'rerope': lenext has a method of that name"),
        ("trained", CATALOGUE["yarn"], "name 'trained': lenext has"),
        ("two words", CATALOGUE["yarn"], "name 'two words': should be a word"),
        ("mine", 3, "method 'mine': should be an Entry, and is int"),
    ],
)
def test_what_cannot_be_registered(name, entry, says):
    before = dict(CATALOGUE)
    with unchecked_types(), pytest.raises(ValueError, match=says):
        register(name, entry)
    assert before == CATALOGUE


def test_a_registered_name_is_as_good_as_ours():
    register("mine", CATALOGUE["yarn"])
    assert make("mine+infoscale") == make("yarn+infoscale")
    assert method_names()[-1] == "mine"
    with pytest.raises(
        ValueError, match=r"unknown method 'yarm'; did you mean 'yarn'\? choose from"
    ):
        make("yarm")
