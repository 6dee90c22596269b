"""The pictures of `experiments.attention_maps`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from lenext.reporting.pictures import STYLE, length_ticks, png, style_of

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
        return png(figure, 130)


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
                    axes.plot(lengths, curve, label=method, **style_of(index))
                length_ticks(axes, lengths, train_length)
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
        return png(figure, 130)
