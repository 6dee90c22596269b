"""Imports beside torch and transformers themselves, where these are installed."""

import json

import numpy as np
import pytest

from lenext.data import get_tokenizer
from lenext.errors import UserError
from lenext.importing import convert, export_checkpoint, import_checkpoint, llama
from lenext.models import load_pretrained
from tests.cli.conftest import untrained_run
from tests.data import kinds
from tests.importing.conftest import GOLDEN
from tests.training.common import tiny_decoder_config

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tests.importing import peers  # noqa: E402 # it imports both

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.mark.parametrize("name", [n for n in peers.CASES if not n.startswith("gau")])
def test_golden_values_are_theirs(name):
    logits = peers.logits(peers.make(name))
    np.testing.assert_allclose(logits, np.load(GOLDEN / name / "logits.npy"), atol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["llama_dynamic", "llama_yarn", "mistral", "qwen2_windows", "phi3_longrope_short", "gemma3"],
)
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


@pytest.mark.parametrize(
    "name", ["qwen3", "gpt2", "gpt_neox", "phi3_longrope", "gemma2", "gemma3", "roformer"]
)
def test_transformers_loads_what_is_exported(tmp_path, name):
    model = peers.make(name)
    peers.save(model, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    loaded = type(model).from_pretrained(tmp_path / "back").eval()
    np.testing.assert_array_equal(peers.logits(loaded), peers.logits(model))


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_prompts_are_the_ids_that_theirs_are(tmp_path, kind):
    """With what their tokeniser puts before a text, from the same folder."""
    folder = kinds.save(kind, tmp_path).parent
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = get_tokenizer(str(folder / "tokenizer.json"), eos="none")
    for text in ("Pass key A: 48213", " two  spaces\n\n", "é"):
        assert [*ours.frame.start, *ours.encode(text)] == theirs(text).input_ids


@pytest.mark.parametrize(
    ("heads", "kind", "eos", "ends"),
    [(4, "llama", "2,1", [2, 1]), (5, "mistral", "0", 0), (4, "llama", "none", None)],
)
def test_transformers_reads_a_decoder_of_ours(data_dir, tmp_path, heads, kind, eos, ends):
    """Five heads of 16 are no shares of 32; and ends are what they were, none too."""
    config = tiny_decoder_config(data_dir)
    tokenizer = kinds.save("llama3", tmp_path / "own")
    tokenizer = tokenizer.rename(tokenizer.with_name("my_own.json"))
    config.model.update(
        method="softmax(pairing='halves')", hidden_size=32, num_heads=heads, num_kv_heads=heads,
        key_size=16, vocab_size=403,
    )  # fmt: skip
    config.data.update(tokenizer=str(tokenizer), eos=eos)
    untrained_run(config, tmp_path / "run")
    back = tmp_path / "back"
    export_checkpoint(tmp_path / "run", back)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(back)
    assert theirs.config.model_type == kind
    for own in (theirs.config, theirs.generation_config):
        assert (own.bos_token_id, own.eos_token_id) == (0, ends)
    tokens = np.arange(3, 40)[None]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(load_pretrained(tmp_path / "run")(tokens))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    ids = get_tokenizer(str(tokenizer), eos="none").encode("Pass key").tolist()
    assert transformers.AutoTokenizer.from_pretrained(back)("Pass key").input_ids == [0, *ids]


def test_what_transformers_cannot_read_is_not_exported(data_dir, tmp_path, monkeypatch):
    config = tiny_decoder_config(data_dir)
    config.model.update(
        method="softmax(pairing='halves')", hidden_size=32, num_heads=5, num_kv_heads=5,
        key_size=16, attention_bias="qkvo",
    )  # fmt: skip
    untrained_run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"hidden_size=32 should be a multiple of num_heads=5"):
        export_checkpoint(tmp_path / "run", tmp_path / "back")
    # As if nothing here knew of it.
    monkeypatch.setattr(convert, "write_llama_source", as_a_llama)
    config.model.attention_bias = ""
    untrained_run(config, tmp_path / "other")
    with pytest.raises(UserError, match=r"could not read it \(.*not a multiple of the number"):
        export_checkpoint(tmp_path / "other", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def as_a_llama(folder, *arguments):
    llama.write_llama_source(folder, *arguments)
    content = json.loads((folder / "config.json").read_text())
    content.pop("sliding_window")
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "llama"}))


def test_shards(tmp_path):
    model = peers.make("llama")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    tokens, mask = peers.sequences()
    ours = np.asarray(load_pretrained(tmp_path / "run")(tokens, mask=mask))
    np.testing.assert_allclose(ours[mask], peers.logits(model)[mask], atol=1e-4, rtol=0)
