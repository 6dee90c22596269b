"""Pictures of sweeps, read from the figures before they become PNGs."""

import io
import itertools

import matplotlib.image
import numpy as np
import pytest

from lenext.reporting import pictures
from lenext.reporting.curves import (
    LABEL,
    MARK,
    MOST,
    WIDTH,
    end_names,
)
from lenext.reporting.pictures import (
    draw_metrics,
    draw_training,
    plot,
    plot_by_depth,
    plot_by_position,
)
from lenext.reporting.styles import style_of
from tests.reporting.common import record

SEVENTEEN = (
    "softmax", "infoscale", "entropy_matched", "log_length", "pi", "ntk", "yarn", "yarn+infoscale",
    "rerope", "rerope_log", "rerope+infoscale", "leaky_rerope", "lm_infinite", "windowed",
    "streaming_llm", "cosscale", "sigmoid",
)  # fmt: skip
LONG = (
    "softmax",
    "windowed(window=64)|softmax+entropy_matched|windowed(window=64)|rerope(window=128)+infoscale",
    "windowed(window=64)|softmax+entropy_matched|windowed(window=32)|rerope(window=128)+infoscale",
    "self_extend(window=128,group=8)+entropy_matched",
    "self_extend(window=128,group=16)+entropy_matched",
    "somebody's own label that goes on and on, for reasons known to nobody",
    "somebody's own label that goes on and on, for reasons known to one",
)


def sweep(methods, lengths=(16, 64, 256), **more):
    """Curves that fan out, none equal to another."""
    return [
        record(method, n, 0.7 - 0.1 * np.log2(n / 8) * (1 + i) / len(methods), **more)
        for i, method in enumerate(methods)
        for n in lengths
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that became PNGs."""
    figures = []
    real = pictures.png

    def remember(figure, dpi):
        figures.append(figure)
        made = real(figure, 20)  # fewer pixels are fewer seconds
        figure.draw_without_rendering()  # what is asked of it later is of its own dpi again
        return made

    monkeypatch.setattr(pictures, "png", remember)
    return figures


def curves(axes):
    """The curves of a panel by label, without what is beside them."""
    return {x.get_label(): x for x in axes.lines if not x.get_label().startswith("_")}


def look(line):
    return line.get_color(), line._dash_pattern, line.get_marker()


def names(axes):
    """At the ends of a panel's curves, from top to bottom."""
    found = sorted(end_names(axes), key=lambda text: -text.get_position()[1])
    return [text.get_text().replace("\n", " ") for text in found]


def check_names(figure):
    """Every name inside the figure, and none upon another or upon a curve."""
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in end_names(axes)]
        for box in boxes:
            assert axes.bbox.x1 < box.x0 < box.x1 < figure.bbox.x1
            assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), (one, other)
        for other in figure.axes:
            assert other is axes or not any(box.overlaps(other.bbox) for box in boxes)


def test_picture_is_large_enough_to_be_read(records):
    image = matplotlib.image.imread(io.BytesIO(plot(records, "accuracy", 16, "A title")))
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    assert np.ptp(image[..., :3]) > 0.5


def test_picture_shows_the_records(records, drawn):
    plot(records, "accuracy", 16, "A title")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "512"]
    assert "accuracy" in axes.get_ylabel()
    assert drawn[0].get_suptitle() == "A title"
    found = {name: line.get_xydata().tolist() for name, line in curves(axes).items()}
    assert found["softmax"] == [[16, 0.5], [512, 0.25]]
    assert found["cosscale †"] == [[16, 0.25], [512, 0.125]]
    # As the curves end, top to bottom; there is no legend.
    assert names(axes) == [
        "rerope(window=16)+infoscale", "windowed|softmax", "softmax", "cosscale †",
    ]  # fmt: skip
    assert axes.get_legend() is None
    assert any("trained at 16" in text.get_text() for text in axes.texts)
    assert len(axes.collections) == 4  # bands


