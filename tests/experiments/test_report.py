"""Claims are judged by figures; the report is one file with all of it."""

import base64
import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import claims, report
from experiments.claims import CLAIMS, INFOSCALE, SOFTPLUS, judged
from experiments.softplus_table import count_spikes, variant
from lenext.reporting.pages import heading_slug, html_page
from tests.training.common import REPOSITORY


def record(method, length, value, metric="accuracy", **changes):
    return {
        "method": method, "evaluated": method, "trained": "softmax", "length": length,
        "metric": metric, "positions": None, "value": value, "interval": [value, value],
        "difference": 0.0, "difference_interval": [0.0, 0.0], "best": False, "worst": False,
        **changes,
    }  # fmt: skip


def judge(name, *contents):
    (claim,) = (c for c in CLAIMS if c.judge.__name__ == name)
    return claim.judge(*contents)


@pytest.mark.parametrize(
    ("scaled", "verdict"),
    [(1.05, "reproduced"), (2.0, "not reproduced: nearer, not held"), (4.0, "not reproduced")],
)
def test_entropy_held(scaled, verdict):
    records = [
        record("softmax", 64, 1.0, "entropy"), record("softmax", 4096, 3.0, "entropy"),
        record("infoscale", 4096, scaled, "entropy"),
    ]  # fmt: skip
    found = judge("_entropy_held", {"records": records})
    assert found.verdict == verdict
    assert found.ours.startswith("1.00 nats at 64; at 4096 3.00 under softmax and ")


@pytest.mark.parametrize(("high", "verdict"), [(-0.1, "reproduced"), (0.01, "not reproduced")])
def test_focus_kept(high, verdict):
    records = [
        record("softmax", 4096, 0.9, "dilution"),
        record("infoscale", 4096, 0.7, "dilution", difference_interval=[-0.3, high]),
    ]
    found = judge("_focus_kept", {"records": records})
    assert found.verdict == verdict
    assert "keep 0.100 of the weight under softmax, 0.300 under InfoScale" in found.ours


@pytest.mark.parametrize(("mine", "verdict"), [(0.7, "reproduced"), (0.5, "not reproduced")])
def test_best_of_all(mine, verdict):
    records = [
        record("infoscale_cosscale", 4096, 0.2),
        record("cosscale(cos_scale=16)+infoscale", 4096, mine, best=mine > 0.6),
        record("rerope", 4096, 0.4),
        record("lm_infinite", 4096, 0.6),
        record("softmax", 4096, 0.9),  # none of the seven
    ]
    found = judge("_best_of_all", {"records": records})
    assert found.verdict == verdict
    beaten = 2 if mine > 0.6 else 1
    assert f"above {beaten} of 2 rows" in found.ours
    assert "lm_infinite has the most, 0.600" in found.ours


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        ([1, 2], "reproduced"),
        ([1, 90], "not reproduced"),
        ([1, 1], "not reproduced"),  # no window, only a model that sees no context
    ],
)
def test_window(last, verdict):
    runs = [
        {"name": "softmax", "window": [9, 9]},
        {"name": "cosscale(cos_scale=4)", "window": [100, 40]},
        {"name": "cosscale(cos_scale=512)", "window": last},
        {"name": "cosscale(cos_scale=512)"},  # of another seed
    ]
    found = judge("_window", {"runs": runs, "config": {"data": {"train_length": 64}}})
    assert found.verdict == verdict
    assert f"4: 100 / 40; 512: {last[0]} / {last[1]}" in found.ours


@pytest.mark.parametrize(("order", "verdict"), [(-1, "reproduced"), (1, "not reproduced")])
def test_dilution_matters(order, verdict):
    values = {"a": 0.1, "b": 0.5, "c": 0.9}
    records = [record(m, 4096, x, "dilution") for m, x in values.items()]
    records += [record(m, 4096, order * x) for m, x in values.items()]
    found = judge("_dilution_matters", {"records": records})
    assert found.verdict == verdict
    assert found.ours.endswith(f"rank correlation of {order}.00")


def losses(method, short, long, **changes):
    return [record(method, n, x, "loss", **changes) for n, x in ((64, short), (1024, long))]


@pytest.mark.parametrize(
    ("long", "verdict"), [(2.08, "reproduced"), (2.4, "partly"), (3.0, "not reproduced")]
)
def test_nearly_constant(long, verdict):
    records = losses("softmax", 2.0, 3.0) + losses("lssar", 2.0, long)
    assert judge("_constant", {"records": records}).verdict == verdict
    assert judge("_softmax_degrades", {"records": records}).verdict == "reproduced"


