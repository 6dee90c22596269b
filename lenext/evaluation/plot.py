"""The picture of a sweep: a metric against length, a line a method."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lenext.evaluation.report import label

# Okabe and Ito's colours, told apart by colour-blind readers too; then again with other dashes.
COLOURS = ["#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"]
DASHES = ["-", "--", ":", "-."]


def plot(records: Sequence[dict[str, Any]], metric: str, train_length: int, title: str) -> bytes:
    """A PNG of `metric` against length (log axis) with 95 % bands, the training length marked."""
    chosen = [r for r in records if r["metric"] == metric]
    lengths = sorted({r["length"] for r in chosen})
    curves: dict[str, list[dict[str, Any]]] = {}
    for record in chosen:
        curves.setdefault(record["method"], []).append(record)
    order = list(curves)
    with matplotlib.rc_context(
        {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(9.0, 5.0), layout="constrained")
        axes = figure.add_subplot()
        # The legend follows the curves' ends from top to bottom, so the eye need not search.
        ends = sorted(curves, key=lambda m: max(curves[m], key=lambda r: r["length"])["value"])
        for method in reversed(ends):
            curve = sorted(curves[method], key=lambda r: r["length"])
            index = order.index(method)
            colour = COLOURS[index % len(COLOURS)]
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            x = [r["length"] for r in curve]
            axes.plot(
                x, [r["value"] for r in curve], dash, color=colour, marker="o", markersize=4,
                linewidth=2, label=label(curve[0]),
            )  # fmt: skip
            low, high = zip(*(r["interval"] for r in curve), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.axvline(train_length, color="0.5", linewidth=1, linestyle=(0, (4, 4)))
        axes.annotate(
            f"trained at {train_length:,}", (train_length, 1.0), (4, -2), color="0.4", fontsize=9,
            xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
        )  # fmt: skip
        axes.set_xlabel("length (tokens)")
        axes.set_ylabel(f"{metric} ({chosen[0]['protocol']})")
        axes.set_title(title, loc="left", fontsize=12)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        out = io.BytesIO()
        figure.savefig(out, dpi=160, format="png")
    return out.getvalue()
