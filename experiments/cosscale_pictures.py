"""The picture of `experiments.cosscale_sweep`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.windows import effective_window, share_by_distance
from lenext.reporting.curves import Curve, draw, guide, headed, panels, span_of
from lenext.reporting.pictures import STYLE, length_ticks, png, share_y
from lenext.reporting.styles import COLOURS, SOLID, Style

FAINTEST = 1e-8  # weight that is still shown


def draw_scales(content: dict[str, Any], scales: Mapping[str, int], kept: int, title: str) -> bytes:
    """A PNG: weight by distance, entropy and loss by length, and effective windows by c.

    Args:
      content: of cosscale_sweep.json.
      scales: c of each method that has one; softmax is drawn beside them.
      kept: the c whose weights are looked at under every c.
      title: the models.
    """
    train_length = content["config"]["data"]["train_length"]
    looked_at = {run["name"]: run for run in content["runs"] if "window" in run}
    short = {method: f"c = {c}" for method, c in scales.items()}
    groups = list(panels(dict.fromkeys(looked_at, ""), {}).values())
    wide = range(len(groups))
    places: list[Any] = [[f"{row} {i}" for i in wide] for row in ("profile", "entropy", "loss")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * max(2, len(groups)), 12.4), layout="constrained")
        grid = figure.subplot_mosaic([*places, ["window"] * len(groups)])
        row = [grid[f"profile {i}"] for i in wide]
        _draw_profiles(row, groups, looked_at, short, train_length)
        for metric, what in (
            ("entropy", "row entropy,\nmean of layers (nats)"),
            ("loss", "loss (nats)"),
        ):
            chosen = [r for r in content["records"] if r["metric"] == metric]
            lengths = sorted({r["length"] for r in chosen})
            values = {(r["method"], r["length"]): r["value"] for r in chosen}
            curves = {m: Curve(m, lengths, [values[m, n] for n in lengths]) for m in looked_at}
            row = [grid[f"{metric} {i}"] for i in wide]
            for axes, group in zip(row, groups, strict=True):
                length_ticks(axes, lengths, train_length)
                draw(axes, [curves[m] for m in group], span_of(curves.values()), short)
                if metric == "entropy":
                    guide(axes, lengths, np.log(lengths).tolist(), "all keys alike")
            share_y(row)
            row[0].set_ylabel(what)
        _draw_windows(grid["window"], looked_at, scales, kept)
        headed(figure, title)
        return png(figure, 110)


def _draw_profiles(
    row: Sequence[Axes],
    groups: Sequence[Sequence[str]],
    looked_at: Mapping[str, dict[str, Any]],
    short: Mapping[str, str],
    train_length: int,
) -> None:
    length = looked_at["softmax"]["window_length"]
    distance = np.arange(length)
    pairs = np.where(distance == 0, length, 2 * (length - distance))
    x = np.maximum(distance, 0.5).tolist()  # 0 has no place on a log axis: one doubling before 1
    ticks = [2**i for i in range(length.bit_length())][::-2][::-1]
    curves = {}
    for method, run in looked_at.items():
        share = np.mean(run["share_by_distance"], axis=0) * length / pairs
        curves[method] = Curve(method, x, np.maximum(share, FAINTEST / 10).tolist())
    span = span_of(curves.values(), log=True)
    for axes, group in zip(row, groups, strict=True):
        length_ticks(axes, [0.5, *ticks], train_length)
        axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)])
        axes.set_yscale("log")
        axes.set_ylim(FAINTEST, 2)
        own = [curves[method] for method in group]
        draw(axes, own, span, short, log=True, linewidth=1.3, markersize=3.5, markevery=0.12)
        guide(axes, [0.5, length], [1 / length] * 2, "all keys alike")
        axes.set_xlabel("distance |Δ| (tokens)")
    row[0].set_ylabel(f"mean weight of a key\nat length {length}")


def _draw_windows(
    axes: Axes, looked_at: Mapping[str, dict[str, Any]], scales: Mapping[str, int], kept: int
) -> None:
    windows = {method: run["window"] for method, run in looked_at.items()}
    (under,) = (run["kept"] for run in looked_at.values() if "kept" in run)
    length = looked_at["softmax"]["window_length"]
    uniform = effective_window(share_by_distance(np.full((1, 1, 1, length, length), 1 / length)))
    first, c = min(scales.values()) / 2, list(scales.values())
    curves, styles = [], {}
    for layer, softmax in enumerate(windows["softmax"]):
        colour, marker = COLOURS[layer % len(COLOURS)], "os^Dv"[layer % 5]
        for found, how, dash in (
            (windows, "", SOLID), (under, f", from c = {kept}", (0, (4, 1.5))),
        ):  # fmt: skip
            name = f"layer {layer + 1}{how}"
            curves.append(Curve(name, c, [found[m][layer] for m in scales]))
            styles[name] = Style(colour, dash, marker)
        axes.plot([first], [softmax], marker, color=colour, markersize=11 - 2 * layer)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    draw(axes, curves, span_of(curves, log=True), {}, log=True, styles=styles)
    guide(axes, [first, c[-1]], [uniform[0]] * 2, "all keys alike")
    axes.set_xticks([first, *c], ["softmax", *map(str, c)])
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_xlabel("c")
    axes.set_ylabel("window with 90 %\nof the weight (tokens)")