@pytest.mark.parametrize(
    ("highs", "verdict"),
    [((-0.1, -0.1), "reproduced"), ((0.1, -0.1), "partly"), ((0.1, 0.1), "not reproduced")],
)
def test_lssa_better(highs, verdict):
    records = [
        record("lssa", n, 2.0, "loss", difference_interval=[-1.0, high])
        for n, high in zip((64, 1024), highs, strict=True)
    ]
    assert judge("_lssa_better", {"records": records}).verdict == verdict


@pytest.mark.parametrize(
    ("lows", "highs", "verdict"),
    [((-0.1, 0.2), (0.1, 0.4), "reproduced"), ((-0.4, 0.2), (-0.1, 0.4), "partly"),
     ((-0.4, -0.1), (-0.1, 0.1), "not reproduced")],
)  # fmt: skip
def test_retrieves(lows, highs, verdict):
    records = [record("softmax", n, 0.5, "retrieved") for n in (128, 256)]
    for n, low, high in zip((128, 256), lows, highs, strict=True):
        records.append(record("lssar", n, 0.6, "retrieved", difference_interval=[low, high]))
    found = judge("_retrieves", {"records": records})
    assert found.verdict == verdict
    assert "0.50 → 0.60 at 128, 0.50 → 0.60 at 256" in found.ours


@pytest.mark.parametrize(
    ("relu", "verdict"), [(9.0, "reproduced"), (1.9, "partly"), (0.1, "not reproduced")]
)
def test_norm_matters(relu, verdict):
    records = []
    for norm, (short, long) in {"l1": (1.0, 2.0), "none": (1.5, 9.0)}.items():
        for phi in ("relu", "softplus"):
            for n, x in ((64, short), (1024, long)):
                method = variant("lssa", phi, norm)
                x = relu if (phi, norm, n) == ("relu", "none", 1024) else x
                x = 0.1 if relu < 1 and norm == "none" else x
                records.append(record(f"ablation: {method}", n, x, "loss", evaluated=method))
    records.append(record("ablation: lssar", 64, 7.0, "loss"))
    records[-1]["evaluated"] = "lssar"
    found = judge("_norm_matters", {"records": records})
    assert found.verdict == verdict
    assert "l1 norm 1.000 at 64 and 2.000 at 1024; without " in found.ours
    if relu == 9.0:
        assert "without 1.500 and 9.000; lower for every phi" in found.ours


@pytest.mark.parametrize(
    ("stopped", "spikes", "loss", "verdict"),
    [("nan", 3, None, "reproduced"), (None, 2, 2.0, "reproduced"), (None, 1, 2.0, "partly"),
     (None, 1, 1.6, "not reproduced")],
)  # fmt: skip
def test_stable(stopped, spikes, loss, verdict):
    runs, records = [{"name": "lssa"}], []
    ends = {"softmax": loss, "softmax, QK-norm": 1.5, "lssa": 1.6, "lssar": 1.5}
    for name, end in ends.items():
        for rate in (1, 2):
            what = (spikes, stopped) if name == "softmax" else (1, None)
            run = f"{name} at {rate}"
            runs.append({"name": run, "spikes": what[0], "stopped": what[1]})
            if end:
                for metric, value in (("loss", end + 2 - rate), ("max_logit", 7.0 * rate)):
                    records.append(record(run, 64, value, metric, trained=run))
    found = judge("_stable", {"runs": runs, "records": records})
    assert found.verdict == verdict
    assert "LSSA 0 stopped, 2 spikes, 1.600 and 14; LSSAR 0 stopped" in found.ours


def test_spikes():
    calm = [2.0 + 0.4 * (-1) ** i for i in range(200)]
    assert count_spikes(calm) == 0
    assert count_spikes([*calm, *[3.0] * 60, *calm, *[3.0] * 60]) == 2
    assert count_spikes([*calm[:100], 9.0, *calm[:100]]) == 0  # one batch
    assert count_spikes([1.0] * 5) == 0


def test_results_of_the_smallest_size_bear_out_no_claim(tmp_path):
    for name, size in (("dilution", "smoke"), ("passkey", "cpu")):
        content = {"runs": [], "records": [], "size": size}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert list(report.load(tmp_path)) == ["passkey"]


