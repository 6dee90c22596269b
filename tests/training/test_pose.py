"""Training on PoSE's positions: what the models are given, and runs that do it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.data import ByteTokenizer, Corpus, Pose
from lenext.models import build_model, token_figures
from lenext.parallel.meshes import make_mesh
from lenext.training import train
from lenext.training.batches import make_batches
from lenext.training.step import init_state, make_train_step
from tests.training.common import read_metrics, tiny_config, tiny_decoder_config
from tests.training.runs import assert_same_run, interruption

VOCABULARY = 11
LENGTH = 7


@pytest.fixture(scope="module", params=["gau", "decoder"])
def model(request):
    settings = base_config().model
    settings.update(
        family=request.param, hidden_size=8, intermediate_size=12, key_size=4, num_layers=1,
        num_heads=2,
    )  # fmt: skip
    model = build_model(settings, read_methods("pi(scale=4)", LENGTH), VOCABULARY, seed=3)
    # At its initial values a model hardly attends to anything, nor has much to say of it.
    for path, x in nnx.to_flat_state(nnx.state(model)):
        x[...] = x[...] * (1 if "scale" in path else 20 if request.param == "decoder" else 2)
    return model


@pytest.fixture(scope="module")
def batch(model):
    """Rows that skip after three tokens, after one, before the last one, and not at all."""
    rng = np.random.default_rng(0)
    places = 3 if model.objective == "masked_lm" else LENGTH
    skips = np.array([[0, 0, 0, 9, 9, 9, 9], [0, 5, 5, 5, 5, 5, 5], [0] * 6 + [21], [0] * 7])
    batch = {
        "tokens": rng.integers(VOCABULARY, size=(4, LENGTH)),
        "targets": rng.integers(VOCABULARY, size=(4, places)),
        "token_positions": np.arange(LENGTH) + skips,
    }
    if model.objective == "masked_lm":
        batch["predicted"] = np.stack([rng.permutation(LENGTH)[:3] for _ in range(4)])
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    return batch | {"weights": jnp.asarray(rng.integers(2, size=(4, places)), jnp.float32)}


def losses_by_hand(model, batch, positions):
    """Cross-entropies from all logits, in float64."""
    hidden, _ = model.encode(batch["tokens"], positions=positions)
    logits = np.asarray(model.logits(hidden), np.float64)
    if model.objective == "masked_lm":
        logits = logits[np.arange(4)[:, None], np.asarray(batch["predicted"])]
    chosen = np.take_along_axis(logits, np.asarray(batch["targets"])[:, :, None], axis=-1)
    return np.log(np.exp(logits).sum(-1)) - chosen[:, :, 0]


def test_the_model_is_told_where_tokens_stand(model, batch):
    loss = token_figures(model, batch).loss
    expected = losses_by_hand(model, batch, batch["token_positions"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    plain = losses_by_hand(model, batch, None)
    assert np.min(np.max(np.abs(plain - expected)[:3], axis=1)) > 1e-4
    np.testing.assert_allclose(plain[3], expected[3], rtol=1e-5, atol=1e-5)
    without = {name: x for name, x in batch.items() if name != "token_positions"}
    np.testing.assert_allclose(token_figures(model, without).loss, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_and_their_micro_batches_take_positions_along(model, batch, accumulate):
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        nnx.graphdef(model), optimizer, seed=0, dropout=False, accumulate=accumulate
    )
    state = jax.tree.map(jnp.copy, init_state(model, optimizer))
    _, metrics = step(state, batch, np.int32(1))
    losses = losses_by_hand(model, batch, batch["token_positions"])
    weights = np.asarray(batch["weights"])
    expected = np.sum(losses * weights) / np.sum(weights)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [tiny_config, tiny_decoder_config])
def test_a_config_asks_for_them(data_dir, make):
    config, tokenizer = make(data_dir), ByteTokenizer()
    tokens = np.arange(200, dtype=np.uint8)
    corpus = Corpus(tokens, np.array([0, 200]), ["all"], "0", "numbers", "train")
    data = corpus, tokenizer, make_mesh(config.mesh)
    assert "token_positions" not in next(make_batches(config, *data))
    config.data.update(positions="pose", target_length=300, pose_chunks=3)
    rows = np.concatenate(
        [
            batch["token_positions"]
            for batch, _ in zip(make_batches(config, *data), range(50), strict=False)
        ]
    )
    assert rows.shape == (200, 16)
    assert 290 < rows.max() < 300
    assert np.max(np.sum(np.diff(rows) > 1, axis=1)) == 2
    config.data.update(positions="random", target_length=40)
    rows = next(make_batches(config, *data))["token_positions"]
    assert rows.shape == (4, 16)
    assert 20 < rows.max() < 40
    assert np.all(np.diff(rows) > 0)


class TestRuns:
    @pytest.fixture
    def pose_config(self, config):
        config.model.method = "pi(scale=8)"
        config.data.update(positions="pose", target_length=128)
        return config

    def test_a_resumed_one_is_an_undisturbed_one(self, pose_config, tmp_path):
        train(pose_config, tmp_path / "whole")
        with interruption(8, "step"):
            train(pose_config, tmp_path / "halved")
        train(pose_config, tmp_path / "halved")
        assert_same_run(tmp_path / "halved", tmp_path / "whole")

    def test_a_plain_run_may_be_gone_on_with(self, pose_config, undisturbed, tmp_path):
        """As the paper does: the branch goes on in the data where its origin stopped."""
        seen = []
        call = Pose.__call__

        def noted(self, length, rng):
            seen.append(self)
            return call(self, length, rng)

        pose_config.training.update(
            branch_from=str(undisturbed), steps=14, eval_every=14, checkpoint_every=14
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pose, "__call__", noted)
            train(pose_config, tmp_path)
        assert [record["step"] for record in read_metrics(tmp_path)] == [13, 14]
        assert set(seen) == {Pose(128)}
