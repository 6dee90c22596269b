import dataclasses

import numpy as np
import pytest

from lenext.config import base_config, read_methods
from lenext.data import ByteTokenizer, Corpus, evaluation_crops
from lenext.evaluation import figures
from lenext.evaluation.protocols import PROTOCOLS, CropSettings, mlm15
from lenext.evaluation.results import Evaluated
from lenext.evaluation.sweep import Settings, bucket_shapes, sweep
from lenext.models import build_model, model_methods, unsuited, with_method

TRAIN_LENGTH = 8
SETTINGS = Settings(
    protocol="mlm15", byte_level=True, batch_tokens=64, bucket=1.0, probe_rows=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    lengths = [30, 200, 90, 64, 120]
    tokens = np.random.default_rng(0).integers(256, size=sum(lengths)).astype(np.uint16)
    return Corpus(
        tokens=tokens,
        offsets=np.cumsum([0, *lengths]),
        names=[f"document{i}" for i in range(len(lengths))],
        fingerprint="0" * 12,
        name="noise",
        split="validation",
    )


@pytest.fixture(scope="module")
def run(corpus):
    """Returns a sweep's records, of a fresh model whose attention is sharp."""

    def run(methods, lengths=(24,), family="gau", seed=0, **changes):
        settings = base_config().model
        settings.update(hidden_size=16, intermediate_size=16, key_size=8, num_layers=2)
        settings.update(family=family, num_heads=2)
        model = build_model(settings, read_methods("softmax", TRAIN_LENGTH), 258, seed=1)
        if family == "gau":
            gain = model.layers.q_scale.scale
            gain[...] = 5.0 * gain[...]
        settings = dataclasses.replace(SETTINGS, **changes)
        sampling = CropSettings(documents=4, tokens=300, seed=seed)
        prepare = PROTOCOLS[settings.protocol].prepare
        sequences = {n: prepare(corpus, ByteTokenizer(), n, n, sampling) for n in lengths}
        models = {name: with_method(model, read_methods(name, TRAIN_LENGTH)) for name in methods}
        cells = sweep(models, model_methods(model), sequences, settings)
        by_method = {m: [cells[m, n] for n in lengths] for m in methods}
        provenance = {
            "trained": {"model": {"method": "softmax"}}, "seeds": [0],
            "config": {"eval": {"bootstrap": 200, "seed": seed}},
        }  # fmt: skip
        return Evaluated(provenance, by_method, [], "loss", []).records()

    return run


@pytest.fixture(scope="module")
def records(run):
    return run(["softmax", "softmax+softmax", "infoscale"], lengths=(24, 72))


def test_a_record_a_method_length_and_metric(records):
    found = [(r["method"], r["length"], r["metric"]) for r in records]
    assert found == [
        (method, length, metric)
        for method in ("softmax", "softmax+softmax", "infoscale")
        for length in (24, 72)
        for metric in (
            "accuracy", "loss", "entropy", "dilution", "gap_scale", "max_logit", "sink_weight"
        )
    ]  # fmt: skip


def test_records_say_how_much_there_was(records, corpus):
    for record in records:
        length, documents = record["length"], record["documents"]
        crops = evaluation_crops(corpus, length=length, documents=4, tokens=300)
        assert documents == {24: 4, 72: 3}[length]  # one of the four longest has but 64 tokens
        assert record["sequences"] == len(crops.tokens)
        assert record["tokens"] == record["sequences"] * length
        assert record["predictions"] == record["sequences"] * round(0.15 * length)
        assert record["seconds"] > 0
        assert record["peak_bytes"] > 0


def test_intervals_hold_their_values(records):
    for record in records:
        low, high = record["interval"]
        assert low - 1e-9 <= record["value"] <= high + 1e-9
        assert record["metric"] == "accuracy" or low < high


def test_the_first_method_differs_from_itself_by_exactly_nothing(records):
    for record in records:
        if record["method"] != "infoscale":  # the other is the same method by another name
            assert record["difference"] == 0.0
            assert record["difference_interval"] == [0.0, 0.0]


def test_differences_are_to_the_first_at_the_same_length(records):
    values = {(r["method"], r["length"], r["metric"]): r["value"] for r in records}
    for record in records:
        first = values["softmax", record["length"], record["metric"]]
        assert record["difference"] == record["value"] - first
    changed = [r for r in records if r["method"] == "infoscale" and r["metric"] == "entropy"]
    assert all(r["difference"] < 0 for r in changed)  # it sharpens beyond the training length
    assert all(r["difference_interval"][1] < 0 for r in changed)


def test_is_reproducible(run, records):
    again = run(["softmax", "softmax+softmax", "infoscale"], lengths=(24, 72))
    timings = {"seconds", "compile_seconds", "tokens_per_second"}
    for record, expected in zip(again, records, strict=True):
        assert {k: v for k, v in record.items() if k not in timings} == {
            k: v for k, v in expected.items() if k not in timings
        }


def test_neighbours_in_the_sweep_change_nothing(run, records):
    alone = run(["infoscale"], lengths=(72,))
    expected = [r for r in records if r["method"] == "infoscale" and r["length"] == 72]
    for record, other in zip(alone, expected, strict=True):
        assert record["value"] == other["value"]
        assert record["interval"] == other["interval"]


def test_the_batch_does_not_matter(run, records):
    for record, expected in zip(run(["softmax"], batch_tokens=1), records, strict=False):
        assert record["value"] == pytest.approx(expected["value"], rel=1e-5)


def test_buckets_are_of_lengths_near_their_longest(corpus):
    lengths = (10, 12, 13, 24, 25, 50)
    sampling = CropSettings(documents=4, tokens=300, seed=0)
    sequences = {n: mlm15(corpus, ByteTokenizer(), n, n, sampling) for n in lengths}
    assert bucket_shapes(sequences, 1.0) == {}
    assert bucket_shapes(sequences, 2.0) == dict.fromkeys((25, 24, 13), (25, 4)) | dict.fromkeys(
        (12, 10), (12, 2)
    )


@pytest.mark.parametrize(
    ("family", "protocol", "methods"),
    [("gau", "mlm15", ["infoscale", "dynamic_ntk", "lssar"]),
     ("decoder", "full_context", ["lssar"])],
)  # fmt: skip
def test_lengths_in_a_bucket_share_what_is_compiled(family, protocol, methods, run, monkeypatch):
    """Of methods whose logits, positions and sums of rows follow the length."""
    programs = []
    lower = figures._forward.lower

    class Spy:
        def lower(self, params, batch, probe, **static):
            shapes = tuple((name, x.shape) for name, x in batch.items())
            programs.append((shapes, *static.values()))
            return lower(params, batch, probe, **static)

    monkeypatch.setattr(figures, "_forward", Spy())
    changes = {"family": family, "protocol": protocol, "batch_tokens": 213}
    apart = run(methods, (40, 71), **changes)
    assert len(set(programs)) == 2 * len(methods)
    programs.clear()
    shared = run(methods, (40, 71), bucket=2.0, **changes)
    assert len(set(programs)) == len(methods)  # what follows the length counts the mask
    for record, expected in zip(shared, apart, strict=True):
        # The gap scale divides by differences of logits that are nearly one.
        near = 0.1 if record["metric"] == "gap_scale" else 1e-4
        assert record["value"] == pytest.approx(expected["value"], rel=near, abs=1e-6), record
        assert record["predictions"] == expected["predictions"]


def test_the_seed_draws_other_masks(run, records):
    (other,) = [r for r in run(["softmax"], seed=1) if r["metric"] == "loss"]
    assert other["value"] != records[1]["value"]


@pytest.mark.parametrize(
    ("trained", "method", "axes"),
    [
        ("softmax", "infoscale", []),
        ("softmax", "rerope+log_length", []),
        ("softmax", "windowed|softmax", []),
        ("softmax", "yarn", []),
        ("softmax", "cosscale", ["similarity"]),
        ("softmax", "softmax|cosscale", ["similarity"]),
        ("softmax", "lssar", ["similarity", "temperature", "weighting"]),
        ("softmax", "alibi", ["position"]),
        ("softmax", "nope", ["position"]),
        ("softmax", "sigmoid", ["weighting"]),
        ("cosscale(cos_scale=16)", "cosscale(cos_scale=16)+infoscale", []),
        ("cosscale(cos_scale=16)", "softmax", ["similarity"]),
        ("cosscale|softmax", "cosscale|softmax", []),
        ("cosscale|softmax", "softmax", ["similarity"]),
        ("lssar", "lssar", []),
        ("alibi", "alibi+infoscale", []),
        ("alibi", "softmax", ["position"]),
    ],
)
def test_what_weights_were_not_trained_for_is_marked(trained, method, axes):
    settings = base_config().model
    settings.update(hidden_size=8, intermediate_size=8, key_size=4, num_layers=4)
    model = build_model(settings, read_methods(trained, TRAIN_LENGTH), 258, seed=1)
    swapped = with_method(model, read_methods(method, TRAIN_LENGTH))
    assert unsuited(swapped, model_methods(model)) == axes
