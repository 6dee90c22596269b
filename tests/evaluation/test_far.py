"""Predictions that need the far context, and their loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenext.data import Frame
from lenext.errors import UserError
from lenext.evaluation import evaluate, far
from lenext.evaluation.far import gains
from lenext.evaluation.figures import Figures
from lenext.evaluation.metrics import metrics_of
from lenext.evaluation.protocols import Sequences
from lenext.models import token_figures
from lenext.training import train
from tests.models.test_decoder import SIZES, build
from tests.training.common import tiny_decoder_config


@pytest.mark.parametrize(("length", "long", "short"), [(29, 8, 3), (5, 8, 6), (20, 7, 1)])
@pytest.mark.parametrize("start", [(), (1,)])
def test_gains_are_differences_of_losses_in_windows(length, long, short, start):
    """Every window by itself, one prediction after the other."""
    rng, frame = np.random.default_rng(0), Frame(start=start)
    tokens = frame.started(rng.integers(0, SIZES.vocab_size, (3, length + 1))).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:],
             "weights": np.ones((3, length), np.float32)}  # fmt: skip
    if start and short == 1:
        pytest.skip("a window of one token cannot start as a text does")
    model = build("softmax")
    found = gains(model, Sequences(batch, np.arange(3)), long, short, frame, batch_tokens=16)

    forward = jax.jit(token_figures)

    @functools.cache
    def losses(row, first, size):
        inputs = frame.started(tokens[row : row + 1, first : first + size])
        one = {"tokens": inputs, "targets": tokens[row : row + 1, first + 1 : first + size + 1],
               "weights": np.ones((1, size), np.float32)}  # fmt: skip
        return np.asarray(forward(model, jax.tree.map(jnp.asarray, one)).loss[0])

    def expected(row, place, size):
        """In the first window that has the place, and half of itself before it."""
        size = min(size, length)
        starts = [*range(0, length - size, max(1, size // 2)), length - size]
        first = next(x for x in starts if x + size > place)
        assert first == 0 or place - first + 1 >= size // 2
        return losses(row, first, size)[place - first]

    for row in range(3):
        for place in range(length):
            wanted = expected(row, place, short) - expected(row, place, long)
            np.testing.assert_allclose(found[row, place], wanted, atol=2e-5)


def test_the_loss_of_what_needs_the_far_context():
    figures = Figures(
        loss=np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]),
        correct=np.zeros((2, 3)),
        weights=np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
    )
    marked = np.array([[True, False, True], [True, True, False]])
    found = metrics_of(
        figures, np.array([4, 7]), causal=True, by_position=False, byte_level=False, far=marked
    )
    (metric,) = [m for m in found if m.name == "far_loss"]
    assert metric.numerator.tolist() == [5.0, 16.0]
    assert metric.denominator.tolist() == [2.0, 1.0]
    assert metric.counted


def test_a_sweep_tells_it_beside_the_plain_loss(tmp_path, tmp_path_factory, monkeypatch):
    config = tiny_decoder_config(tmp_path_factory.getbasetemp() / "tfds")
    train(config, tmp_path)
    config.eval.update(methods="softmax,rerope", lengths="16,48", far_margin=0.01, near=4)
    records = evaluate(config, tmp_path)
    found = {(r["metric"], r["method"], r["length"]): r for r in records if not r["positions"]}
    for length in (16, 48):
        counts = {found["far_loss", m, length]["predictions"] for m in ("softmax", "rerope")}
        assert len(counts) == 1
        assert 0 < counts.pop() < found["loss", "softmax", length]["predictions"]
    few = [found["far_loss", "softmax", length]["predictions"] for length in (16, 48)]
    text = (tmp_path / "eval" / "results.md").read_text()
    assert f"method: 6 ({few[0]:,}), 6 ({few[1]:,}) documents (tokens) a length." in text
    # A margin that nothing reaches leaves nothing to tell, and gains are measured once.
    monkeypatch.setattr(far, "gains", None)
    config.eval.far_margin = 50.0
    records = evaluate(config, tmp_path)
    assert "far_loss" not in {r["metric"] for r in records}
    text = (tmp_path / "eval" / "results.md").read_text()
    assert "## loss" in text
    for changes, message in [
        ({"protocol": "sliding_window"}, r"far_margin=50\.0: should be 0 with config\.eval\.prot"),
        ({"near": 16}, r"config\.eval\.near=16: should be below 16, the training length"),
        ({"far_margin": -1.0}, r"config\.eval\.far_margin=-1\.0: should be at least 0"),
    ]:
        other = type(config)(config.to_dict())
        other.eval.update(changes)
        with pytest.raises(UserError, match=message):
            evaluate(other, tmp_path)
