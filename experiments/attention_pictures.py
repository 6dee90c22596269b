"""The pictures of `experiments.attention_maps`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lenext.evaluation.plot import COLOURS

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
LEVELS = 10.0 ** np.arange(-4, 0.1, 0.5)  # of weights: few, so that colours can be read back


class Strip(NamedTuple):
    """Some rows of a method's maps.

    Attributes:
      label: the method.
      maps: of one sequence.
      first: place of its first key in the document.
    """

    label: str
    maps: Float[np.ndarray, "layers 1 N R S"]
    first: int


def by_layer(heads: Sequence[dict[str, Any]], method: str, figure: str, length: int) -> list[float]:
    """A figure of each layer at a length, mean over its heads."""
    chosen = [r for r in heads if (r["method"], r["length"]) == (method, length)]
    return [
        float(np.mean([r[figure] for r in chosen if r["layer"] == layer]))
        for layer in sorted({r["layer"] for r in chosen})
    ]


def draw_maps(strips: Sequence[Strip], title: str) -> bytes:
    """A PNG: a strip a method and layer, queries down, keys across; the first head of each."""
    layers, rows = strips[0].maps.shape[0], strips[0].maps.shape[3]
    length, start = strips[-1].maps.shape[4], strips[0].first
    steps = matplotlib.colormaps["magma_r"](np.linspace(0.15, 1, len(LEVELS) - 1))
    colours = ListedColormap(["white", *steps])
    norm = BoundaryNorm(LEVELS, colours.N, extend="min")
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(
            figsize=(3.6 * layers + 1.9, 0.98 * len(strips) + 1.2), layout="constrained"
        )
        grid = figure.subplots(len(strips), layers, sharex=True, sharey=True, squeeze=False)
        for axes_row, strip in zip(grid, strips, strict=True):
            for axes, maps in zip(axes_row, strip.maps[:, 0, 0], strict=True):
                axes.imshow(
                    maps, cmap=colours, norm=norm, aspect="auto", interpolation="nearest",
                    extent=(strip.first, strip.first + maps.shape[1], start + rows, start),
                )  # fmt: skip
                axes.set_facecolor("0.9")
                axes.set_xlim(0, length)
                entropy = -np.sum(maps * np.log(np.maximum(maps, 1e-30)), axis=-1).mean()
                axes.text(
                    0.995, 0.95, f"H = {entropy:.2f}", transform=axes.transAxes, fontsize=8,
                    ha="right", va="top", bbox={"color": "white", "alpha": 0.8, "pad": 1},
                )  # fmt: skip
                axes.set_xticks(range(0, length + 1, rows))
                axes.set_yticks([start, start + rows // 2, start + rows])
            axes_row[0].set_ylabel(strip.label, rotation=0, ha="right", va="center", labelpad=8)
        for layer, axes in enumerate(grid[0]):
            axes.set_title(f"layer {layer + 1}", fontsize=11)
        for axes in grid[-1]:
            axes.set_xlabel("key (position)")
        bar = figure.colorbar(
            ScalarMappable(norm, colours), ax=grid, fraction=0.02, pad=0.01, label="weight"
        )
        bar.set_ticks(LEVELS[::2].tolist(), labels=["0.0001", "0.001", "0.01", "0.1", "1"])
        figure.supylabel("query (position)", fontsize=10)
        figure.suptitle(
            f"Attention of {rows} bytes of a validation document, alone and in the middle of "
            f"{length}\n{title}; H: mean row entropy in nats",
            fontsize=12, x=0.01, ha="left",
        )  # fmt: skip
        return _png(figure, 130)


def draw_layers(heads: Sequence[dict[str, Any]], train_length: int, title: str) -> bytes:
    """A PNG of each layer's entropy (above) and dilution (below) against length."""
    methods = list(dict.fromkeys(r["method"] for r in heads))
    lengths = sorted({r["length"] for r in heads})
    layers = 1 + max(r["layer"] for r in heads)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * layers + 2.4, 6.4), layout="constrained")
        grid = figure.subplots(2, layers, sharex=True, sharey="row", squeeze=False)
        for axes_row, name in zip(grid, ("entropy", "dilution"), strict=True):
            for layer, axes in enumerate(axes_row):
                for index, method in enumerate(methods):
                    curve = [by_layer(heads, method, name, n)[layer] for n in lengths]
                    axes.plot(lengths, curve, label=method, **_curve(index))
                _length_axis(axes, lengths, train_length)
        for layer, axes in enumerate(grid[0]):
            axes.set_title(f"layer {layer + 1}", fontsize=11)
            axes.plot(lengths, np.log(lengths), ":", color="0.5", label="all keys alike: ln n")
            grid[1, layer].tick_params(axis="x", labelsize=9)
        grid[0, 0].set_ylim(0, 1.08 * max(r["entropy"] for r in heads))
        grid[0, 0].set_ylabel("row entropy (nats)")
        grid[1, 0].set_ylabel(f"weight at |Δ| ≥ {train_length}")
        for axes in grid[1]:
            axes.set_xlabel("length (tokens)")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(f"Entropy and dilution by length\n{title}", fontsize=12, x=0.01, ha="left")
        return _png(figure, 130)


