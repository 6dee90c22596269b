"""The pictures of a sweep: a metric by length, loss by position, what is retrieved by depth."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lenext.reporting.curves import (
    MARK,
    Curve,
    draw,
    headed,
    panels,
    same_in_all,
    settle,
    shortened,
    span_of,
    spelt_out,
)
from lenext.reporting.records import DEPTHS
from lenext.reporting.styles import kind_of
from lenext.reporting.tables import UNSUITED

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}

Records = Sequence[dict[str, Any]]


def plot(records: Records, metric: str, train_length: int, title: str) -> bytes:
    """A PNG of `metric` against length (log axis) with 95 % bands, the training length marked.

    Methods beyond `lenext.reporting.curves.MOST` are drawn in panels by kind, the first of them in
    every panel.
    """
    chosen = [r for r in records if r["metric"] == metric]
    ticks = {r["length"]: f"{r['length']:,}" for r in chosen}
    rows = {f"{metric} ({chosen[0]['protocol']})": curves_of(chosen)}
    return _draw_rows(rows, kinds_of(chosen), ticks, "length (tokens)", train_length, title)


def plot_by_position(records: Records, train_length: int, title: str) -> bytes:
    """A PNG of loss against position at the longest length; each bucket stands at its end."""
    found = [r for r in records if r["metric"] == "loss_by_position"]
    longest = max(r["length"] for r in found)
    chosen = [r for r in found if r["length"] == longest]
    ticks = {r["positions"][1]: f"{r['positions'][1]:,}" for r in chosen}
    rows = {f"loss at length {longest:,}": curves_of(chosen, lambda r: r["positions"][1])}
    label = "position (tokens; upper end of a bucket)"
    return _draw_rows(rows, kinds_of(chosen), ticks, label, train_length, title)


def draw_metrics(
    records: Records, metrics: Mapping[str, str], train_length: int, title: str
) -> bytes:
    """A PNG of several metrics against length, each in a panel, or in one a kind of methods.

    Args:
      records: pooled.
      metrics: what stands at the axis, by metric.
      train_length: marked.
      title: above all.
    """
    chosen = [r for r in records if r["metric"] in metrics and not r["positions"]]
    ticks = {r["length"]: f"{r['length']:,}" for r in chosen}
    rows = {
        label: curves_of([r for r in chosen if r["metric"] == metric])
        for metric, label in metrics.items()
    }
    return _draw_rows(rows, kinds_of(chosen), ticks, "length (tokens)", train_length, title)


def curves_of(
    records: Records, x_of: Callable[[dict[str, Any]], float] = lambda r: r["length"]
) -> list[Curve]:
    """A curve a method, from records of one metric."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["method"], []).append(record)
    return [
        Curve(
            method,
            [x_of(r) for r in chosen],
            [r["value"] for r in chosen],
            # Of one document there is no interval: the band has no width there.
            [tuple(r["interval"] or (r["value"], r["value"])) for r in chosen],
            UNSUITED if chosen[0]["unsuited"] else "",
        )
        for method, own in found.items()
        for chosen in [sorted(own, key=x_of)]
    ]


def kinds_of(records: Records) -> dict[str, str]:
    """Of each method what kind of panel it belongs to, by its name.

    "trained" where its weights were trained otherwise than the first method's; else by its axes.
    """
    first = records[0].get("trained")
    return {
        r["method"]: "trained"
        if r.get("trained") != first
        else kind_of(r.get("evaluated", r["method"]))
        for r in records
    }


def _draw_rows(
    rows: Mapping[str, Sequence[Curve]],
    kinds: Mapping[str, str],
    ticks: Mapping[Any, str],
    xlabel: str,
    train_length: int,
    title: str,
) -> bytes:
    """A PNG of a panel a row and kind.

    Args:
      rows: curves by what stands at their axis, which the panels of a row share.
      kinds: of every curve, by name.
      ticks: of the other axis.
      xlabel: what stands there.
      train_length: marked there.
      title: above all.
    """
    headings = panels(kinds, same_in_all(rows.values(), kinds))
    short = shortened(kinds)
    cells = [(label, heading) for label in rows for heading in headings]
    table = min(len(rows), len(headings)) > 1  # a row of panels a row, a column a kind
    columns = len(headings) if table else min(2, len(cells))
    with matplotlib.rc_context(STYLE):
        figure, grid = grid_of(len(cells), columns, max(map(len, short.values())))
        for number, ((label, heading), axes) in enumerate(zip(cells, grid, strict=True)):
            own = [curve for curve in rows[label] if curve.name in headings[heading]]
            length_axis(axes, ticks, train_length, f"trained at {train_length:,}", fontsize=9)
            draw(axes, own, span_of(rows[label]), short)
            if not table or number < columns:
                axes.set_title(heading, loc="left", fontsize=11)
            if number % columns == 0 or len(headings) == 1:
                axes.set_ylabel(label)
        for axes in grid[-columns:]:
            axes.set_xlabel(xlabel)
        for label in rows:
            share_y([axes for (row, _), axes in zip(cells, grid, strict=True) if row == label])
        headed(figure, title)
        spelt_out(figure, short)
        return png(figure, 140)


