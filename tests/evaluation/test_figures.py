import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lenext.attention import RowStatistics, make_method
from lenext.config import base_config
from lenext.data import ByteTokenizer
from lenext.data.masking import mask_tokens
from lenext.evaluation import figures as figures_module
from lenext.evaluation.figures import HeadFigures, figures_of, head_figures
from lenext.models import build_model
from lenext.parallel.memory import needs_of

TRAIN_LENGTH = 8


@pytest.fixture
def settings():
    settings = base_config().model
    settings.update(hidden_size=16, intermediate_size=16, key_size=8, num_layers=2)
    return settings


def make_model(settings, method="softmax", uniform=False):
    """(graphdef, params), with weights large enough for attention to matter."""
    methods = [make_method(m, train_length=TRAIN_LENGTH) for m in method.split("|")]
    model = build_model(settings, methods, ByteTokenizer().vocab_size, seed=1)
    gain = model.layers.q_scale.scale
    gain[...] = (0.0 if uniform else 3.0) * gain[...]
    graphdef, params = nnx.split(model)
    return graphdef, nnx.to_pure_dict(params)


def make_crops(count, length, seed=0):
    rng = np.random.default_rng(seed)
    rows = [mask_tokens(rng.integers(256, size=length), rng, ByteTokenizer()) for _ in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def plain_figures(graphdef, params, crops):
    """Loss and hits of each prediction, a crop at a time, from logits over all tokens."""
    logits_of = jax.jit(nnx.merge(graphdef, params).__call__)
    rows = []
    for tokens, positions, targets in zip(
        crops["tokens"], crops["predicted"], crops["targets"], strict=True
    ):
        logits = np.asarray(logits_of(tokens[None])[0, positions], np.float64)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        chosen = shifted[np.arange(len(targets)), targets] / shifted.sum(axis=-1)
        hits = logits.argmax(axis=-1) == targets
        rows.append((-np.log(chosen), hits))
    return np.array(rows).swapaxes(0, 1)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (7, 9), (7, 1)])
def test_equals_a_plain_loop(settings, count, batch_size):
    graphdef, params = make_model(settings)
    crops = make_crops(count, 21)
    figures, cost = figures_of(graphdef, params, crops, batch_size=batch_size, probe_rows=0)
    loss, correct = plain_figures(graphdef, params, crops)
    # A row a crop, so that nothing that fills up the last batch is counted.
    np.testing.assert_allclose(figures.loss, loss, rtol=1e-5)
    np.testing.assert_array_equal(figures.correct, correct)
    np.testing.assert_array_equal(figures.weights, 1.0)
    assert figures.loss.shape == (count, 3)  # 15 % of 21
    assert cost.seconds > 0
    assert cost.peak_bytes > sum(x.nbytes for x in jax.tree.leaves(params))


def test_hits_are_counted(settings):
    graphdef, params = make_model(settings)
    crops = make_crops(3, 21)
    first, _ = figures_of(graphdef, params, crops, batch_size=2, probe_rows=0)
    assert first.correct.sum() == 0
    model = nnx.merge(graphdef, params)
    guesses = np.asarray(model(jnp.asarray(crops["tokens"]))).argmax(axis=-1)
    right = crops | {"targets": np.take_along_axis(guesses, crops["predicted"], axis=1)}
    second, _ = figures_of(graphdef, params, right, batch_size=2, probe_rows=0)
    np.testing.assert_array_equal(second.correct, 1.0)


@pytest.mark.parametrize("length", [5, 33])
def test_rows_of_equal_logits_have_the_entropy_of_their_number(settings, length):
    graphdef, params = make_model(settings, uniform=True)
    crops = make_crops(3, length)
    figures, _ = figures_of(graphdef, params, crops, batch_size=2, probe_rows=4)
    np.testing.assert_allclose(figures.heads.entropy, np.log(length), rtol=1e-5)


def test_dilution_is_the_weight_beyond_the_training_length(settings):
    graphdef, params = make_model(settings, uniform=True)
    crops = make_crops(1, 32)
    figures, _ = figures_of(graphdef, params, crops, batch_size=1, probe_rows=4)
    # Rows 4, 12, 20 and 28 have 12, 15, 15 and 11 keys nearer than 8.
    np.testing.assert_allclose(figures.heads.dilution, 1 - (12 + 15 + 15 + 11) / 4 / 32, rtol=1e-5)


