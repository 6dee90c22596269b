"""The pictures of a sweep: a metric by length, loss by position, what is retrieved by depth."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lenext.reporting.records import DEPTHS
from lenext.reporting.tables import label

# Okabe and Ito's colours, told apart by colour-blind readers too; then again with other dashes.
COLOURS = ["#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"]
DASHES = ["-", "--", ":", "-."]

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}

Records = Sequence[dict[str, Any]]


def plot(records: Records, metric: str, train_length: int, title: str) -> bytes:
    """A PNG of `metric` against length (log axis) with 95 % bands, the training length marked."""
    chosen = [r for r in records if r["metric"] == metric]
    ticks = {r["length"]: f"{r['length']:,}" for r in chosen}
    ylabel = f"{metric} ({chosen[0]['protocol']})"
    return _curves(
        chosen, lambda r: r["length"], ticks, ("length (tokens)", ylabel), train_length, title
    )


def plot_by_position(records: Records, train_length: int, title: str) -> bytes:
    """A PNG of loss against position at the longest length; each bucket stands at its end."""
    found = [r for r in records if r["metric"] == "loss_by_position"]
    longest = max(r["length"] for r in found)
    chosen = [r for r in found if r["length"] == longest]
    ticks = {r["positions"][1]: f"{r['positions'][1]:,}" for r in chosen}
    labels = "position (tokens; upper end of a bucket)", f"loss at length {longest:,}"
    return _curves(chosen, lambda r: r["positions"][1], ticks, labels, train_length, title)


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
                own = [r for r in chosen if (r["method"], r["length"]) == (method, length)]
                end = max(r["positions"][1] for r in own)
                for r in own:
                    grid[sum(r["positions"]) * DEPTHS // (2 * end), column] = r["value"]
            image = panel.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap="viridis")
            panel.set_title(method, fontsize=10)
            panel.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45)
            panel.tick_params(labelbottom=True)
            panel.set_yticks([-0.5, DEPTHS / 2 - 0.5, DEPTHS - 0.5], ["0 %", "50 %", "100 %"])
            inside = sum(length <= train_length for length in lengths)
            panel.axvline(inside - 0.5, color="white", linewidth=1, linestyle=(0, (4, 4)))
        figure.colorbar(image, ax=panels, label="retrieved", shrink=0.8)
        figure.supxlabel(f"length (tokens); trained at {train_length:,}, left of the dashes")
        figure.supylabel("depth of the needle, of all where it may be")
        figure.suptitle(title, fontsize=12)
        return png(figure, 160)


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG's bytes."""
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
        xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
    )  # fmt: skip
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _curves(
    records: Records,
    x_of: Callable[[dict[str, Any]], int],
    ticks: Mapping[Any, str],
    labels: tuple[str, str],
    train_length: int,
    title: str,
) -> bytes:
    curves: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        curves.setdefault(record["method"], []).append(record)
    order = list(curves)
    with matplotlib.rc_context(STYLE):
        # The legend of many curves is taller than the axes need be.
        height = max(5.0, 0.28 * len(curves) + 1.0)
        figure = Figure(figsize=(9.0, height), layout="constrained")
        axes = figure.add_subplot()
        # The legend follows the curves' ends from top to bottom, so the eye need not search.
        ends = sorted(curves, key=lambda m: max(curves[m], key=x_of)["value"])
        for method in reversed(ends):
            curve = sorted(curves[method], key=x_of)
            index = order.index(method)
            colour = COLOURS[index % len(COLOURS)]
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            x = [x_of(r) for r in curve]
            if len(x) == 1:  # points of one length stand side by side
                x = [x[0] * (1 + 0.02 * (index - (len(order) - 1) / 2))]
            axes.plot(
                x, [r["value"] for r in curve], dash, color=colour, marker="o", markersize=4,
                linewidth=2, label=label(curve[0]),
            )  # fmt: skip
            # Of one document there is no interval: the band has no width there.
            bands = [r["interval"] or (r["value"], r["value"]) for r in curve]
            low, high = zip(*bands, strict=True)
            if len(x) == 1:
                axes.vlines(x, low, high, color=colour, linewidth=2)
            axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        length_axis(axes, ticks, train_length, f"trained at {train_length:,}")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title, loc="left", fontsize=12)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return png(figure, 160)


def draw_metrics(
    records: Records, panels: Mapping[str, str], train_length: int, title: str
) -> bytes:
    """A PNG of a panel a metric, a curve a method with its 95 % band, against length.

    Args:
      records: pooled.
      panels: what stands at the axis, by metric.
      train_length: marked.
      title: above all.
    """
    methods = list(dict.fromkeys(r["method"] for r in records))
    columns = 2
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * columns + 2.4, 3.8 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (metric, label) in zip(grid.flat, panels.items(), strict=False):
            chosen = [r for r in records if r["metric"] == metric and not r["positions"]]
            for index, method in enumerate(methods):
                curve = sorted(
                    (r for r in chosen if r["method"] == method), key=lambda r: r["length"]
                )
                x = [r["length"] for r in curve]
                low, high = zip(*(r["interval"] for r in curve), strict=True)
                style = style_of(index)
                axes.plot(x, [r["value"] for r in curve], label=method, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)
            length_ticks(axes, sorted({r["length"] for r in chosen}), train_length)
            axes.set_ylabel(label)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        return png(figure, 130)


def draw_training(panels: Mapping[float, Mapping[str, Sequence[float]]], title: str) -> bytes:
    """A PNG of loss by step, a panel a learning rate, a curve a method; none where none was run.

    Args:
      panels: by learning rate and method, the loss at evenly spaced steps from the first to the
        last of a training, or to where it was stopped.
      title: above all.
    """
    methods = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    longest = max((len(x) for curves in panels.values() for x in curves.values()), default=1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0 * len(panels) + 2.0, 3.8), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (rate, curves) in zip(row, panels.items(), strict=True):
            for name, losses in curves.items():
                style = style_of(methods.index(name)) | {"marker": "", "linewidth": 1.5}
                share = [(1 + i) / longest for i in range(len(losses))]
                axes.plot(share, losses, label=name, **style)
                if len(losses) < longest:  # it was stopped
                    axes.plot(share[-1:], losses[-1:], "x", color=style["color"], markersize=9)
            axes.set_title(f"peak learning rate {rate:g}", fontsize=11)
            axes.set_xlabel("share of the training")
            axes.grid(axis="y", color="0.9", linewidth=0.8)
        row[0].set_ylabel("training loss (nats)")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        return png(figure, 110)


def style_of(index: int) -> dict[str, Any]:
    """Of the curve of that number: colours first, then dashes."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "marker": "o", "markersize": 4, "linewidth": 2,
    }  # fmt: skip


def length_ticks(axes: Axes, lengths: Sequence[float], train_length: int) -> None:
    """An axis of lengths, small enough to stand beside others."""
    ticks = {n: f"{n:,}" for n in lengths}
    length_axis(axes, ticks, train_length, f"L = {train_length}", fontsize=9)
    axes.set_xlabel("length (tokens)")
