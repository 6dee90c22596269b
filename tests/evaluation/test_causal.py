"""A decoder from training to tables, against logits taken by hand."""

import json
import math

import matplotlib.image
import numpy as np
import pytest

from lenext.config import read_methods
from lenext.data import ByteTokenizer, evaluation_crops, load_corpus
from lenext.errors import UserError
from lenext.evaluation import evaluate
from lenext.evaluation import workdir_sweep as run_module
from lenext.models import load_pretrained, with_method
from lenext.training import train
from tests.training.common import read_metrics, tiny_config, tiny_decoder_config

PATTERN = "windowed(window=8)|nope"
METHODS = ["windowed(window=8)|nope", "infoscale", "lssar"]


@pytest.fixture
def config(data_dir):
    config = tiny_decoder_config(data_dir)
    config.model.method = PATTERN
    config.eval.update(methods=",".join(METHODS), lengths="16,48")
    return config


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
    config = tiny_decoder_config(data_dir)
    config.model.method = PATTERN
    config.optimizer.learning_rate = 2e-2
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    train(config, workdir)
    return workdir


def by_key(records):
    return {
        (r["method"], r["length"], r["metric"], tuple(r["positions"] or ())): r for r in records
    }


def losses(workdir, data_dir, method, length, lookahead=1):
    """Loss of every next token of every crop, in float64, and the crops."""
    model = with_method(load_pretrained(workdir), read_methods(method, 16))
    corpus = load_corpus("stdlib_source", "validation", ByteTokenizer(), data_dir)
    crops = evaluation_crops(
        corpus, length=length, documents=6, tokens=512, lookahead=lookahead
    ).tokens.astype(np.int32)
    logits = np.asarray(model(crops[:, :-1]), np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(logs, crops[:, 1:, None], axis=-1)[..., 0]


def test_training_gets_somewhere(workdir):
    records = read_metrics(workdir)
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert records[-1]["eval/validation/loss"] < math.log(258)
    assert 0 < records[-1]["eval/validation/accuracy"] < 1


@pytest.mark.parametrize("method", METHODS)
def test_full_context(workdir, config, data_dir, method):
    config.eval.methods = method
    found = by_key(evaluate(config, workdir))
    for length in (16, 48):
        expected = losses(workdir, data_dir, method, length)
        assert found[method, length, "loss", ()]["predictions"] == expected.size
        assert found[method, length, "loss", ()]["protocol"] == "full_context"
        values = {metric: found[method, length, metric, ()]["value"]
                  for metric in ("loss", "perplexity", "bits_per_byte")}  # fmt: skip
        mean = expected.mean()
        assert values["loss"] == pytest.approx(mean, rel=1e-4)
        assert values["perplexity"] == pytest.approx(math.exp(mean), rel=1e-3)
        assert values["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-4)
        buckets = {16: [(0, 16)], 48: [(0, 16), (16, 32), (32, 48)]}[length]
        for low, high in buckets:
            record = found[method, length, "loss_by_position", (low, high)]
            assert record["value"] == pytest.approx(expected[:, low:high].mean(), rel=1e-4)
            assert record["predictions"] == expected[:, low:high].size


def test_sliding_window_is_another_figure(workdir, config, data_dir):
    config.eval.update(protocol="sliding_window", stride=8, methods=PATTERN)
    found = by_key(evaluate(config, workdir))
    assert {key[2] for key in found} == {
        "loss", "perplexity", "accuracy", "bits_per_byte",
        "entropy", "dilution", "gap_scale", "max_logit", "sink_weight",
    }  # fmt: skip
    expected = losses(workdir, data_dir, PATTERN, 48)[:, -8:]
    record = found[PATTERN, 48, "loss", ()]
    assert record["value"] == pytest.approx(expected.mean(), rel=1e-4)
    assert record["predictions"] == expected.size
    assert record["protocol"] == "sliding_window"
    assert found[PATTERN, 16, "loss", ()]["predictions"] == expected.size
    assert not (workdir / "eval" / "by_position.png").exists()


def test_files(workdir, config):
    records = evaluate(config, workdir)
    folder = workdir / "eval"
    assert json.loads((folder / "results.json").read_text())["records"] == records
    assert "## loss by position, at length 48" in (folder / "results.md").read_text()
    for name in ("results.png", "by_position.png"):
        assert np.ptp(matplotlib.image.imread(folder / name)[..., :3]) > 0.5
    marked = {r["method"] for r in records if r["unsuited"]}
    assert marked == {"infoscale", "lssar"}  # rotation where there was none


def test_protocols_of_other_models(workdir, config):
    config.eval.protocol = "mlm15"
    with pytest.raises(UserError, match="should be one of full_context, sliding_window"):
        evaluate(config, workdir)


def test_a_vocabulary_larger_than_the_models(workdir, config):
    config.model.vocab_size = 100
    with pytest.raises(UserError, match=r"vocab_size=100: should be at least 258, the vocabulary"):
        evaluate(config, workdir)


def test_single_mask_of_a_gau(trained, data_dir):
    """One forward a mask, each with the one token hidden."""
    workdir, config = trained(), tiny_config(data_dir)
    config.eval.update(protocol="single_mask", masks=3, methods="softmax", lengths="48")
    found = by_key(evaluate(config, workdir))
    corpus = load_corpus("stdlib_source", "validation", ByteTokenizer(), data_dir)
    crops = evaluation_crops(corpus, length=48, documents=6, tokens=512)
    model, expected = load_pretrained(workdir), []
    for tokens, document, start in zip(crops.tokens, crops.document, crops.start, strict=True):
        rng = np.random.default_rng((0, document, start, 48))
        for place in rng.choice(48, 3, replace=False):
            hidden = tokens.astype(np.int32)
            hidden[place] = 256
            logits = np.asarray(model(hidden[None])[0, place], np.float64)
            expected.append(np.log(np.exp(logits).sum()) - logits[tokens[place]])
    record = found["softmax", 48, "loss", ()]
    assert record["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert record["predictions"] == len(expected)


def test_heads_split_otherwise_are_refused(workdir, config):
    """The same shapes, and another model."""
    config.model.update(num_heads=4, key_size=config.model.key_size // 2, num_kv_heads=2)
    with pytest.raises(UserError, match=r"config\.model\.key_size .*, config\.model\.num_heads"):
        evaluate(config, workdir)


def test_another_tokenizer_is_told(workdir, config, monkeypatch):
    class Other(ByteTokenizer):
        fingerprint = "0" * 12

    monkeypatch.setattr(run_module, "open_tokenizer", lambda config, *, bos: Other())
    with pytest.raises(
        UserError, match=r"tokenizer bytes: gives other ids .* fingerprint 0{12}, was"
    ):
        evaluate(config, workdir)
