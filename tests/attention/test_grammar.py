"""Method strings: every form, and that nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.attention import (
    make_method,
    make_pattern,
    method_names,
    overruled_parts,
    spell_trained,
)
from lenext.attention.grammar import (
    Heads,
    Part,
    Pattern,
    Sum,
    names,
    parse_layers,
    parse_sum,
    spell,
    split_list,
)

L = 16
a, b, c = (Part(name) for name in "abc")


def alike(*parts):
    return Heads((Sum(parts),), (1,))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("a", (alike(a),)),
        (" a + b | c ", (alike(a, b), alike(c))),
        ("a(x=1,y=-2.5e-3)", (alike(Part("a", (("x", 1), ("y", -0.0025)))),)),
        ("a()|b(x=None)", (alike(a), alike(Part("b", (("x", None),))))),
        ("a(x=(1.0, 2,),y='|,+/')", (alike(Part("a", (("x", (1.0, 2)), ("y", "|,+/")))),)),
        ('a(x=(3,),y="b",z=True)', (alike(Part("a", (("x", (3,)), ("y", "b"), ("z", True)))),)),
        ("a(x=())", (alike(Part("a", (("x", ()),))),)),
        ("a/b+c", (Heads((Sum([a]), Sum([b, c])), (1, 1)),)),
        ("a*1/b*3|c", (Heads((Sum([a]), Sum([b])), (1, 3)), alike(c))),
    ],
)
def test_every_form(text, layers):
    assert parse_layers(text) == layers
    assert parse_layers(spell(layers)) == layers


@pytest.mark.parametrize(
    "text",
    ["", " ", "+", "a+", "a++b", "a|", "|a", "a||b", "a/", "a*", "a*0", "a*1.5", "a*b", "a b", "1",
     "a-b", "a(8)", "a(", "a(x)", "a(x=)", "a(x=1", "a(x=wide)", "a(x=1)b", "a(x=1;y=2)", "a(x=08)",
     "a(x='y)", "a(b(c=1))", "a,b", "a.b", "(a)", "a(x=[1])", "a(x=__import__)", "a(x=1+1)"],
)  # fmt: skip
def test_nothing_else(text):
    with pytest.raises(ValueError, match=r"^method .*: should be a name, names joined by \+, or"):
        parse_layers(text)


def test_an_option_twice():
    with pytest.raises(ValueError, match="gives the option x twice"):
        parse_layers("a(x=1,x=2)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" , ,", []),
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ("a(x=1,y=2),b", ["a(x=1,y=2)", "b"]),
        ("a(x=(1,2),y=3) + b(z=4,w=5),c,", ["a(x=(1,2),y=3) + b(z=4,w=5)", "c"]),
        ("a|b,c/d", ["a|b", "c/d"]),
        ("a(x=',')|b,c", ["a(x=',')|b", "c"]),
    ],
)
def test_lists_keep_their_members_as_written(text, parts):
    assert split_list(text) == parts


members = st.sampled_from(
    ["softmax", "rerope(window=8,leak=2)", "a(b=(1,2),c='(,')+f", "a|b", "a/b"]
)


@given(st.lists(members, min_size=1, max_size=5), st.sampled_from([",", " , ", ",,"]))
def test_takes_apart_what_commas_join(parts, comma):
    assert split_list(comma.join(parts)) == parts


words = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda word: word not in ("True", "False", "None")
)
values = st.recursive(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
    | st.text("ab|,+/()", max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=3,
)  # fmt: skip
parts = st.builds(
    Part, words, st.dictionaries(words, values, max_size=3).map(lambda d: tuple(d.items()))
)
sums = st.lists(parts, min_size=1, max_size=3).map(Sum)
heads = st.lists(st.tuples(sums, st.integers(1, 9)), min_size=1, max_size=3).map(
    lambda pairs: Heads(*map(tuple, zip(*pairs, strict=True)))
)


@given(st.lists(heads, min_size=1, max_size=3).map(Pattern))
def test_what_is_spelt_is_read_again(layers):
    assert parse_layers(spell(layers)) == layers
    used = {part.name for each in layers for one in each.sums for part in one}
    assert names(spell(layers)) == used


@given(st.text("ab(=1,'+|/*) ", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        layers = parse_layers(text)
    except ValueError:
        return  # and nothing else is raised
    assert parse_layers(spell(layers)) == layers


def test_a_pattern_answers_for_each_layer():
    pattern = Pattern("abc")
    assert [pattern.of_layer(i) for i in (0, 4, 300)] == ["a", "b", "a"]
    assert pattern.over(5) == tuple("abcab")
    assert Pattern.of("x") == ("x",)
    assert Pattern.of(["x", "y"]).over(3) == ("x", "y", "x")


def test_one_method_is_one():
    assert parse_sum("a+b") == (a, b)
    with pytest.raises(ValueError, match="should be one method, not a pattern over layers"):
        make_method("softmax|alibi", train_length=L)


def test_one_method_for_all_heads_is_one():
    assert parse_sum("a+b*3") == (a, b)
    with pytest.raises(ValueError, match="should be one method, not several of heads by /"):
        parse_sum("a/b")


@pytest.mark.parametrize("name", method_names())
def test_every_name_is_a_pattern_of_one(name):
    assert make_pattern(name, train_length=L) == (make_method(name, train_length=L),)


@pytest.mark.parametrize(
    ("text", "was", "spelt"),
    [
        ("trained+ssmax", "pi(scale=2)", "pi(scale=2)+ssmax"),
        ("trained", "a|b+c", "a|b+c"),
        ("trained+x|y", "a|b|c", "a+x|y|c+x|y|b+x|y"),
        ("rerope|trained", "a|b", "rerope|b"),
        ("softmax", "a|b", "softmax"),
        ("infoscale+trained", "windowed(window=4)", "infoscale+windowed(window=4)"),
        ("trained(scale=8)", "pi(scale=2)+infoscale", "pi(scale=8)+infoscale"),
        ("trained(scale=8)+alibi", "infoscale+pi(scale=2)", "infoscale+pi(scale=8)+alibi"),
        ("trained(base=7,clamp=False)", "infoscale", "infoscale(base=7,clamp=False)"),
        ("trained(window=9)", "lm_infinite|softmax+windowed",
         "lm_infinite(window=9)|softmax+windowed(window=9)"),
        ("trained+x", "a/b", "a+x/b+x"),
        ("trained+x", "a*1/b*3|c", "a+x*1/b+x*3|c+x"),
        ("x/trained", "a+b", "x/a+b"),
        ("trained/x*1|trained", "a*2/b*2", "a/x|a*2/b*2"),
    ],
)  # fmt: skip
def test_trained_is_spelt_out(text, was, spelt):
    assert spell_trained(text, was) == spelt


def test_options_of_trained_must_be_of_some_axis():
    with pytest.raises(ValueError, match="method 'trained' has no option 'scale'; choose from"):
        spell_trained("trained(scale=8)", "softmax")


@pytest.mark.parametrize(
    ("was", "text"),
    [("pi(scale=2)+infoscale", "trained(scale=8)"), ("alibi", "trained+lssa"),
     ("windowed(window=4)", "infoscale+trained"), ("llama3(scale=8)", "trained+rerope"),
     ("alibi*1/yarn(scale=2)*3", "trained+infoscale"), ("pi(scale=2)", "trained/trained+lssa")],
)  # fmt: skip
def test_spelt_out_it_is_the_method_itself(was, text):
    trained = make_method(was, train_length=L)
    expected = make_method(text, train_length=L, trained=trained)
    assert make_method(spell_trained(text, was), train_length=L) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("infoscale+log_length", "infoscale changes nothing in infoscale+log_length: log_length "
                                 "replaces its temperature"),
        ("rerope+yarn", "rerope changes nothing in rerope+yarn: yarn replaces its position"),
        ("lm_infinite+rerope+windowed(window=3)", "lm_infinite changes nothing in lm_infinite+"
         "rerope+windowed(window=3): rerope and windowed replace its position and visibility"),
        ("softmax|nope+alibi", "nope changes nothing in nope+alibi: alibi replaces its position"),
    ],
)  # fmt: skip
def test_parts_that_change_nothing_are_told(text, said):
    assert overruled_parts(text) == [said]


@pytest.mark.parametrize(
    "text",
    ["softmax", "softmax+rerope", "rerope+infoscale", "lm_infinite+windowed", "trained+rerope",
     "llama3(scale=8)+rerope", "softmax(base=500.0)+rerope", "rerope(base=7)+yarn",
     "infoscale|log_length", "rerope(rotary_dim=4)+yarn", "infoscale(logit_scale=0.1)+log_length"],
)  # fmt: skip
def test_parts_that_change_something_are_not(text):
    assert overruled_parts(text) == []
