import numpy as np
import pytest
from flax import nnx

from lenext.config import read_methods
from lenext.data import ByteTokenizer, evaluation_crops, load_corpus, masked_crops
from lenext.errors import UserError
from lenext.evaluation.evaluators import make_evaluators
from lenext.evaluation.figures import figures_of
from lenext.models import build_model
from tests.training.common import tiny_decoder_config


@pytest.fixture
def model(config):
    methods = read_methods(config.model.method, config.data.train_length)
    graphdef, params = nnx.split(build_model(config.model, methods, 258, seed=0))
    return graphdef, nnx.to_pure_dict(params)


def test_mlm15_is_loss_and_accuracy_a_predicted_token(config, model, data_dir):
    figures = make_evaluators(config, ByteTokenizer())["validation"](*model)
    corpus = load_corpus("stdlib_source", "validation", ByteTokenizer(), data_dir)
    crops = evaluation_crops(corpus, length=16, documents=4, tokens=128)
    batch = masked_crops(crops, seed=0, tokenizer=ByteTokenizer(), rate=0.15)
    sums, _ = figures_of(*model, batch, batch_size=3, probe_rows=0)
    assert figures.keys() == {"loss", "accuracy"}
    assert figures["loss"] == pytest.approx(sums.loss.mean(), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(sums.correct.mean())
    assert figures["loss"] == pytest.approx(np.log(258), abs=0.3)


def test_is_the_same_every_time(config, model):
    evaluator = make_evaluators(config, ByteTokenizer())["validation"]
    assert evaluator(*model) == evaluator(*model)
    config.seed = 5  # of training
    assert make_evaluators(config, ByteTokenizer())["validation"](*model) == evaluator(*model)


def test_a_task_is_asked_as_it_is_trained(data_dir):
    """Of as many needles, whatever a later evaluation asks: its section is no part of a run."""
    config = tiny_decoder_config(data_dir)
    config.data.update(task="associative_recall", needles=2)
    config.evaluators.validation.type = "associative_recall"
    methods = read_methods("softmax", 16)
    graphdef, params = nnx.split(build_model(config.model, methods, 258, seed=0))

    def figures():
        evaluate = make_evaluators(config, ByteTokenizer())["validation"]
        return evaluate(graphdef, nnx.to_pure_dict(params))

    before = figures()
    config.eval.needles = 3
    assert figures() == before
    config.data.needles = 1
    assert figures() != before


def test_may_be_several(config):
    config.evaluators.long = config.evaluators.validation.copy_and_resolve_references()
    config.evaluators.long.length = 64
    config.training.best_metric = "eval/long/loss"
    assert make_evaluators(config, ByteTokenizer()).keys() == {"validation", "long"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "type",
            "mlm16",
            "config.evaluators.validation.type='mlm16': should be one of mlm15, single_mask",
        ),
        (
            "type",
            "full_context",
            "config.evaluators.validation.type='full_context': should be one of mlm15",
        ),
        ("split", "test", "unknown split 'test' of stdlib_source; choose from: train, validation"),
        ("length", 10**8, "evaluation length 100000000: no document"),
        ("length", 1, "evaluation length must be at least 2, not 1"),
        ("documents", 0, "evaluation needs at least 1 document and 1 token, not 0 and 128"),
        ("tokens", 0, "evaluation needs at least 1 document and 1 token, not 4 and 0"),
    ],
)
def test_mistakes(config, key, value, message):
    config.evaluators.validation[key] = value
    with pytest.raises(UserError) as error:
        make_evaluators(config, ByteTokenizer())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("metric", ["eval/validation/perplexity", "accuracy", "eval/test/loss", ""])
def test_a_best_metric_that_none_gives(config, metric):
    config.training.best_metric = metric
    with pytest.raises(UserError) as error:
        make_evaluators(config, ByteTokenizer())
    assert str(error.value) == (
        f"config.training.best_metric={metric!r}: should be one of eval/validation/loss, "
        "eval/validation/accuracy"
    )
