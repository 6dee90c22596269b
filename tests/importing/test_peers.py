"""Imports beside torch and transformers themselves, where these are installed."""

import numpy as np
import pytest

from lenext.importing import export_checkpoint, import_checkpoint
from lenext.models import load_pretrained
from tests.importing.conftest import GOLDEN

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tests.importing import peers  # noqa: E402 # it imports both

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.mark.parametrize("name", [n for n in peers.CASES if not n.startswith("gau")])
def test_golden_values_are_theirs(name):
    logits = peers.logits(peers.make(name))
    np.testing.assert_allclose(logits, np.load(GOLDEN / name / "logits.npy"), atol=2e-5)


@pytest.mark.parametrize("name", ["llama_dynamic", "llama_yarn", "mistral", "qwen2_windows"])
def test_beyond_the_training_length(tmp_path, name):
    """Where a scaling follows the length, or a window shows."""
    model = peers.make(name)
    peers.save(model, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    tokens, _ = peers.sequences(61)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(load_pretrained(tmp_path / "run")(tokens))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "roformer"])
def test_transformers_loads_what_is_exported(tmp_path, name):
    model = peers.make(name)
    peers.save(model, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    loaded = type(model).from_pretrained(tmp_path / "back").eval()
    np.testing.assert_array_equal(peers.logits(loaded), peers.logits(model))


def test_shards(tmp_path):
    model = peers.make("llama")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    tokens, mask = peers.sequences()
    ours = np.asarray(load_pretrained(tmp_path / "run")(tokens, mask=mask))
    np.testing.assert_allclose(ours[mask], peers.logits(model)[mask], atol=1e-4, rtol=0)
