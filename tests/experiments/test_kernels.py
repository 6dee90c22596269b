"""The benchmark of kernels: what it counts, by hand; what it compiles wants libtpu."""

import importlib.util
import json

import pytest

from experiments.benchmarks import kernels, measure
from experiments.benchmarks.kernels import Counted, Job, Visits, blocks_of, counted, in_tiles
from lenext.errors import UserError
from tests.training.common import REPOSITORY


def schedule(sizes, *, bodies=(), grid="(1, 8, 3)"):
    """A final schedule as the compiler prints it: blocks of these sizes, some of them labelled."""
    lines = ["= control target key start", "LB: loop body", "", f"iteration_bounds: {grid}"]
    at = 0
    for number, size in enumerate(sizes):
        for i in range(size):
            label = "PB" if number in bodies and i == 0 else "  "
            # The next block begins after the branch and its delay slots.
            branch = number not in bodies and number + 1 < len(sizes) and i == size - 5
            what = "%1 = sbr.rel (%p0) target = $region2" if branch else "%1 = vadd.f32 %2, %3"
            lines.append(
                f"{at:#6x} {label}: > {{ {what} }}" if at else "     0   :  { %1 = smov 3 }"
            )
            at += 1
    return "\n".join(lines)


def test_blocks_begin_at_targets_and_after_branches():
    assert blocks_of(schedule([20, 30, 40])) == [20, 30, 40]
    assert blocks_of(schedule([20, 30, 40, 10], bodies=(1,))) == [20, 70, 10]
    assert blocks_of(schedule([9])) == [9]


def test_counted_by_hand():
    """Two bodies, met 5 and 7 times; a sum begins and ends 3 times; 24 steps of the rest."""
    text = schedule([11, 8, 20, 100, 90, 30, 6], grid="(1, 8, 3)")
    visits = Visits([5, 7], 3)
    a_head = 5 * 100 + 7 * 90 + 3 * (20 + 30)
    assert counted(text, visits) == Counted(kernels.HEADS * a_head + 24 * (8 + 6), [100, 90])


def test_what_is_no_kernel_is_not_counted():
    with pytest.raises(ValueError, match="a kernel with a grid"):
        counted("    0   :  { %1 = smov 3 }", Visits([1], 1))


def test_tiles_by_hand():
    text = "\n".join(
        [
            "%inner.1 (p: f32[2]) -> f32[2] {",
            '  %a = f32[2] fusion(%p), backend_config={"estimated_cycles":"30"}',
            "}",
            "%inner.2 (p: f32[2]) -> f32[2] {",
            '  %b = f32[2] fusion(%p), backend_config={"estimated_cycles":"40"}',
            '  %c = f32[2] fusion(%b), backend_config={"estimated_cycles":"2"}',
            "}",
            "%block (p: f32[2]) -> f32[2] {",
            "  %d = f32[2] while(%p), condition=%test, body=%inner.1",
            "  %e = f32[2] while(%d), condition=%test, body=%inner.2",
            '  %f = f32[2] fusion(%e), backend_config={"estimated_cycles":"5"}',
            "}",
            "ENTRY %main (p: f32[2]) -> f32[2] {",
            "  %g = f32[2] while(%p), condition=%test, body=%block",
            '  ROOT %h = f32[2] fusion(%g), backend_config={"estimated_cycles":"1000"}',
            "}",
        ]
    )
    assert in_tiles(text, visited=10, blocks=4) == 1000 + 4 * 5 + 10 * 42


def test_tables_are_over_the_best_splash():
    def record(kind, name, turn, cycles):
        return {"kind": kind, "name": name, "pass": turn, "chip": "v5e", "cycles": cycles}

    lines = kernels.lines_of(
        [
            record("splash", "splash, blocks of 512", "forward", 8_000_000),
            record("splash", "splash, blocks of 1024", "forward", 5_000_000),
            record("splash", "splash, blocks of 1024", "backward", 20_000_000),
            record("own", "lssa", "forward", 10_000_000),
            record("tiles", "lssa", "forward", 90_000_000),
        ]
    )
    assert "estimate" in kernels.TITLE
    assert lines[0].startswith("Estimate: ")
    assert "| `lssa` | 10 (2.00) |" in lines
    assert "| `lssa`, XLA's tiles | 90 (18.00) |" in lines
    assert "| splash, blocks of 512 | 8 (1.60) |" in lines


def test_without_libtpu_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="libtpu not installed"):
        kernels.run(tmp_path, quick=True)


def test_what_is_compiled():
    assert kernels.jobs(quick=True) == [
        Job("splash", "splash, blocks of 512"), Job("own", "softmax"), Job("tiles", "softmax"),
    ]  # fmt: skip
    assert {job.name for job in kernels.jobs(quick=False) if job.kind == "own"} == {*kernels.OWN}


def test_the_page_quotes_what_was_counted():
    results = REPOSITORY / "experiments" / "results" / "benchmarks" / "kernels.json"
    found = {
        (r["kind"], r["name"], r["chip"], r["pass"]): measure.number(r["cycles"] / 1e6)
        for r in json.loads(results.read_text())["records"]
    }
    page = (REPOSITORY / "docs" / "long_contexts.md").read_text()
    _, table = page.split("| Mcycles, forward / backward | v5e | v6e |\n|---|---:|---:|\n")
    rows = [line.strip("|").split("|") for line in table.split("\n\n")[0].splitlines()]
    assert len(rows) == 9
    for label, *cells in rows:
        name = label.split("`")[1]
        kind = "tiles" if "tiles" in label else "own"
        if "splash" in label:
            kind, name = "splash", "splash, blocks of 1024"
        passes = ("forward",) if kind == "tiles" else ("forward", "backward")
        for chip, cell in zip(("v5e", "v6e"), cells, strict=True):
            assert cell.strip() == " / ".join(found[kind, name, chip, turn] for turn in passes)