def draw_scales(
    found: dict[str, Any], scales: Mapping[str, int], kept: int, train_length: int, title: str
) -> bytes:
    """A PNG of four: weight by distance, effective windows by c, entropy and loss by length.

    Args:
      found: "cosscale" of attention_maps.json.
      scales: c of each method that has one; others are drawn in black, dashed.
      kept: the c whose weights are looked at under every c.
      train_length: L.
      title: the models.
    """
    methods = list(found["share_by_distance"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(scales)))
    # Every second one with gaps, through which a neighbour that coincides is seen.
    dashes = [("-", (0, (3, 1.5)))[index % 2] for index in range(len(scales))]
    style: dict[str, dict[str, Any]] = {
        method: {"color": colour, "label": f"c = {c}", "linewidth": 2, "linestyle": dash}
        for (method, c), colour, dash in zip(scales.items(), colours, dashes, strict=True)
    }
    for method in methods:
        style.setdefault(
            method, {"color": "black", "label": method, "linewidth": 2, "linestyle": "--"}
        )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 8.6), layout="constrained")
        (profile, window), (entropy, loss) = figure.subplots(2, 2)
        _draw_profiles(profile, found, style, train_length)
        _draw_windows(window, found, scales, kept)
        lengths = sorted({r["length"] for r in found["heads"]})
        values = {
            (r["method"], r["length"]): r["value"]
            for r in found["records"]
            if r["metric"] == "loss"
        }
        for method in methods:
            curve = [np.mean(by_layer(found["heads"], method, "entropy", n)) for n in lengths]
            entropy.plot(lengths, curve, marker="o", markersize=4, **style[method])
            curve = [values[method, n] for n in lengths]
            loss.plot(lengths, curve, marker="o", markersize=4, **style[method])
        entropy.plot(lengths, np.log(lengths), ":", color="0.5", label="all keys alike")
        for axes, what in ((entropy, "row entropy, mean of layers (nats)"), (loss, "loss (nats)")):
            _length_axis(axes, lengths, train_length)
            axes.set_xlabel("length (tokens)")
            axes.set_ylabel(what)
        handles, labels = entropy.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", frameon=False, title="trained with"
        )
        figure.suptitle(f"CosScale, c·cos(q, k)\n{title}", fontsize=12, x=0.01, ha="left")
        return _png(figure, 110)


def _draw_profiles(
    axes: Axes, found: dict[str, Any], style: dict[str, dict[str, Any]], train_length: int
) -> None:
    length = found["length"]
    distance = np.arange(length)
    pairs = np.where(distance == 0, length, 2 * (length - distance))
    x = np.maximum(distance, 0.5)  # 0 has no place on a log axis: one doubling before 1
    for method, share in found["share_by_distance"].items():
        axes.plot(x, np.mean(share, axis=0) * length / pairs, **style[method])
    axes.axhline(1 / length, linestyle=":", color="0.5")
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 2)
    ticks = [2**i for i in range(length.bit_length())]
    _length_axis(axes, [0.5, *ticks], train_length)
    axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)])
    axes.set_xlabel("distance |Δ| (tokens)")
    axes.set_ylabel(f"mean weight of a key at length {length}")


def _draw_windows(axes: Axes, found: dict[str, Any], scales: Mapping[str, int], kept: int) -> None:
    others = [method for method in found["window"] if method not in scales]
    first = min(scales.values()) / 2
    for layer in range(len(found["window"][others[0]])):
        colour = COLOURS[layer + 1]
        line = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2}
        c = list(scales.values())
        axes.plot(
            c, [found["window"][m][layer] for m in scales], **line, label=f"layer {layer + 1}"
        )
        axes.plot(c, [found["kept"][m][layer] for m in scales], **line, linestyle="--")
        for method in others:
            value = found["window"][method][layer]
            axes.plot([first], [value], "D", color=colour, markersize=9 - 2 * layer)
    axes.axhline(found["uniform"], linestyle=":", color="0.5")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([first, *scales.values()], [*others, *map(str, scales.values())])
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


def _curve(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--")[index // len(COLOURS) % 2],
        "marker": "o", "markersize": 4, "linewidth": 2,
    }  # fmt: skip


def _length_axis(axes: Axes, lengths: Sequence[float], train_length: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.axvline(train_length, color="0.5", linewidth=1, linestyle=(0, (4, 4)))
    axes.annotate(
        f"L = {train_length}", (train_length, 1.0), (3, -1), color="0.4", fontsize=9,
        xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
    )  # fmt: skip
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _png(figure: Figure, dpi: int) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, dpi=dpi, format="png")
    return out.getvalue()
