"""How methods look: the same in every picture, and none as another beside it."""

import subprocess
import sys

import pytest
from matplotlib.colors import to_rgb

from lenext.attention import make_method
from lenext.attention.axes.method import AXES
from lenext.attention.catalogue import BUILT_IN, CATALOGUE, Entry
from lenext.reporting.styles import (
    BLACK,
    KINDS,
    REST,
    SAME_AS,
    SOLID,
    TEMPERATURES,
    UNKNOWN,
    Style,
    kind_of,
    shaded,
    style_of,
    styles_of,
)
from tests.training.common import REPOSITORY

OTHER = ["pose+pi", "lssa → lssar", 'ablation: lssa(phi="relu")', "windowed|softmax", "x, QK-norm"]


def test_every_name_of_the_catalogue_has_a_style_of_its_own():
    assert REST.keys() | TEMPERATURES.keys() | SAME_AS.keys() == BUILT_IN
    assert len({style_of(name) for name in BUILT_IN}) == len(BUILT_IN)


@pytest.mark.parametrize("name", SAME_AS)
def test_what_is_spelt_two_ways_looks_one(name):
    found, spelt = (make_method(text, train_length=64) for text in (name, "+".join(SAME_AS[name])))
    assert [getattr(found, axis) for axis in AXES] == [getattr(spelt, axis) for axis in AXES]
    assert style_of(name) == style_of("+".join(SAME_AS[name]))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rest", ["rerope", "yarn", "windowed", "cosscale"])
def test_colour_of_what_it_is_and_dash_of_its_temperature(rest, temperature):
    both, alone, tempered = map(style_of, (f"{rest}+{temperature}", rest, temperature))
    assert (both.colour, both.marker) == (alone.colour, alone.marker)
    assert both.dash == tempered.dash != alone.dash == SOLID
    assert style_of(f"softmax+{temperature}") == tempered


def test_a_temperature_that_is_replaced_leaves_no_dash():
    assert style_of("infoscale+log_length") == style_of("log_length")
    assert style_of("infoscale+lssar") == style_of("lssar")  # which brings one of its own
    assert style_of("lssar+infoscale").dash == style_of("infoscale").dash


def test_softmax_alone_is_black():
    assert style_of("softmax") == Style(BLACK, SOLID, "o")
    assert [name for name in BUILT_IN if style_of(name).colour == BLACK] == ["softmax"]
    assert all(style_of(name).colour != BLACK for name in OTHER)


def test_options_shade_by_their_number():
    found = [style_of(f"cosscale(cos_scale={c})") for c in (4, 8, 16, 64, 512)]
    light = [sum(to_rgb(style.colour)) for style in found]
    assert light == sorted(set(light))
    assert len({style.marker for style in found}) == len(found)
    assert style_of("cosscale") not in found
    assert style_of("cosscale( cos_scale = 16 )") == found[2]
    assert style_of("lssa(phi='relu')") == style_of('lssa(phi="relu")') != style_of("lssa")


def test_shades():
    assert [shaded("#804020", x) for x in (-1, -0.5, 0, 0.5, 1)] == [
        "#000000", "#402010", "#804020", "#c0a090", "#ffffff"
    ]  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_dash_tells_of_a_temperature_and_of_nothing_else(name):
    assert style_of(name).dash == SOLID


def test_a_style_is_that_of_any_other_process():
    program = (
        "from lenext.reporting.styles import style_of\n"
        f"print([tuple(style_of(name)) for name in {OTHER!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str([tuple(style_of(name)) for name in OTHER])


def test_a_registered_method_looks_the_same_where_it_is_not_registered(monkeypatch):
    before = style_of("own+infoscale")
    monkeypatch.setitem(CATALOGUE, "own", Entry(visibility=CATALOGUE["windowed"].visibility))
    assert style_of("own+infoscale") == before
    assert kind_of("own+infoscale") == "windows"


def test_no_two_of_a_panel_look_alike():
    names = [f"label {i}" for i in range(80)]
    assert len({style_of(name) for name in names}) < len(names)
    assert len(set(styles_of(names).values())) == len(names)
    # Those that lenext knows keep theirs, wherever they stand.
    twins = [*names, "rerope_log", "rerope"]
    found = styles_of(twins)
    assert list(found) == twins
    assert len(set(found.values())) == len(twins)
    assert [found[name] for name in ("rerope", "rerope_log")] == [
        style_of("rerope"), style_of("rerope_log")
    ]  # fmt: skip
    assert styles_of(["rerope_log", "rerope+log_length"])["rerope_log"] == style_of("rerope_log")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("softmax", "temperatures"),
        ("infoscale", "temperatures"),
        ("log_length(scale=2)", "temperatures"),
        ("rerope+infoscale", "positions"),
        ("softmax(base=500000)", "positions"),
        ("cosscale", "weightings"),
        ("sigmoid", "weightings"),
        ("cosscale+rerope", "positions"),
        ("lm_infinite", "windows"),
        ("windowed|softmax", "windows"),
        ("softmax/rerope*3", "positions"),
        ("trained+infoscale", "temperatures"),
        ("pose+pi", UNKNOWN),
        ("softmax, 4 needles", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_every_axis_is_of_a_kind():
    assert set(KINDS) == set(AXES)
