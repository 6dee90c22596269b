"""What the benchmarks share: interleaved timing, where figures come from, tables and pictures."""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lenext.files import write_atomically
from lenext.parallel.memory import MALLOC, needs_of
from lenext.reporting import curves
from lenext.reporting.pictures import STYLE, grid_of, png, share_y
from lenext.reporting.styles import BLUE
from lenext.workdirs.provenance import provenance

RESULTS = Path("experiments/results/benchmarks")
GEMM_SIZE = 2048
INSTALL_TORCH = ".venv/bin/python -m pip install -c requirements.txt torch"

Record = dict[str, Any]
Curves = Mapping[str, Sequence[tuple[float, float]]]


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], runs: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Times callables in rounds over all of them, so that whatever else goes on meets each alike.

    Rounds are those of `in_turn`, and each callable is called once, untimed, before it is timed:
    what has its memory and caches to win back from another one is not what a loop over it takes.
    (Timed cold and in a fixed order, one program at 4096 tokens took 40 ms in one place of the
    order and 62 in another, and torch's SDPA 49 or 80.)

    Args:
      candidates: by name; each returns when its work is done, not when it is under way.
      runs: rounds.
      warm_up: whether there are untimed calls. Compilation would fall into the first; to know what
        it takes, see `compiled` or `seconds_of`.

    Returns:
      Seconds of each round, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name in in_turn(candidates, runs):
        if warm_up:
            candidates[name]()
        times[name].append(seconds_of(candidates[name]))
    return times


def in_turn(names: Iterable[str], runs: int) -> Iterator[str]:
    """All names so many times, each round in an order of its own, the same in every process."""
    order, rng = list(names), random.Random(0)
    for _ in range(runs):
        rng.shuffle(order)
        yield from order


def seconds_of(call: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each one's median."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(seconds: Mapping[str, float], peer: str) -> dict[str, float | None]:
    """How many times as long as `peer` each takes; None where the peer was not timed."""
    if peer not in seconds:
        return dict.fromkeys(seconds)
    return {name: value / seconds[peer] for name, value in seconds.items()}


class Compiled(NamedTuple):
    """A compiled JAX function.

    Attributes:
      call: takes the arguments that it was compiled for.
      seconds: that tracing and compiling took.
      temp_bytes: that it holds beside arguments and outputs.
      peak_bytes: with them.
      text: the program.
    """

    call: Callable[..., Any]
    seconds: float
    temp_bytes: int
    peak_bytes: int
    text: str

    def bound(self, *arguments: Any) -> Callable[[], None]:
        """A call with these arguments, to be timed: it waits for the result."""

        def call() -> None:
            jax.block_until_ready(self.call(*arguments))

        return call


def compiled(
    function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compiles for `arguments`: arrays, or their `jax.ShapeDtypeStruct`s.

    What is already jitted stays as it is, so that its donations count. `options` are XLA's.
    """
    start = time.perf_counter()
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    call = jitted.lower(*arguments).compile(dict(options or {}))
    seconds = time.perf_counter() - start
    return Compiled(
        call, seconds, int(call.memory_analysis().temp_size_in_bytes), needs_of(call).peak,
        call.as_text(),
    )  # fmt: skip


def why_no_torch() -> str:
    """Why PyTorch is not compared with; "" where it is."""
    if importlib.util.find_spec("torch") is None:
        return f"torch not installed: {INSTALL_TORCH}"
    if jax.default_backend() != "cpu":
        return f"torch is compared with on CPUs only, and JAX runs on {jax.default_backend()} here"
    return ""


def gemm_rates(size: int = GEMM_SIZE, runs: int = 10) -> dict[str, float]:
    """Float32 GFLOP/s of JAX, and of torch if it is there, at a product of size x size matrices.

    The best of all runs: a bound is not to sink under what else the machine does.
    """
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    candidates: dict[str, Callable[[], Any]] = {"jax": lambda: product(x, x).block_until_ready()}
    if not why_no_torch():
        import torch  # pyright: ignore[reportMissingImports]

        y = torch.from_numpy(np.array(x))
        candidates["torch"] = lambda: y @ y
    times = interleaved(candidates, runs)
    return {name: 2 * size**3 / min(values) / 1e9 for name, values in times.items()}


def fingerprint(arrays: Any) -> str:
    """12 hex digits of a hash of a pytree of arrays: what went in."""
    digest = hashlib.sha256()
    for x in jax.tree.leaves(arrays):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:12]


def describe(
    config: Mapping[str, Any], inputs: Any, *, seeds: Sequence[int], tokens: int, steps: int
) -> dict[str, Any]:
    """Where a benchmark's figures come from, as JSON values; measures the rate of products too.

    Args:
      config: what was asked for.
      inputs: a pytree of the arrays that went in.
      seeds: that they were drawn with.
      tokens: of the largest call.
      steps: timed calls of each candidate.
    """
    found = provenance()
    found["hardware"]["load"] = os.getloadavg()[0]  # before, by whatever else runs here
    found["hardware"][MALLOC] = os.getenv(MALLOC, "")
    if not why_no_torch():
        import torch  # pyright: ignore[reportMissingImports]

        found["versions"]["torch"] = torch.__version__
        found["hardware"]["torch_threads"] = torch.get_num_threads()
    return found | {
        "config": dict(config),
        "seeds": list(seeds),
        "tokens": tokens,
        "steps": steps,
        "fingerprint": fingerprint(inputs),
        "gemm_gflops": gemm_rates(),
    }


def header(about: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before any figure: machine, versions, date, roofline."""
    hardware, versions = about["hardware"], about["versions"]
    device = hardware["cpu"] if hardware["backend"] == "cpu" else hardware["device_kind"]
    load = f"load {hardware['load']:.1f} before"
    if hardware[MALLOC]:
        load += f"; {MALLOC}={hardware[MALLOC]}"
    names = [f"{name} {versions[name]}" for name in ("python", "jax", "torch") if name in versions]
    lines = [
        f"- {device}, {hardware['cores']} cores ({hardware['backend']}), {load}; "
        f"{', '.join(names)}",
        f"- git {about['git']}, {about['time']}",
    ]
    if not about["steps"]:  # nothing was timed
        return lines
    rates = [f"{rate:,.0f} in {name}" for name, rate in about["gemm_gflops"].items()]
    return [
        *lines,
        f"- roofline: products of float32 matrices of {GEMM_SIZE} by {GEMM_SIZE}, GFLOP/s: "
        f"{', '.join(rates)}",
        f"- times are medians of {about['steps']} interleaved runs, each after a call that is "
        "not timed, unless said otherwise; compilation apart",
    ]


def number(value: float | None) -> str:
    """Three digits, or all before the point; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """As a number of them."""
    return number(None if seconds is None else 1e3 * seconds)


def megabytes(size: float | None) -> str:
    """Bytes as a number of MB, 2^20 each."""
    return number(None if size is None else size / 2**20)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> list[str]:
    """Lines of a Markdown table, all columns but the first `names` to the right."""
    return [
        f"| {' | '.join(headings)} |",
        "|" + "---|" * names + "---:|" * (len(headings) - names),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def write(
    results: Path,
    name: str,
    title: str,
    lines: Sequence[str],
    about: Mapping[str, Any],
    records: Sequence[Record],
    picture: bytes,
) -> None:
    """Writes NAME.md (title, header, `lines`), NAME.json and NAME.png, and says so."""
    results.mkdir(parents=True, exist_ok=True)
    text = "\n".join([f"# {title}", "", *header(about), "", *lines, ""])
    content = dict(about) | {"records": list(records)}
    write_atomically(results / f"{name}.md", text)
    write_atomically(results / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_atomically(results / f"{name}.png", picture)
    print(f"{text}\nresults: {results / name}.md, .json, .png")


def draw(
    panels: Mapping[str, Curves],
    labels: tuple[str, str],
    title: str,
    *,
    reference: Mapping[str, Curves] | None = None,
    log: bool = True,
) -> bytes:
    """A PNG of curves over a logarithmic axis.

    Args:
      panels: curves as points (x, y) by name, in panels by heading; many of them in several.
      labels: of the axes x and y.
      title: above all.
      reference: by panel, curves that are no measurement, as a roofline: grey and dashed.
      log: whether the other axis is logarithmic too, rather than one from 0.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if "softmax" in names:  # what others are compared with stands in every panel
        names = ["softmax", *(name for name in names if name != "softmax")]
    parts, short = curves.panels(dict.fromkeys(names, ""), {}), curves.shortened(names)
    cells = [(heading, part) for heading in panels for part in parts]
    found = {
        heading: [_curve(name, given[name]) for name in names if name in given]
        for heading, given in panels.items()
    }
    span = curves.span_of((curve for some in found.values() for curve in some), log=log)
    with matplotlib.rc_context(STYLE):
        columns = len(parts) if len(parts) > 1 else min(2, len(cells))
        figure, grid = grid_of(len(cells), columns, max(map(len, short.values())))
        for (heading, part), axes in zip(cells, grid, strict=True):
            ticks = sorted({x for points in panels[heading].values() for x, _ in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{x:,}" for x in ticks], fontsize=9)
            axes.minorticks_off()
            own = [curve for curve in found[heading] if curve.name in parts[part]]
            curves.draw(axes, own, span, short, log=log)
            for name, points in (reference or {}).get(heading, {}).items():
                bound = _curve(name, points)
                curves.guide(axes, bound.x, bound.y, name, (0, (4, 4)))
            if log:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_title(", ".join(filter(None, (heading, part))), loc="left", fontsize=11)
            axes.grid(axis="y", color="0.9", linewidth=0.8)
        share_y(grid)
        for axes in grid[::columns]:
            axes.set_ylabel(labels[1])
        for axes in grid[-columns:]:
            axes.set_xlabel(labels[0])
        curves.headed(figure, title)
        curves.spelt_out(figure, short)
        return png(figure, 140)


def _curve(name: str, points: Sequence[tuple[float, float]]) -> curves.Curve:
    x, y = zip(*sorted(points), strict=True)
    return curves.Curve(name, x, y)


def draw_bars(values: Mapping[str, Mapping[str, float]], label: str, title: str) -> bytes:
    """A PNG of horizontal bars by name, in panels by heading."""
    with matplotlib.rc_context(STYLE):
        tallest = max(len(bars) for bars in values.values())
        columns = min(len(values), 3)
        rows = -(-len(values) // columns)
        size = 5.0 * columns, 0.4 + rows * (1.2 + 0.5 * tallest)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(values) :]:
            axes.remove()
        for axes, (heading, bars) in zip(grid, values.items(), strict=False):
            drawn = axes.barh(list(bars), list(bars.values()), color=BLUE, height=0.6)
            axes.bar_label(drawn, [number(value) for value in bars.values()], padding=3)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.set_xlabel(label)
            axes.set_title(heading, loc="left", fontsize=11)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        return png(figure, 160)


def parser(documentation: str | None, *, runs: int) -> argparse.ArgumentParser:
    """Of the flags that all benchmarks take: --runs, --quick, --results."""
    found = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--runs", type=_count, default=runs, help=f"rounds (default {runs})")
    found.add_argument(
        "--quick", action="store_true", help="sizes of a minute, to see that it runs"
    )
    found.add_argument("--results", type=Path, default=RESULTS, help=f"folder (default {RESULTS})")
    return found


def counts(text: str) -> list[int]:
    """Whole numbers from "64,256", for argparse."""
    return [_count(word) for word in text.split(",")]


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of 1 and more")
    return int(text)