def grid_of(count: int, columns: int, characters: int = 20) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, in so many columns; a single one is larger.

    Args:
      count: of panels.
      columns: of them.
      characters: of the longest name at a curve's end, to which the width is fitted.
    """
    rows = -(-count // columns)
    width, height = (6.8, 4.8) if count == 1 else (3.6, 3.2) if columns < 3 else (3.2, 2.7)
    width += 0.1 + 0.075 * max(characters, 12)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def share_y(row: Sequence[Axes]) -> None:
    """Gives panels one range of y, that of all of them; an axis of all says no more than one."""
    ends = [axes.get_ylim() for axes in row]
    for axes in row:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def draw_training(curves: Mapping[float, Mapping[str, Sequence[float]]], title: str) -> bytes:
    """A PNG of loss by step, a panel a learning rate, a curve a method; none where none was run.

    Args:
      curves: by learning rate and method, the loss at evenly spaced steps from the first to the
        last of a training, or to where it was stopped.
      title: above all.
    """
    short = shortened(name for named in curves.values() for name in named)
    longest = max((len(x) for named in curves.values() for x in named.values()), default=1)
    by_rate = {
        rate: [
            Curve(name, [(1 + i) / longest for i in range(len(losses))], losses)
            for name, losses in named.items()
        ]
        for rate, named in curves.items()
    }
    with matplotlib.rc_context(STYLE):
        figure, row = grid_of(len(curves), len(curves), max(map(len, short.values()), default=0))
        for axes, (rate, own) in zip(row, by_rate.items(), strict=True):
            span = span_of(curve for some in by_rate.values() for curve in some)
            draw(axes, own, span, short, linewidth=1.3, markevery=max(1, longest // 6))
            for curve in own:
                if len(curve.x) < longest:  # it was stopped
                    axes.plot(curve.x[-1:], curve.y[-1:], "kx", markersize=9)
            axes.set_title(f"peak learning rate {rate:g}", loc="left", fontsize=11)
            axes.set_xlabel("share of the training")
            axes.grid(axis="y", color="0.9", linewidth=0.8)
        share_y(row)
        row[0].set_ylabel("training loss (nats)")
        headed(figure, title)
        spelt_out(figure, short)
        return png(figure, 110)


def plot_by_depth(records: Records, train_length: int, title: str) -> bytes:
    """A PNG of a heat map a method: the share retrieved, by length and depth of the needle."""
    chosen = [r for r in records if r["metric"] == "retrieved_by_place"]
    methods = list(dict.fromkeys(r["method"] for r in chosen))
    lengths = sorted({r["length"] for r in chosen})
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(3.0 * columns + 1.2, 2.6 * rows + 0.8), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(methods) :]:
            panel.set_axis_off()
        for method, panel in zip(methods, panels.flat, strict=False):
            grid = np.full((DEPTHS, len(lengths)), np.nan)
            for column, length in enumerate(lengths):
                for r in chosen:
                    if (r["method"], r["length"]) == (method, length):
                        low, high = r["positions"]  # a part of as many as there are depths
                        grid[min(round(low / (high - low)), DEPTHS - 1), column] = r["value"]
            image = panel.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap="viridis")
            panel.set_title(textwrap.fill(method, 28), fontsize=10)
            panel.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45)
            panel.tick_params(labelbottom=True)
            panel.set_yticks([-0.5, DEPTHS / 2 - 0.5, DEPTHS - 0.5], ["0 %", "50 %", "100 %"])
            inside = sum(length <= train_length for length in lengths)
            panel.axvline(inside - 0.5, color="white", linewidth=1, linestyle=(0, (4, 4)))
        figure.colorbar(image, ax=panels, label="retrieved", shrink=0.8)
        figure.supxlabel(f"length (tokens); trained at {train_length:,}, left of the dashes")
        figure.supylabel(textwrap.fill("depth of the needle, of all where it may be", 26 * rows))
        figure.suptitle(textwrap.fill(title, 34 * columns), fontsize=12)
        return png(figure, 160)


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG's bytes, the names of its curves pushed apart."""
    settle(figure)
    out = io.BytesIO()
    figure.savefig(out, dpi=dpi, format="png")
    return out.getvalue()


def length_axis(
    axes: Axes, ticks: Mapping[Any, str], train_length: int, mark: str, **text: Any
) -> None:
    """A log axis with these ticks, a dashed line at the training length and its `mark` beside it.

    Args:
      axes: to be changed.
      ticks: labels by position.
      train_length: where the line is.
      mark: what it says.
      **text: of the ticks' labels, for Matplotlib.
    """
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [ticks[x] for x in sorted(ticks)], **text)
    axes.minorticks_off()
    axes.axvline(train_length, color="0.5", linewidth=1, linestyle=(0, (4, 4)))
    axes.annotate(
        mark, (train_length, 1.0), (4, -2), color="0.4", fontsize=9,
        xycoords=("data", "axes fraction"), textcoords="offset points", va="top", gid=MARK,
    )  # fmt: skip
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def length_ticks(axes: Axes, lengths: Sequence[float], train_length: int) -> None:
    """An axis of lengths, small enough to stand beside others."""
    ticks = {n: f"{n:,}" for n in lengths}
    length_axis(axes, ticks, train_length, f"L = {train_length}", fontsize=9)
    axes.set_xlabel("length (tokens)")
