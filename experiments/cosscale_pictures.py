"""The picture of `experiments.cosscale_sweep`."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.windows import effective_window, share_by_distance
from lenext.reporting.pictures import COLOURS, STYLE, length_ticks, png


def draw_scales(content: dict[str, Any], scales: Mapping[str, int], kept: int, title: str) -> bytes:
    """A PNG of four: weight by distance, effective windows by c, entropy and loss by length.

    Args:
      content: of cosscale_sweep.json.
      scales: c of each method that has one; softmax is drawn in black, dashed.
      kept: the c whose weights are looked at under every c.
      title: the models.
    """
    train_length = content["config"]["data"]["train_length"]
    looked_at = {run["name"]: run for run in content["runs"] if "window" in run}
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(scales)))
    # Every second one with gaps, through which a neighbour that coincides is seen.
    dashes = [("-", (0, (3, 1.5)))[index % 2] for index in range(len(scales))]
    style: dict[str, dict[str, Any]] = {
        method: {"color": colour, "label": f"c = {c}", "linewidth": 2, "linestyle": dash}
        for (method, c), colour, dash in zip(scales.items(), colours, dashes, strict=True)
    }
    style["softmax"] = {"color": "black", "label": "softmax", "linewidth": 2, "linestyle": "--"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 8.6), layout="constrained")
        (profile, window), (entropy, loss) = figure.subplots(2, 2)
        _draw_profiles(profile, looked_at, style, train_length)
        _draw_windows(window, looked_at, scales, kept)
        for axes, metric, what in (
            (entropy, "entropy", "row entropy, mean of layers (nats)"),
            (loss, "loss", "loss (nats)"),
        ):
            chosen = [r for r in content["records"] if r["metric"] == metric]
            lengths = sorted({r["length"] for r in chosen})
            values = {(r["method"], r["length"]): r["value"] for r in chosen}
            for method in looked_at:
                curve = [values[method, n] for n in lengths]
                axes.plot(lengths, curve, marker="o", markersize=4, **style[method])
            if metric == "entropy":
                axes.plot(lengths, np.log(lengths), ":", color="0.5", label="all keys alike")
            length_ticks(axes, lengths, train_length)
            axes.set_ylabel(what)
        handles, labels = entropy.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", frameon=False, title="trained with"
        )
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        return png(figure, 110)


def _draw_profiles(
    axes: Axes,
    looked_at: Mapping[str, dict[str, Any]],
    style: dict[str, dict[str, Any]],
    train_length: int,
) -> None:
    length = looked_at["softmax"]["window_length"]
    distance = np.arange(length)
    pairs = np.where(distance == 0, length, 2 * (length - distance))
    x = np.maximum(distance, 0.5)  # 0 has no place on a log axis: one doubling before 1
    for method, run in looked_at.items():
        share = np.mean(run["share_by_distance"], axis=0)
        axes.plot(x, share * length / pairs, **style[method])
    axes.axhline(1 / length, linestyle=":", color="0.5")
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 2)
    ticks = [2**i for i in range(length.bit_length())]
    length_ticks(axes, [0.5, *ticks], train_length)
    axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)])
    axes.set_xlabel("distance |Δ| (tokens)")
    axes.set_ylabel(f"mean weight of a key at length {length}")


def _draw_windows(
    axes: Axes, looked_at: Mapping[str, dict[str, Any]], scales: Mapping[str, int], kept: int
) -> None:
    windows = {method: run["window"] for method, run in looked_at.items()}
    (under,) = (run["kept"] for run in looked_at.values() if "kept" in run)
    length = looked_at["softmax"]["window_length"]
    uniform = effective_window(share_by_distance(np.full((1, 1, 1, length, length), 1 / length)))
    first = min(scales.values()) / 2
    for layer in range(len(windows["softmax"])):
        colour = COLOURS[layer + 1]
        line = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2}
        c = list(scales.values())
        axes.plot(c, [windows[m][layer] for m in scales], **line, label=f"layer {layer + 1}")
        axes.plot(c, [under[m][layer] for m in scales], **line, linestyle="--")
        softmax = windows["softmax"][layer]
        axes.plot([first], [softmax], "D", color=colour, markersize=9 - 2 * layer)
    axes.axhline(uniform[0], linestyle=":", color="0.5")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([first, *scales.values()], ["softmax", *map(str, scales.values())])
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_xlabel("c")
    axes.set_ylabel("window with 90 % of the weight (tokens)")
    handles, _ = axes.get_legend_handles_labels()
    handles += [
        Line2D([], [], color="0.3", linewidth=2, label="trained with this c"),
        Line2D([], [], color="0.3", linewidth=2, linestyle="--", label=f"trained with c = {kept}"),
        Line2D([], [], color="0.5", linestyle=":", label="all keys alike"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, ncols=2)
