"""Pictures of pooled records: several metrics against length, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lenext.evaluation.plot import COLOURS, DASHES, STYLE, length_axis, png

Records = Sequence[dict[str, Any]]


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
