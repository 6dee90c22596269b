"""Golden metrics: three steps of training, to be moved only with a reason.

The first loss is checked against an independent forward pass in float64; the rest, which follows
from the gradient and the optimiser, are stored. `python -m tests.models.test_golden` prints them.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import quickstart
from lenext.attention import make_method
from lenext.models import Decoder, GAUEncoder, ModelConfig, kinds_of, token_figures
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import init_state, make_train_step
from tests.models.common import fill

GOLDEN = {
    "softmax": [(4.072572, 5.317849), (4.038804, 5.284628), (3.978729, 5.199503)],
    "infoscale": [(4.079284, 5.439145), (4.044555, 5.406898), (3.982824, 5.317427)],
    "lssar": [(4.103161, 6.272770), (4.058492, 6.247814), (3.979539, 6.097274)],
    "cosscale(cos_scale=16)": [(4.090781, 5.407227), (4.051913, 5.414350), (3.982121, 5.365884)],
    "ssmax": [(4.086277, 5.629548), (4.049818, 5.598342), (3.985182, 5.498776)],
    "rerope": [(4.092568, 5.400653), (4.058317, 5.370790), (3.997388, 5.288527)],
}

GOLDEN_DECODER = {
    "softmax": [(3.856857, 3.600132), (3.785017, 3.447326), (3.665751, 3.094916)],
    "lssar": [(3.523060, 17.61796), (3.432503, 11.91890), (3.316370, 6.453621)],
    "alibi": [(3.951426, 3.265867), (3.885231, 3.191422), (3.770893, 3.040777)],
}


def batch():
    """Two sequences from a fixed congruence, every fifth token to be predicted."""
    tokens = (np.arange(2 * 25).reshape(2, 25) * 7 + 3) % 16
    positions = np.tile(np.arange(0, 25, 5), (2, 1))
    targets = np.take_along_axis(tokens, positions, axis=1)
    corrupted = tokens.copy()
    np.put_along_axis(corrupted, positions, 16, axis=1)
    arrays = {"tokens": corrupted, "predicted": positions, "targets": targets}
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    return arrays | {"weights": jnp.ones((2, 5), jnp.float32)}


def model(name):
    sizes = ModelConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, key_size=8, num_layers=2
    )
    method = make_method(name, train_length=8)
    built = GAUEncoder(sizes, method, rngs=nnx.Rngs(0))
    # Initial values from NumPy, whose streams do not move with the library's version.
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith((".kernel", ".embedding")):
            return rng.normal(0, 0.3, shape)
        return rng.uniform(0.5, 2.0, shape) if name.endswith(".scale") else None

    fill(built, draw)
    return built


def decoder(name):
    """A decoder with all its options, and initial values from NumPy."""
    sizes = ModelConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
        num_kv_heads=2, key_size=8, qk_norm=True, tied_head=False,
    )  # fmt: skip
    built = Decoder(sizes, make_method(name, train_length=8), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    maps = (".kernel", ".embedding")
    fill(built, lambda name, shape: rng.normal(0, 0.3, shape) if name.endswith(maps) else None)
    return built


def packed_batch():
    """A row of one document and a row of two and padding."""
    tokens = (np.arange(2 * 26).reshape(2, 26) * 7 + 3) % 16
    segment_ids = np.array([[1] * 25, [1] * 9 + [2] * 12 + [0] * 4])
    arrays = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segment_ids}
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    return arrays | {"weights": jnp.asarray(segment_ids > 0, jnp.float32)}


def three_steps(built, batch):
    """Loss and gradient norm of three AdamW steps at the quickstart's settings."""
    config = quickstart.get_config("smoke").optimizer
    optimizer = make_optimizer(config, make_schedule(config, 20), kinds_of(built))
    state = init_state(built, optimizer)
    step = make_train_step(nnx.graphdef(built), optimizer, seed=0, dropout=False)
    out = []
    for i in range(1, 4):
        state, metrics = step(state, batch, np.int32(i))
        out.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return out


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_metrics(name):
    # Float32 sums in another order (other CPUs, other thread counts) move the sixth digit.
    np.testing.assert_allclose(three_steps(model(name), batch()), GOLDEN[name], rtol=2e-5)


@pytest.mark.parametrize("name", list(GOLDEN_DECODER))
def test_golden_metrics_of_a_decoder(name):
    found = three_steps(decoder(name), packed_batch())
    # LSSAR's fifteenth power multiplies a relative error by fifteen.
    rtol = 3e-4 if name == "lssar" else 2e-5
    np.testing.assert_allclose(found, GOLDEN_DECODER[name], rtol=rtol)


def test_loss_of_a_pack_is_that_of_its_documents():
    built, data = decoder("softmax"), packed_batch()
    figures = token_figures(built, data)
    parts = [(0, 0, 25), (1, 0, 9), (1, 9, 21)]
    for row, start, stop in parts:
        alone = np.asarray(built(data["tokens"][row : row + 1, start:stop])[0], np.float64)
        logs = alone - np.log(np.exp(alone).sum(-1, keepdims=True))
        targets = np.asarray(data["targets"][row, start:stop])
        expected = -logs[np.arange(stop - start), targets]
        np.testing.assert_allclose(figures.loss[row, start:stop], expected, rtol=2e-4)


def test_figures_of_predicted_tokens():
    built, data = model("softmax"), batch()
    logits = np.asarray(built(data["tokens"]), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, columns = np.arange(2)[:, None], np.asarray(data["predicted"])
    expected = -log_probs[rows, columns, np.asarray(data["targets"])]
    figures = token_figures(built, data)
    np.testing.assert_allclose(figures.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        figures.log_z, np.log(np.exp(logits).sum(-1))[rows, columns], rtol=1e-5
    )
    np.testing.assert_array_equal(figures.weights, data["weights"])
    hits = logits[rows, columns].argmax(-1) == np.asarray(data["targets"])
    np.testing.assert_array_equal(figures.correct, hits)


if __name__ == "__main__":
    for method in GOLDEN:
        print(f'    "{method}": {three_steps(model(method), batch())},')
    for method in GOLDEN_DECODER:
        print(f'    "{method}": {three_steps(decoder(method), packed_batch())},')
