"""Claims are judged by figures; the report is one file with all of it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import claims, report
from experiments.claims import CLAIMS, INFOSCALE, SOFTPLUS, judged
from experiments.softplus_table import count_spikes, variant


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
    """Counts tags, sees that they are closed, keeps addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_needs_no_other(tmp_path):
    results = tmp_path / "results"
    (results / "benchmarks").mkdir(parents=True)
    for name in ("passkey", "tiny", "tiny_two", "benchmarks/loss"):
        (results / f"{name}.md").write_text(
            f"# Of {name}\n\n| a | b |\n|---|---|\n| <1 | x\\|y |\n"
        )
    for name in ("passkey", "passkey_depth", "tiny_two", "benchmarks/loss"):
        (results / f"{name}.png").write_bytes(png())
    pages, pictures = report.collect_pages(results, "# Claims\n\n[a](results/a.md)\n")
    assert list(pages) == ["claims", "passkey", "tiny", "tiny_two", "benchmarks: loss"]
    assert list(pictures["passkey"]) == ["passkey.png", "passkey_depth.png"]
    assert (list(pictures["tiny"]), list(pictures["tiny_two"])) == ([], ["tiny_two.png"])

    text = report.html_page(pages, pictures)
    reader = Reader()
    reader.feed(text)
    assert reader.open == ["html"] or not reader.open
    assert (reader.seen.count("table"), reader.seen.count("img")) == (4, 4)
    assert "&lt;1" in text
    assert "x|y" in text
    links = [address for address in reader.addresses if address.startswith("#")]
    assert [link.removeprefix("#") for link in links] == reader.ids
    data = [address for address in reader.addresses if not address.startswith("#")]
    for address in data:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        assert np.all(matplotlib.image.imread(io.BytesIO(base64.b64decode(content))) >= 0)
    assert not re.search(r"https?://", text)
