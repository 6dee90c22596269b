"""Training by weights of 16 bits: float32 ones are moved, kept, and cast once a step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenext.config import base_config, read_methods
from lenext.evaluation import evaluate
from lenext.models import build_model, held_as, load_pretrained, named_parameters, token_figures
from lenext.training import train
from lenext.training.step import init_state, make_train_step
from tests.training.common import read_metrics, tiny_decoder_config

VOCABULARY = 11


def models():
    """(as it is moved, what makes what it computes with)."""
    config = base_config().model
    config.update(
        family="decoder", hidden_size=8, intermediate_size=12, key_size=4, num_layers=5,
        num_heads=2, param_dtype="bfloat16",
    )  # fmt: skip
    methods = read_methods("ssmax", 7)
    wide = build_model(config, methods, VOCABULARY, seed=3, param_dtype="float32")
    return wide, held_as(config, methods, VOCABULARY)


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(VOCABULARY, size=(8, 7)).astype(np.int32),
        "targets": rng.integers(VOCABULARY, size=(8, 7)).astype(np.int32),
        "weights": np.ones((8, 7), np.float32),
    }


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_moves_float32_by_the_gradient_at_the_rounded_weights(accumulate):
    wide, held = models()
    graphdef, optimizer, rows = nnx.graphdef(wide), optax.sgd(1.0), batch()
    step = make_train_step(
        graphdef, optimizer, seed=0, dropout=False, held=held, accumulate=accumulate
    )
    state = init_state(wide, optimizer)
    after, metrics = step(jax.tree.map(jnp.copy, state), rows, np.int32(1))

    def loss(params):
        given = jax.tree.map(jnp.asarray, rows)
        return jnp.mean(token_figures(nnx.merge(graphdef, params), given).loss)

    # The same values as float32: what is computed differs from that by rounded gradients alone.
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), held(state["params"]))
    value, gradient = jax.value_and_grad(loss)(rounded)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
    moved = jax.tree.map(jnp.subtract, state["params"], after["params"])
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        assert ours.dtype == jnp.float32
        # Eight bits of a number, at worst of each micro-batch's; and what a gain of 1 loses.
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=2**-8, atol=2**-8 * scale + 1e-7)


def test_a_run_keeps_float32_and_resumes_to_the_bit(tmp_path, data_dir):
    def config(steps):
        config = tiny_decoder_config(data_dir)
        config.model.param_dtype = "bfloat16"
        config.optimizer.update(schedule="wsd", decay_steps=0)  # of no number of steps
        config.training.update(steps=steps, ema_decay=0.5)
        return config

    train(config(6), tmp_path / "whole")
    train(config(4), tmp_path / "parts")
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())
    stored["training"]["steps"] = 6
    (tmp_path / "parts" / "config.json").write_text(json.dumps(stored))
    train(config(6), tmp_path / "parts")
    whole = read_metrics(tmp_path / "whole")
    assert [r["loss"] for r in whole] == [r["loss"] for r in read_metrics(tmp_path / "parts")]

    half = named_parameters(load_pretrained(tmp_path / "whole"))
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())
    stored["model"]["param_dtype"] = "float32"
    (tmp_path / "whole" / "config.json").write_text(json.dumps(stored))
    wide = named_parameters(load_pretrained(tmp_path / "whole"))
    kernel = "layers.1.mlp.up_proj.kernel"
    assert (half[kernel].dtype, wide[kernel].dtype) == (jnp.bfloat16, np.float32)
    for name, x in wide.items():
        np.testing.assert_array_equal(half[name], x.astype(half[name].dtype))
    assert np.any(wide[kernel] != half[kernel])  # checkpoints hold what was not rounded

    # An evaluator sees what a model of this type sees.
    final = config(6)
    final.eval.update(lengths="16", documents=4, tokens=128, methods="softmax", seed=0)
    final.eval.protocol = final.evaluators.validation.type
    records = evaluate(final, tmp_path / "whole")
    loss = next(r["value"] for r in records if r["metric"] == "loss")
    assert loss == pytest.approx(whole[-1]["eval/validation/loss"], rel=1e-6)