def test_picture_of_loss_by_position(drawn):
    records = [
        record(method, length, value + 0.01 * low, metric, positions=positions)
        for length, buckets in [(32, [(0, 16), (16, 32)]), (48, [(0, 16), (16, 32), (32, 48)])]
        for method, value in [("softmax", 2.0), ("lssar", 1.0)]
        for metric, positions, low in [
            ("loss", None, 0),
            *(("loss_by_position", list(bucket), bucket[0]) for bucket in buckets),
        ]
    ]
    assert plot_by_position(records, 32, "A title").startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    # The longest length's, each bucket at its end.
    found = curves(axes)["softmax"].get_xydata()
    np.testing.assert_allclose(found, [[16, 2.0], [32, 2.16], [48, 2.32]])
    assert "48" in axes.get_ylabel()
    assert names(axes) == ["softmax", "lssar"]


def test_picture_tells_many_methods_apart(drawn):
    records = sweep([f"method{i}" for i in range(28)])
    plot(records, "accuracy", 16, "")
    seen = []
    for axes in drawn[0].axes:
        found = curves(axes)
        assert len({look(line) for line in found.values()}) == len(found) <= MOST
        assert "method0" in found
        seen += [name for name in found if name != "method0"]
    assert sorted(seen) == sorted(f"method{i}" for i in range(1, 28))
    check_names(drawn[0])


@pytest.mark.parametrize(
    ("methods", "lengths"),
    [
        (SEVENTEEN, (16, 64, 256, 1024)),
        (SEVENTEEN[:3], (16, 64)),
        (LONG, (16, 64, 256)),
        (SEVENTEEN, (64,)),
        (SEVENTEEN[:8], (64,)),
        (SEVENTEEN[:8], (1024,)),
        (LONG, (1024,)),
    ],
)
def test_names_stand_apart_inside_the_figure(methods, lengths, drawn):
    plot(sweep(methods, lengths), "accuracy", 64, "A title of the usual length, trained at 64")
    check_names(drawn[0])


def test_names_of_curves_that_end_together_stand_apart(drawn):
    ends = [record(m, 64, 1e-3 * i) for i, m in enumerate(SEVENTEEN[:8])]
    starts = [record(m, 16, 0.1 * i) for i, m in enumerate(SEVENTEEN[:8])]
    plot([*ends, *starts], "accuracy", 16, "")
    (axes,) = drawn[0].axes
    assert len(names(axes)) == 8
    # From the bottom, as the curves came: all leaders start where they end.
    assert names(axes)[::-1] == list(SEVENTEEN[:8])
    check_names(drawn[0])


def test_panels_by_kind(drawn):
    plot(sweep(SEVENTEEN), "accuracy", 16, "")
    panels = {axes.get_title(loc="left"): list(curves(axes)) for axes in drawn[0].axes}
    assert list(panels) == [
        "temperatures", "positions, 1 of 2", "positions, 2 of 2", "windows", "weightings"
    ]  # fmt: skip
    assert sorted(panels["windows"]) == ["lm_infinite", "softmax", "streaming_llm", "windowed"]
    assert set(panels["positions, 1 of 2"]) & set(panels["positions, 2 of 2"]) == {"softmax"}
    assert all("softmax" in found and len(found) <= MOST for found in panels.values())
    drawn_once = [name for found in panels.values() for name in found if name != "softmax"]
    assert sorted(drawn_once) == sorted(SEVENTEEN[1:])
    # One range of both axes in all.
    assert len({axes.get_ylim() for axes in drawn[0].axes}) == 1
    for axes in drawn[0].axes:
        np.testing.assert_allclose(axes.get_xlim(), drawn[0].axes[0].get_xlim())


