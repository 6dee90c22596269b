"""Curves that can be told apart: few to a panel, named at their ends, equal ones named as one."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D, Bbox, ScaledTranslation, blended_transform_factory

from lenext.reporting.styles import Style, shaded, styles_of

MOST = 8
"""Curves to a panel, the reference among them."""

COINCIDE = 0.005  # of the axis' range: less than a line's width
WIDTH = 28  # of a name at a curve's end, in characters
SIZE = 9  # of such a name, in points
LABEL = "end of a curve"
MARK = "training length"
"""The `gid` of such names and of that length's, by which they are found in a figure."""

GREY = "0.5"
KINDS = ("temperatures", "positions", "windows", "weightings", "others", "trained")
"""Of panels, in their order."""


class Curve(NamedTuple):
    """Something by something, under a name.

    Attributes:
      name: from which its style follows.
      x: ascending.
      y: of equal length.
      band: the low and the high end at each x, or nothing.
      mark: what stands after the name in pictures.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()
    mark: str = ""

    @property
    def label(self) -> str:
        """The name as it is read."""
        return f"{self.name} {self.mark}".strip()


def panels(kinds: Mapping[str, str], same: Mapping[str, str]) -> dict[str, list[str]]:
    """Which curves stand together, by heading: all of them if they are few, else by kind.

    The first curve is what others are compared with and stands in every panel.

    Args:
      kinds: the kind of each curve by its name, of `KINDS` or "".
      same: by name, the first curve of the kind that it coincides with; they count as one.
    """
    reference, *others = kinds
    if len({same.get(name, name) for name in kinds}) <= MOST:
        return {"": [reference, *others]}
    found = {}
    for kind in sorted({kinds[name] for name in others}, key=("", *KINDS).index):
        groups: dict[str, list[str]] = {}
        for name in others:
            if kinds[name] == kind:
                groups.setdefault(same.get(name, name), []).append(name)
        with_reference = groups.pop(reference, [])
        parts = max(1, -(-len(groups) // (MOST - 1)))
        for part, share in enumerate(np.array_split(np.arange(len(groups)), parts)):
            counted = f"{part + 1} of {parts}" if parts > 1 else ""
            chosen = [name for i in share for name in list(groups.values())[i]]
            if part == 0:
                chosen = [*with_reference, *chosen]
            found[", ".join(filter(None, (kind, counted)))] = [reference, *chosen]
    return found


def same_in_all(rows: Iterable[Sequence[Curve]], kinds: Mapping[str, str]) -> dict[str, str]:
    """By name, the first curve of its kind with which a curve coincides in every row."""
    reference, firsts = next(iter(kinds)), []
    for row in rows:
        span, found = span_of(row), {}
        for kind in set(kinds.values()):
            own = [c for c in row if kinds[c.name] == kind or c.name == reference]
            for group in coinciding(own, span):
                found |= {c.name: group[0].name for c in group if kinds[c.name] == kind}
        firsts.append(found)
    same: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name in kinds:
        same[name] = seen.setdefault(tuple(found.get(name, name) for found in firsts), name)
    return same


def coinciding(curves: Sequence[Curve], span: float, *, log: bool = False) -> list[list[Curve]]:
    """Groups of curves that no reader could tell apart, as `COINCIDE` has it, in their order.

    Args:
      curves: of one panel.
      span: the range of its axis, in natural logarithms where it is logarithmic.
      log: whether it is.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        for group in groups:
            if list(group[0].x) == list(curve.x):
                apart = _on_axis(group[0].y, log) - _on_axis(curve.y, log)
                if np.all(np.abs(apart) <= COINCIDE * span):
                    group.append(curve)
                    break
        else:
            groups.append([curve])
    return groups


def span_of(curves: Iterable[Curve], *, log: bool = False) -> float:
    """The range of an axis on which these are drawn, in natural logarithms if `log`."""
    values = [y for c in curves for y in (*c.y, *(end for ends in c.band for end in ends))]
    found = _on_axis(values, log)
    finite = found[np.isfinite(found)]  # a training may have diverged
    return float(np.ptp(finite)) if len(finite) else 0.0


def _on_axis(values: Sequence[float], log: bool) -> Float[np.ndarray, " n"]:
    found = np.asarray(values, float)
    return np.log(found) if log else found


def shortened(names: Iterable[str], width: int = WIDTH) -> dict[str, str]:
    """By name, what stands for it where `width` characters are: itself, or something as unique.

    First the names of options go, then their values, then the middle of what is left.
    """
    wanted = list(dict.fromkeys(names))
    found = {name: name for name in wanted if len(name) <= width}
    for name in wanted:
        if name in found:
            continue
        choices = [
            re.sub(r"([(,])\s*\w+\s*=\s*(['\"]?)([^,)'\"]*)\2", r"\1\3", name),
            re.sub(r"\([^()]*\)", "(…)", name),
        ]
        choices += [_cut(choice, width) for choice in (*choices, name)]
        taken = {*found.values(), *wanted}
        fitting = [x for x in choices if len(x) <= width and x not in taken]
        numbered = (f"{_cut(name, width - 4)} #{n}" for n in range(2, len(wanted) + 3))
        found[name] = fitting[0] if fitting else next(x for x in numbered if x not in taken)
    return {name: found[name] for name in wanted}


