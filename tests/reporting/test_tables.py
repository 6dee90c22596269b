import csv
import io
import json

import pytest

from lenext.reporting.tables import label, markdown, text_table, to_csv
from tests.reporting.common import record


def test_table_for_terminals(records):
    assert text_table(records, "accuracy").splitlines() == [
        "accuracy                         16     512",
        "softmax                       0.500   0.250",
        "rerope(window=16)+infoscale   0.750   0.375",
        "cosscale †                    0.250   0.125",
        "windowed|softmax              0.625   0.312",
        "documents (predicted tokens) a length: 64 (48), 2 (1,536); protocol mlm15",
        "† wants weights trained for it, which these were not (cosscale: similarity, temperature)",
    ]


def test_no_mark_no_footnote(records):
    assert "†" not in text_table([r for r in records if not r["unsuited"]], "accuracy")


def test_only_the_unsuited_are_marked(records):
    assert {label(r) for r in records if "†" in label(r)} == {"cosscale †"}


def cells(line):
    """A Markdown row's cells; an escaped border is none."""
    parts = line.replace(r"\|", "\0").strip("|").split("|")
    return [part.strip().replace("\0", "|") for part in parts]


def test_markdown_has_every_metric(records):
    lines = markdown(records, "A heading").splitlines()
    assert lines[0] == "# A heading"
    assert [line for line in lines if line.startswith("##")] == [
        "## accuracy", "## loss", "## cost"
    ]  # fmt: skip
    first = lines.index("## accuracy") + 2
    assert [cells(line) for line in lines[first : first + 6]] == [
        ["method", "16", "512"],
        ["---", "---:", "---:"],
        ["softmax", "0.500 [0.490, 0.510]", "0.250 [0.240, 0.260]"],
        ["rerope(window=16)+infoscale", "0.750 [0.740, 0.760]", "0.375 [0.365, 0.385]"],
        ["cosscale †", "0.250 [0.240, 0.260]", "0.125 [0.115, 0.135]"],
        ["windowed|softmax", "0.625 [0.615, 0.635]", "0.312 [0.302, 0.323]"],
    ]
    assert any("† wants weights trained for it" in line for line in lines)
    costs = lines.index("## cost") + 4
    assert cells(lines[costs]) == ["softmax", *2 * ["0.5 s (+1.5), 0 MB"]]


def test_csv_is_a_line_a_record(records):
    rows = list(csv.DictReader(io.StringIO(to_csv(records))))
    assert len(rows) == len(records)
    for row, expected in zip(rows, records, strict=True):
        assert row["method"] == expected["method"]
        assert float(row["value"]) == expected["value"]
        assert [float(row["interval_low"]), float(row["interval_high"])] == expected["interval"]
        assert float(row["difference_interval_high"]) == 0.125
        assert row["unsuited"].split() == expected["unsuited"]
    assert "interval" not in rows[0]


def test_figures_of_one_document(records):
    assert " –: of one document" not in markdown(records, "x")
    for one in records:
        if one["length"] == 512:
            one |= {"documents": 1, "interval": None, "difference_interval": None}
    text = markdown(records, "x")
    line = next(line for line in text.splitlines() if line.startswith("| softmax |"))
    short, long = cells(line)[1:]
    assert "[" in short
    assert long.endswith(" –")
    assert "over documents. –: of one document, from which no interval follows." in text
    assert json.dumps(records, allow_nan=False)
    rows = list(csv.DictReader(io.StringIO(to_csv(records))))
    for row in rows:
        assert (row["interval_low"] == "") == (row["length"] == "512")
    assert len({tuple(row) for row in rows}) == 1


@pytest.fixture
def causal_records():
    """Loss overall and by position, at two lengths."""
    return [
        record(method, length, value + 0.01 * low, metric, positions=positions)
        for length, buckets in [(32, [(0, 16), (16, 32)]), (48, [(0, 16), (16, 32), (32, 48)])]
        for method, value in [("softmax", 2.0), ("lssar", 1.0)]
        for metric, positions, low in [
            ("loss", None, 0),
            *(("loss_by_position", list(bucket), bucket[0]) for bucket in buckets),
        ]
    ]


def test_loss_by_position_is_a_table_of_its_own(causal_records):
    lines = markdown(causal_records, "A heading").splitlines()
    titles = [line for line in lines if line.startswith("##")]
    assert titles == ["## loss", "## loss by position, at length 48", "## cost"]
    first = lines.index(titles[1]) + 2
    assert [cells(line) for line in lines[first : first + 4]] == [
        ["method", "0 … 15", "16 … 31", "32 … 47"],
        ["---", "---:", "---:", "---:"],
        ["softmax", "2.000 [1.990, 2.010]", "2.160 [2.150, 2.170]", "2.320 [2.310, 2.330]"],
        ["lssar", "1.000 [0.990, 1.010]", "1.160 [1.150, 1.170]", "1.320 [1.310, 1.330]"],
    ]
    assert cells(lines[lines.index("## loss") + 2]) == ["method", "32", "48"]
    rows = list(csv.DictReader(io.StringIO(to_csv(causal_records))))
    assert [row["positions"] for row in rows[:3]] == ["", "0 16", "16 32"]


def test_large_figures_fit_their_columns():
    records = [
        record("softmax", n, value, "perplexity") for n, value in [(16, 999.9), (32, 123456.7)]
    ]
    assert text_table(records, "perplexity").splitlines()[1] == "softmax     999.900  1.235e+05"