def test_what_was_trained_otherwise_has_a_panel(drawn):
    trained = [
        r | {"trained": r["method"] if i >= 24 else "softmax", "evaluated": r["method"]}
        for i, r in enumerate(sweep(SEVENTEEN[:10]))
    ]
    plot(trained, "accuracy", 16, "")
    panels = {axes.get_title(loc="left"): set(curves(axes)) for axes in drawn[0].axes}
    assert panels["trained"] == {"softmax", "rerope", "rerope_log"}
    assert panels["positions"] == {"softmax", "pi", "ntk", "yarn", "yarn+infoscale"}


def test_few_are_together(drawn):
    plot(sweep(SEVENTEEN[:MOST]), "accuracy", 16, "")
    assert len(drawn[0].axes) == 1


def test_a_method_looks_the_same_in_two_pictures(drawn):
    first, second = ("softmax", "rerope+infoscale", "pi"), ("sigmoid", "pi", "rerope+infoscale")
    plot(sweep(first), "accuracy", 16, "")
    draw_metrics(sweep(second), {"accuracy": "accuracy"}, 16, "")
    draw_training({0.1: {name: [3.0, i, i / 9] for i, name in enumerate(second)}}, "")
    lines = [curves(figure.axes[0]) for figure in drawn]
    for name in ("rerope+infoscale", "pi"):
        # Where it ends, too.
        assert len({found[name].get_color() for found in lines}) == 1
        assert len({found[name].get_marker() for found in lines}) == 1
        assert lines[0][name].get_color() == style_of(name).colour
    assert look(lines[0]["pi"]) == look(lines[1]["pi"])
    pieces = {
        (x.get_color(), x.get_marker()) for x in drawn[0].axes[0].lines if x.get_gid() == LABEL
    }
    assert pieces == {(style_of(name).colour, style_of(name).marker) for name in first}


def test_curves_that_coincide_are_named_as_one(drawn):
    values = {"softmax": 0.5, "infoscale": 0.5004, "pi": 0.52, "ntk": 0.5, "yarn": 0.8}
    records = [record(m, n, v) for m, v in values.items() for n in (16, 64)]
    records[-3]["value"] += 0.1  # ntk at the longer length
    plot(records, "accuracy", 16, "")
    (axes,) = drawn[0].axes
    assert set(curves(axes)) == {"softmax = infoscale", "pi", "ntk", "yarn"}
    assert set(names(axes)) == {"softmax = infoscale", "pi", "ntk", "yarn"}


def test_many_that_coincide_count_as_one_curve(drawn):
    records = sweep(SEVENTEEN[:8])
    windows = [record(m, n, 0.7) for m in ("windowed", "lm_infinite") for n in (16, 64, 256)]
    plot(records[3:] + windows, "accuracy", 16, "")
    (axes,) = drawn[0].axes
    assert "windowed = lm_infinite" in names(axes)
    assert len(names(axes)) == MOST


def test_marks_stay_with_their_names(drawn):
    records = [
        record(m, n, 0.5, unsuited=["weighting"] * (m == "sigmoid"))
        for m in ("softmax", "sigmoid", "pi")
        for n in (16, 64)
    ]
    plot(records, "accuracy", 16, "")
    assert names(drawn[0].axes[0]) == ["softmax = sigmoid † = pi"]


def test_names_that_do_not_fit_are_spelt_out_below(drawn):
    plot(sweep(LONG, unsuited=["weighting"]), "accuracy", 16, "")
    (axes,) = drawn[0].axes
    told = drawn[0].get_supxlabel().replace("\n", " ")
    shown = [text.removesuffix(" †") for text in names(axes)]
    assert len(set(shown)) == len(LONG)
    assert all(len(text) <= WIDTH for text in shown)
    assert "softmax" in shown
    for text in set(shown) - {"softmax"}:
        assert f"{text}: " in told
    for name in LONG[1:]:
        assert name in told
    assert "softmax: " not in told
    assert drawn[0]._supxlabel.get_window_extent().x1 < drawn[0].bbox.x1
    assert not any(drawn[0]._supxlabel.get_window_extent().overlaps(a.bbox) for a in drawn[0].axes)


