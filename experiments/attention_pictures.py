"""The pictures of `experiments.attention_maps`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from lenext.reporting.curves import (
    Curve,
    draw,
    guide,
    headed,
    shortened,
    span_of,
    spelt_out,
)
from lenext.reporting.pictures import STYLE, grid_of, length_ticks, png, share_y

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
    short = shortened(methods)
    with matplotlib.rc_context(STYLE):
        figure, grid = grid_of(2 * layers, layers, max(map(len, short.values())))
        for name, row in (("entropy", grid[:layers]), ("dilution", grid[layers:])):
            curves = {
                method: [by_layer(heads, method, name, n) for n in lengths] for method in methods
            }
            by_panel = [
                [Curve(method, lengths, [x[layer] for x in curves[method]]) for method in methods]
                for layer in range(layers)
            ]
            for layer, axes in enumerate(row):
                length_ticks(axes, lengths, train_length)
                span = span_of(curve for panel in by_panel for curve in panel)
                draw(axes, by_panel[layer], span, short)
                if name == "entropy":
                    guide(axes, lengths, np.log(lengths).tolist(), "all keys alike: ln n")
                    axes.set_title(f"layer {layer + 1}", loc="left", fontsize=11)
                    axes.set_xlabel("")
            share_y(row)
        grid[0].set_ylabel("row entropy (nats)")
        grid[layers].set_ylabel(f"weight at |Δ| ≥ {train_length}")
        headed(figure, f"Entropy and dilution by length\n{title}")
        spelt_out(figure, short)
        return png(figure, 130)