def test_a_window_sees_no_more_than_it_is_wide(settings):
    graphdef, params = make_model(settings, "windowed", uniform=True)
    crops = make_crops(1, 32)
    figures, _ = figures_of(graphdef, params, crops, batch_size=1, probe_rows=4)
    np.testing.assert_allclose(figures.heads.entropy, np.log([12, 15, 15, 11]).mean(), rtol=1e-5)
    np.testing.assert_allclose(figures.heads.dilution, 0.0, atol=1e-6)


def test_layers_stand_apart(settings):
    graphdef, params = make_model(settings, "windowed|softmax", uniform=True)
    crops = make_crops(1, 32)
    figures, _ = figures_of(graphdef, params, crops, batch_size=1, probe_rows=4)
    expected = [np.log([12, 15, 15, 11]).mean(), np.log(32)]
    np.testing.assert_allclose(figures.heads.entropy[0, :, 0], expected, rtol=1e-5)


def test_no_probe_no_figures_of_heads(settings):
    graphdef, params = make_model(settings)
    figures, _ = figures_of(graphdef, params, make_crops(3, 9), batch_size=2, probe_rows=0)
    assert figures.heads is None


def test_probed_rows_to_figures_of_heads():
    """Two layers, one sequence, one head, three rows: one of them sees a single key, and one has
    a shared top."""
    entropy = np.array([[0.0, 1, 2], [3, 4, 5]], np.float32)[:, None, None]
    scale = np.array([[0, 2, np.inf], [0, 0, 0]], np.float32)[:, None, None]
    rows = RowStatistics(
        entropy, entropy / 10, scale, entropy + 7, entropy / 20, np.full_like(entropy, 3)
    )
    heads = HeadFigures(**head_figures(rows))
    np.testing.assert_allclose(np.ravel(heads.entropy), [1, 4])
    np.testing.assert_allclose(np.ravel(heads.dilution), [0.1, 0.4], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(heads.gap), [(0.5 + 1e-6) / 2, 1e6], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(heads.max_logit), [9, 12])
    np.testing.assert_allclose(np.ravel(heads.sink_weight), [0.05, 0.2], rtol=1e-6)
    assert heads.entropy.shape == (1, 2, 1)


def test_more_probes_than_rows(settings):
    graphdef, params = make_model(settings, uniform=True)
    figures, _ = figures_of(graphdef, params, make_crops(2, 5), batch_size=2, probe_rows=100)
    np.testing.assert_allclose(figures.heads.entropy, np.log(5), rtol=1e-5)


def test_probing_changes_no_other_figure(settings):
    graphdef, params = make_model(settings)
    crops = make_crops(3, 21)
    some, _ = figures_of(graphdef, params, crops, batch_size=2, probe_rows=5)
    none, _ = figures_of(graphdef, params, crops, batch_size=2, probe_rows=0)
    np.testing.assert_allclose(some.loss, none.loss, rtol=1e-6)


@pytest.mark.parametrize("method", ["softmax", "rerope+infoscale"])
def test_memory_is_far_from_quadratic(settings, method):
    """32 768 tokens: whole rows of one layer would be 4 GiB, and their blocks are a few MiB."""
    settings.num_layers = 1
    graphdef, params = make_model(settings, method)
    peaks = {}
    for length in (8192, 32768):
        crops = make_crops(1, length)
        example = {name: jnp.asarray(rows) for name, rows in crops.items()}
        probe = jnp.arange(32)
        compiled = figures_module._forward.lower(
            params, example, probe, graphdef=graphdef, mesh=None
        ).compile()
        peaks[length] = needs_of(compiled).peak
    assert peaks[32768] < 200 * 2**20
    assert peaks[32768] < 8 * peaks[8192]


def test_32768_tokens_in_a_few_hundred_megabytes(settings):
    settings.update(num_layers=1, key_size=4, intermediate_size=8)
    graphdef, params = make_model(settings)
    crops = make_crops(1, 32768)
    figures, cost = figures_of(graphdef, params, crops, batch_size=1, probe_rows=8)
    assert np.all(np.isfinite(figures.loss))
    assert 0 < figures.heads.entropy < np.log(32768)
    assert cost.peak_bytes < 600e6