def test_every_claim_has_a_line_even_where_nothing_was_run():
    rows = judged(CLAIMS, {})
    assert len(rows) == len(CLAIMS) == 12
    assert {row[4] for row in rows} == {"not run", "not testable at this size"}
    page = report.claims_page({})
    for claim in CLAIMS:
        assert claim.says in page
    assert f"## {INFOSCALE}" in page
    assert f"## {SOFTPLUS}" in page
    # No figure of a table that is not at hand.
    assert all(claim.figure == claims.NONE for claim in CLAIMS if claim.paper == INFOSCALE)


def png():
    out = io.BytesIO()
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    figure.savefig(out)
    return out.getvalue()


class Reader(HTMLParser):
    """Counts tags, sees that they are closed, keeps addresses, ids, and links by their text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses, self.ids, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "img", "br", "hr", "wbr"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "href" and "nav" not in self.open:
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def fill(results, names, pictures):
    """A folder of results."""
    (results / "benchmarks").mkdir(parents=True)
    for name in names:
        (results / f"{name}.md").write_text(
            f"# Of {name}\n\n| a | b |\n|---|---|\n| <1 | x\\|y |\n"
        )
    for name in pictures:
        (results / f"{name}.png").write_bytes(png())


def test_the_report_is_one_file_that_needs_no_other(tmp_path, monkeypatch):
    results = tmp_path / "results"
    fill(results, ("passkey", "tiny", "tiny_two", "benchmarks/loss"),
         ("passkey", "passkey_depth", "tiny_two", "benchmarks/loss", "other"))  # fmt: skip
    monkeypatch.setattr(report, "HERE", tmp_path)
    pages = report.result_pages(results, "# Claims\n\n[a](results/a.md)\n")
    assert [(page.group, page.name) for page in pages] == [
        ("", "claims"), (report.COMMITTED, "passkey"), (report.COMMITTED, "tiny"),
        (report.COMMITTED, "tiny_two"), (report.COMMITTED, "pictures"),
        (report.BENCHMARKS, "loss"),
    ]  # fmt: skip
    pictures = {page.name: list(page.pictures) for page in pages}
    assert pictures["passkey"] == ["passkey.png", "passkey_depth.png"]
    assert (pictures["tiny"], pictures["tiny_two"]) == ([], ["tiny_two.png"])
    assert pictures["pictures"] == ["other.png"]

    text = html_page("lenext: results", pages)
    reader = read(text)
    assert not reader.open
    assert (reader.seen.count("table"), reader.seen.count("img")) == (4, 5)
    assert "&lt;1" in text
    assert "x|y" in text
    links = [address for address in reader.addresses if address.startswith("#")]
    assert {link.removeprefix("#") for link in links} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    data = [address for address in reader.addresses if not address.startswith("#")]
    for address in data:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        assert np.all(matplotlib.image.imread(io.BytesIO(base64.b64decode(content))) >= 0)
    assert not re.search(r"https?://", text)


@pytest.fixture(scope="module")
def committed():
    results = REPOSITORY / "experiments" / "results"
    claimed = report.claims_page(report.load(results))
    return read(html_page("lenext: results", report.result_pages(results, claimed)))


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.needs])
def test_every_claim_leads_to_the_table_of_its_numbers(claim, committed):
    for name in claim.needs:
        place = f"{name}--{heading_slug(claim.table)}"
        assert place in committed.ids
        assert f"#{place}" in committed.links


def test_every_link_of_the_committed_results_has_its_target(committed):
    assert len(committed.ids) == len(set(committed.ids))
    for address in committed.addresses:
        assert address.startswith("data:") or address.removeprefix("#") in committed.ids
    for name in report.load(REPOSITORY / "experiments" / "results"):
        assert f"#{name}" in committed.links


def make(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["experiments.report", *map(str, words)])
    report.main()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to stand in, with experiments/ of its own there."""
    here = tmp_path / "experiments"
    fill(here / "results", ("passkey",), ())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "HERE", here)
    return tmp_path


