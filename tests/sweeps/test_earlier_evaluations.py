"""Evaluations that were written as records with sums, up to version 0.2, are still found."""

import json

from lenext.reporting.records import Row, make_records
from lenext.sweeps.runs import read_evaluation


def record(metric, length, numerator, denominator, positions=None):
    documents = [3, 5]
    return {
        "method": "rerope", "length": length, "metric": metric, "positions": positions,
        "predictions": 40, "value": sum(numerator) / sum(denominator), "interval": [0.0, 1.0],
        "difference": 0.0, "difference_interval": [0.0, 0.0], "protocol": "full_context",
        "documents": 2, "sequences": 4, "tokens": 4 * length, "seconds": 1.5,
        "compile_seconds": 2.5, "peak_bytes": 1000, "unsuited": ["weighting"],
        "sums": {
            "method": "rerope", "length": length, "metric": metric, "positions": positions,
            "documents": documents, "numerator": numerator, "denominator": denominator,
        },
    }  # fmt: skip


def test_an_evaluation_of_records(tmp_path):
    records = [
        record("loss", 16, [1.0, 3.0], [2.0, 2.0]),
        record("loss_by_position", 16, [1.0, 3.0], [2.0, 2.0], [0, 16]),
        record("loss", 48, [4.0, 4.0], [2.0, 2.0]),
    ]
    head = {"method": "rerope", "length": 48, "layer": 0, "head": 1, "entropy": 2.0}
    path = tmp_path / "old.json"
    path.write_text(
        json.dumps(
            {"seconds": 9.0, "provenance": {"git": "x"}, "records": records, "heads": [head]}
        )
    )
    results, cells = read_evaluation(path)
    assert (results["seconds"], results["provenance"]) == (9.0, {"git": "x"})
    short, long = cells
    assert (short.length, short.tokens, long.length, long.tokens) == (16, 64, 48, 192)
    assert short.documents == long.documents == [3, 5]
    assert (short.heads, long.heads) == ([], [{"layer": 0, "head": 1, "entropy": 2.0}])
    assert short.unsuited == ["weighting"]
    found = make_records([Row("a", "softmax", "rerope", {0: cells})], "a")
    assert [(r["metric"], r["length"], r["positions"], r["value"]) for r in found] == [
        ("loss", 16, None, 1.0), ("loss_by_position", 16, [0, 16], 1.0), ("loss", 48, None, 2.0),
    ]  # fmt: skip
    assert {r["predictions"] for r in found} == {40}