def _cut(text: str, width: int) -> str:
    head = (width - 1) * 2 // 3
    return text if len(text) <= width else f"{text[:head]}…{text[head + 1 - width :]}"


def draw(
    axes: Axes,
    curves: Sequence[Curve],
    span: float,
    short: Mapping[str, str],
    *,
    log: bool = False,
    styles: Mapping[str, Style] | None = None,
    **line: Any,
) -> None:
    """Curves with bands and their names at the ends; those that coincide are drawn once.

    Args:
      axes: to be drawn on, their x axis set already.
      curves: at most `MOST`.
      span: see `coinciding`.
      short: what stands at the end for a name, see `shortened`.
      log: whether the y axis is logarithmic.
      styles: by name, of curves that are no methods'.
      **line: for `Axes.plot`.
    """
    groups = coinciding(curves, span, log=log)
    styles = styles or styles_of(group[0].name for group in groups)
    # Points of a single length stand side by side, the lowest first: so no line to a name at the
    # right crosses another point.
    single = all(len(group[0].x) == 1 for group in groups) and len(groups) > 1
    ranked = sorted(groups, key=lambda group: _from_its_end(group[0], span))
    for rank, group in enumerate(ranked):
        curve, style = group[0], styles[group[0].name]
        shift = 2.0 ** (0.06 * (rank - (len(groups) - 1) / 2)) if single else 1.0
        x = [value * shift for value in curve.x]
        above = 3 - groups.index(group) / MOST  # the reference above the others
        options: dict[str, Any] = {"markersize": 4.5, "linewidth": 1.8, "zorder": above}
        options |= style.line() | line
        if "markevery" in line:  # not all at the same places
            step = line["markevery"]
            options["markevery"] = (rank * step // len(groups), step)
        axes.plot(x, curve.y, label=" = ".join(each.label for each in group), **options)
        if curve.band:
            low, high = zip(*curve.band, strict=True)
            if len(x) == 1:
                axes.vlines(x, low, high, color=style.colour, linewidth=1.8)
            axes.fill_between(x, low, high, color=style.colour, alpha=0.08, linewidth=0)
        finite = [end for end in zip(x, curve.y, strict=True) if np.isfinite(end[1])]
        end = finite[-1] if finite else (x[-1], axes.get_ylim()[0])
        name_end(axes, end, _joined(group, short), style)


def _from_its_end(curve: Curve, span: float) -> list[float]:
    """What curves are ranked by: where they end, or where they were before if that is alike."""
    finite = [y for y in reversed(curve.y) if np.isfinite(y)]
    return [round(y / span, 2) if span else y for y in finite]


def _joined(group: Sequence[Curve], short: Mapping[str, str]) -> str:
    """The names of curves that coincide, as many in a line as fit."""
    names = [f"{short.get(each.name, each.name)} {each.mark}".strip() for each in group]
    lines, width = [names[0]], max(20, *map(len, [*short.values(), ""]))
    for name in names[1:]:
        if len(f"{lines[-1]} = {name} =") <= width + 2 * (name == names[-1]):
            lines[-1] += f" = {name}"
        else:
            lines[-1] += " ="
            lines.append(name)
    return "\n".join(lines)


def name_end(axes: Axes, end: tuple[float, float], text: str, style: Style) -> None:
    """Names a curve to the right of its panel, beside a piece of it, a thin line from its end.

    How high they stand is settled by `settle`, when all names and the panel's size are known.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    # From the panel's right edge in points, and by the panel's own y.
    points: Any = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    edge: Any = axes.transAxes
    beside = blended_transform_factory(points + ScaledTranslation(1, 0, edge), axes.transData)
    y = end[1]
    axes.annotate(
        "", end, (8, y), textcoords=beside, annotation_clip=False, gid=LABEL,
        arrowprops={"arrowstyle": "-", "color": style.colour, "linewidth": 0.7, "alpha": 0.7,
                    "shrinkA": 0, "shrinkB": 2},
    )  # fmt: skip
    axes.add_artist(
        Line2D(
            [10, 37], [y] * 2, transform=beside, clip_on=False, gid=LABEL, label="_piece",
            markevery=[0], markersize=4.5, linewidth=1.8, **style.line(),
        )
    )  # fmt: skip
    axes.text(
        41, y, text, transform=beside, va="center_baseline", fontsize=SIZE, linespacing=1.1,
        gid=LABEL, color=shaded(style.colour, -0.3),
    )  # fmt: skip


def guide(axes: Axes, x: Sequence[float], y: Sequence[float], text: str, dash: Any = ":") -> None:
    """A curve that is no method's, such as a bound: grey, and named as others are."""
    axes.plot(x, y, color=GREY, linestyle=dash, linewidth=1.2, label=text)
    name_end(axes, (x[-1], y[-1]), text, Style(GREY, dash, ""))


def end_names(axes: Axes) -> list[Text]:
    """The names at the ends of a panel's curves."""
    return [x for x in axes.texts if x.get_gid() == LABEL and not isinstance(x, Annotation)]


def settle(figure: Figure) -> None:
    """Lays the figure out, once and for all, and moves what is written beside its curves.

    Names at the curves' ends are pushed apart; a mark stands at the bottom of its panel where
    more of the curves would cross it at the top.
    """
    if not any(end_names(axes) for axes in figure.axes):
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        box, names = axes.get_window_extent(), end_names(axes)
        leaders = [x for x in axes.texts if isinstance(x, Annotation) and x.get_gid() == LABEL]
        pieces = [x for x in axes.lines if x.get_gid() == LABEL]
        if names:
            lines = np.array([name.get_text().count("\n") + 1 for name in names])
            heights = lines * 1.25 * SIZE * figure.dpi / 72
            ends = axes.transData.transform([leader.xy for leader in leaders])
            ends[:, 1] = np.clip(np.nan_to_num(ends[:, 1], nan=box.y0), box.y0, box.y1)
            heads = np.column_stack([ends[:, 0], apart(ends[:, 1], heights, box.y0, box.y1)])
            back = axes.transData.inverted()
            found = zip(names, leaders, pieces, back.transform(ends), back.transform(heads),
                        strict=True)  # fmt: skip
            for name, leader, piece, end, (_, y) in found:
                leader.xy, leader.xyann = tuple(end), (8, y)
                piece.set_ydata([y] * 2)
                name.set_y(y)
        _thin(axes)
        for mark in (x for x in axes.texts if isinstance(x, Annotation) and x.get_gid() == MARK):
            high = mark.get_window_extent()
            low = high.translated(0, box.y0 + 6 - high.y0)
            if _crossed(axes, low) < _crossed(axes, high):
                mark.xy, mark.xyann = (mark.xy[0], 0.0), (4, 2)
                mark.set_verticalalignment("bottom")


def _thin(axes: Axes) -> None:
    """Leaves out every second of the labels along x, again and again, until they are apart."""
    labels = [x for x in axes.get_xticklabels() if x.get_text()]
    boxes = [x.get_window_extent() for x in labels]
    step = 1
    while any(
        left.x1 + 2 > right.x0
        for left, right in zip(boxes[::-1][step::step], boxes[::-1][::step], strict=False)
    ):
        step *= 2
    if step > 1:
        kept = set(range(len(labels))[::-1][::step])
        ticks = axes.get_xticks()
        texts = [x.get_text() if i in kept else "" for i, x in enumerate(labels)]
        axes.set_xticks(ticks, texts)


def _crossed(axes: Axes, box: Bbox) -> int:
    """At how many of some places curves go through a box, in pixels."""
    x = np.linspace(box.x0, box.x1, 9)
    count = 0
    for line in axes.lines:
        if not str(line.get_label()).startswith("_"):
            points = axes.transData.transform(line.get_xydata())
            y = np.interp(x, *points.T, left=np.nan, right=np.nan)
            count += int(np.sum((y > box.y0 - 4) & (y < box.y1 + 4)))
    return count


def apart(
    centres: Float[np.ndarray, " n"], heights: Float[np.ndarray, " n"], low: float, high: float
) -> Float[np.ndarray, " n"]:
    """Centres moved as little as may be, so that what is so high does not overlap.

    Args:
      centres: where each would be.
      heights: of each.
      low: no one reaches below it …
      high: … or above this, unless there is not room for all: then the lowest goes below.
    """
    order = np.argsort(centres, kind="stable")
    size = heights[order]
    stacked = np.cumsum(size) - size / 2
    # Less what is stacked below, they only have to ascend: isotonic regression, by its formula.
    free = centres[order] - stacked
    count = len(free)
    means = np.array(
        [[free[j : k + 1].mean() if k >= j else np.inf for k in range(count)] for j in range(count)]
    )
    risen = [max(means[j, i:].min() for j in range(i + 1)) for i in range(count)]
    moved = np.empty(count)
    moved[order] = np.minimum(np.maximum(risen, low), high - size.sum()) + stacked
    return moved


def spelt_out(figure: Figure, short: Mapping[str, str]) -> None:
    """Says below the figure what its shortened names stand for."""
    told = [f"{text}: {name}" for name, text in short.items() if text != name]
    if told:
        inches, size = figure.get_size_inches()[0], 8
        lines = textwrap.wrap(";  ".join(told), int(inches * 72 / (0.62 * size)))
        # As a label of the figure it is given room; as a text of its own it would not be.
        figure.supxlabel("\n".join(lines), fontsize=size, x=0.01, ha="left", color="0.25")


def headed(figure: Figure, title: str, size: float = 12) -> None:
    """A title at the left, of as many lines as it takes."""
    width = int(figure.get_size_inches()[0] * 72 / (0.58 * size))
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, width)]
    figure.suptitle("\n".join(lines), fontsize=size, x=0.01, ha="left")