def written(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_no_tracked_file_is_written_unless_asked_for(elsewhere, monkeypatch, capsys):
    (elsewhere / "experiments" / "README.md").write_text("as committed")
    before = {path: path.read_bytes() for path in written(elsewhere)}
    make(monkeypatch, f"--results={elsewhere / 'experiments' / 'results'}")
    assert capsys.readouterr().out == f"report: {Path('runs/report.html')}\n"
    assert written(elsewhere) - before.keys() == {elsewhere / "runs" / "report.html"}
    assert {path: path.read_bytes() for path in before} == before

    make(monkeypatch, "--readme", f"--results={elsewhere / 'experiments' / 'results'}")
    assert (elsewhere / "experiments" / "README.md").read_text() == report.claims_page({})

    fill(elsewhere / "mine", ("passkey",), ())
    for words in (["--also=mine/benchmarks"], ["--also=nowhere"], ["--results=nowhere"],
                  ["--results=mine", "--readme"]):  # fmt: skip
        with pytest.raises(SystemExit):
            make(monkeypatch, *words)
    assert "--readme is made of experiments/results" in capsys.readouterr().err


def test_git_ignores_the_report_and_ones_own_results():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not in a git repository")
    written = ["runs/report.html", "runs/results/passkey.md"]
    command = ["git", "check-ignore", *written]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.split() == written


def test_runs_of_ones_own_stand_beside_the_committed_ones(elsewhere, monkeypatch):
    fill(elsewhere / "runs" / "results", ("passkey",), ("passkey", "passkey_depth"))
    for name in ("<b>x&y", "quick"):
        folder = elsewhere / "runs" / name / "eval"
        folder.mkdir(parents=True)
        (folder / "results.md").write_text("# trained with <b>softmax\n")
        for picture in ("results", "by_position"):
            (folder / f"{picture}.png").write_bytes(png())
    (elsewhere / "runs" / "unfinished").mkdir()
    found = report.own_pages([Path("runs"), Path("runs/results")])
    assert {page.name: list(page.pictures) for page in found} == {
        "runs/<b>x&y": ["by_position.png", "results.png"],
        "runs/quick": ["by_position.png", "results.png"],
        "runs/results/passkey": ["passkey.png", "passkey_depth.png"],
    }
    make(monkeypatch, f"--results={elsewhere / 'experiments' / 'results'}")
    text = (elsewhere / "runs" / "report.html").read_text()
    reader = read(text)
    assert len(reader.ids) == len(set(reader.ids))
    assert text.count("<p>Your runs</p>") == 1
    assert "runs/<wbr>&lt;b&gt;x&amp;y</h2>" in text
    assert "trained with &lt;b&gt;softmax" in text
    assert "b" not in reader.seen
    assert "<h2>passkey</h2>" in text

    # A workdir alone, or a folder that is found twice: once each.
    mine = elsewhere / "runs" / "quick"
    (page,) = report.own_pages([mine, mine, Path("runs/quick")])
    assert page.name == str(mine)
    make(monkeypatch, "--results=runs/results", "--also=runs/quick")
    text = (elsewhere / "runs" / "report.html").read_text()
    assert [line.count("</h2>") for line in text.splitlines()].count(1) == 3
    assert "runs/<wbr>quick</h2>" in text


def test_own_results_are_not_shown_twice(elsewhere, monkeypatch):
    fill(elsewhere / "runs" / "results", ("passkey",), ())
    make(monkeypatch, "--results=runs/results")
    text = (elsewhere / "runs" / "report.html").read_text()
    assert "<h2>passkey</h2>" in text
    assert report.OWN not in text
    assert report.COMMITTED not in text
    assert "<p>Results in runs/results</p>" in text


def test_date_and_revision_are_on_top(elsewhere, monkeypatch):
    monkeypatch.setattr(report, "git_revision", lambda: f"{'0123456789' * 4}+changes")
    monkeypatch.setattr(report, "results_version", lambda: {"training": 3, "figures": 4})
    make(monkeypatch, f"--results={elsewhere / 'experiments' / 'results'}")
    top = (elsewhere / "runs" / "report.html").read_text().partition("<nav")[0]
    assert "<dt>Revision</dt><dd>012345678901, with changes that are not committed</dd>" in top
    made = re.search(r"<dt>Made</dt><dd>(\d{4}-\d\d-\d\d \d\d:\d\d) UTC</dd>", top)
    assert made
    age = datetime.now(UTC) - datetime.strptime(f"{made[1]} +0000", "%Y-%m-%d %H:%M %z")
    assert timedelta(0) <= age < timedelta(minutes=5)
    assert "of no experiment (the code is at training version 3, figures version 4)" in top

    monkeypatch.setattr(report, "git_revision", lambda: None)
    versions = [{"training": 1, "figures": 2}, {"training": 1, "figures": 2}, {"training": 2}]
    found = dict(report.about({str(i): {"results_version": v} for i, v in enumerate(versions)}))
    assert found["Revision"] == "unknown"
    assert found["Results"].startswith(
        "of training version 1, figures version 2; training version 2 (the code"
    )