def test_picture_without_intervals(drawn):
    plot([r | {"interval": None} for r in sweep(SEVENTEEN[:3])], "accuracy", 16, "")
    draw_metrics(
        [r | {"interval": None} for r in sweep(SEVENTEEN[:3])], {"accuracy": "accuracy"}, 16, ""
    )
    for figure in drawn:
        bands = figure.axes[0].collections
        assert bands
        for band in bands:  # of no width
            (path,) = band.get_paths()
            low, high = path.vertices[1:4, 1], path.vertices[5:8, 1][::-1]
            np.testing.assert_allclose(low, high)


def test_picture_of_some_intervals(drawn):
    records = sweep(["softmax"])
    records[-1]["interval"] = None
    assert plot(records, "accuracy", 16, "").startswith(b"\x89PNG")


def test_picture_of_one_length(drawn):
    assert plot([record("softmax", 16, 0.5)], "accuracy", 16, "").startswith(b"\x89PNG")
    plot(sweep(SEVENTEEN[:5], [64]), "accuracy", 16, "")
    x = [line.get_xdata()[0] for line in curves(drawn[1].axes[0]).values()]
    assert len({round(float(value), 3) for value in x}) == 5  # side by side


def test_the_training_length_is_marked_where_curves_leave_room(drawn):
    high = [
        record(m, n, 1.0 - i * n / 5000, interval=None)
        for i, m in enumerate(SEVENTEEN[:10])
        for n in (16, 64, 256)
    ]
    low = [r | {"value": 1 - r["value"]} for r in high]
    for records in (high, low):
        plot(records, "accuracy", 16, "")
    places = [
        {text.xy[1] for axes in figure.axes for text in axes.texts if text.get_gid() == MARK}
        for figure in drawn
    ]
    assert places == [{0.0}, {1.0}]


def test_a_panel_a_metric_and_kind(drawn):
    records = [r | {"metric": m} for m in ("accuracy", "loss") for r in sweep(SEVENTEEN[:10])]
    draw_metrics(records, {"accuracy": "accuracy", "loss": "loss (nats)"}, 16, "A title")
    grid = drawn[0].axes
    assert [axes.get_ylabel() for axes in grid] == ["accuracy", "", "loss (nats)", ""]
    assert [axes.get_title(loc="left") for axes in grid] == ["temperatures", "positions", "", ""]
    assert grid[0].get_ylim() == grid[1].get_ylim()
    check_names(drawn[0])


def test_trainings_that_stopped_are_marked(drawn):
    losses = {"softmax": [3.0, 2.0, 1.0, 0.5], "relu": [3.0, 2.5]}
    draw_training({0.1: losses, 0.2: {}}, "A title")
    first, second = drawn[0].axes
    crosses = [line for line in first.lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[0.5, 2.5]]]
    assert set(curves(first)) == {"softmax", "relu"}
    assert not curves(second)
    check_names(drawn[0])


def test_losses_that_are_no_numbers_are_left_out(drawn):
    nan, inf = float("nan"), float("inf")
    losses = {"softmax": [3.0, 2.0, 1.0], "relu": [3.0, 2.5, nan], "sigmoid": [inf, nan, nan]}
    draw_training({0.1: losses}, "A title")
    (axes,) = drawn[0].axes
    assert set(names(axes)) == set(losses)
    ends = {text.get_text(): text.get_position()[1] for text in end_names(axes)}
    np.testing.assert_allclose(ends["relu"], 2.5)
    check_names(drawn[0])


def test_depths_have_their_titles_inside(drawn):
    found = [
        record(method, 16, 0.5, "retrieved_by_place", positions=[2 * i, 2 * i + 2])
        for method in LONG
        for i in range(8)
    ]
    plot_by_depth(found, 16, "A title")
    titles = [axes.title.get_window_extent() for axes in drawn[0].axes[: len(LONG)]]
    for one, other in itertools.combinations(titles, 2):
        assert not one.overlaps(other)
