"""Imported models give the logits that their own libraries gave (`peers.py` made these)."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lenext.importing import export_checkpoint, import_checkpoint
from lenext.importing.recipes import KINDS
from lenext.importing.tensors import open_tensors
from lenext.models import load_pretrained, named_parameters, with_method
from lenext.workdirs.pretrained import load_run
from tests.importing.conftest import GOLDEN, copy, golden_rows

NAMES = sorted(path.name for path in GOLDEN.iterdir())


def test_there_is_one_of_each_kind():
    kinds = {json.loads((GOLDEN / n / "config.json").read_text())["model_type"] for n in NAMES}
    assert kinds == set(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_the_way_back(tmp_path, name):
    """At the training length, in float32, beside padding; and back, to the bit."""
    source, workdir, back = GOLDEN / name, tmp_path / "run", tmp_path / "back"
    import_checkpoint(source, workdir)
    tokens, mask = golden_rows()
    logits = np.asarray(load_pretrained(workdir)(tokens, mask=mask))
    expected = np.load(source / "logits.npy")
    assert np.max(np.abs(expected)) > 3
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)

    export_checkpoint(workdir, back)
    ours, theirs = open_tensors(back), open_tensors(source)
    assert list(sorted(ours)) == list(sorted(theirs))
    for tensor in theirs:
        assert ours[tensor].dtype == theirs[tensor].dtype
        np.testing.assert_array_equal(ours[tensor].read(), theirs[tensor].read(), tensor)
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sorted(p.name for p in back.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name", ["llama_linear", "llama_llama3", "llama_yarn", "llama_yarn_mscale", "gpt_neox",
             "phi3_longrope", "gemma3_linear"],
)  # fmt: skip
def test_rotations_swapped_in_start_from_a_scaling(tmp_path, name):
    """At distances that it leaves alone, ReRoPE changes nothing, and each layer takes it."""
    source = GOLDEN / name
    import_checkpoint(source, tmp_path / "run")
    run = load_run(tmp_path / "run")
    before = "trained+" if name.startswith("gemma3") else ""  # which keeps the windows
    tokens, mask = golden_rows()
    model = with_method(run.model, run.read_methods(f"{before}rerope(window=1000)"))
    expected = np.load(source / "logits.npy")[mask]
    np.testing.assert_allclose(np.asarray(model(tokens, mask=mask))[mask], expected, atol=1e-4)
    model = with_method(run.model, run.read_methods(f"{before}rerope(window=3)"))
    assert np.max(np.abs(np.asarray(model(tokens, mask=mask))[mask] - expected)) > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(tmp_path, dtype):
    """They are taken to float32 and back without loss."""
    source = copy(GOLDEN / "qwen2", tmp_path / "narrow")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = {name: x.astype(kind) for name, x in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors")
    import_checkpoint(source, tmp_path / "run")
    model = load_pretrained(tmp_path / "run")
    kernel = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(named_parameters(model)["layers.1.mlp.up_proj.kernel"], kernel)
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, x in tensors.items():
        assert back[name].dtype == kind
        np.testing.assert_array_equal(back[name].view(np.uint16), x.view(np.uint16))


def test_names_without_their_prefix(tmp_path):
    """As GPT-2's own weights were published."""
    source = copy(GOLDEN / "gpt2", tmp_path / "bare")
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
    save_file(bare, source / "model.safetensors")
    import_checkpoint(source, tmp_path / "run")
    tokens, mask = golden_rows()
    logits = np.asarray(load_pretrained(tmp_path / "run")(tokens, mask=mask))
    expected = np.load(GOLDEN / "gpt2" / "logits.npy")
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == bare.keys()


def test_gau_alpha_is_its_own_definition(tmp_path):
    """Against its formulas in float64, from the tensors as they were stored."""
    source = GOLDEN / "gau_alpha"
    x = {name: t.read().astype(np.float64) for name, t in open_tensors(source).items()}
    (tokens, _), size, heads = golden_rows(), 24, 8
    embeddings = "gau_alpha.embeddings"

    def norm(h):
        return h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + 1e-12)

    def turned(q):
        angle = np.arange(24)[:, None] * 10000.0 ** (-2 * np.arange(heads // 2) / heads)[None]
        a, b, cos, sin = q[..., 0::2], q[..., 1::2], np.cos(angle), np.sin(angle)
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(q.shape)

    h = x[f"{embeddings}.word_embeddings.weight"][tokens]
    h = norm(h + x[f"{embeddings}.token_type_embeddings.weight"][0])
    for i in range(2):
        gau = f"gau_alpha.encoder.layer.{i}.gau"
        z = h @ x[f"{gau}.i_dense.weight"].T
        u, v, z = np.split(z / (1 + np.exp(-z)), [size, 2 * size], axis=-1)
        q, k = (turned(z * x[f"{gau}.{name}_scaleoffset.weight"]) for name in "qk")
        logits = np.einsum("btd,bsd->bts", q, k) / np.sqrt(heads) * np.log(24) / np.log(512)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        h = norm(h + (u * (weights @ v)) @ x[f"{gau}.o_dense.weight"].T)
    expected = h @ x[f"{embeddings}.word_embeddings.weight"].T
    import_checkpoint(source, tmp_path / "run")
    np.testing.assert_allclose(load_pretrained(tmp_path / "run")(tokens), expected, atol=1e-4)
