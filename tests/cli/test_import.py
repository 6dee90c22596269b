"""A checkpoint of another library's, from its folder to a sweep, a tuned run and back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lenext.data import get_tokenizer
from lenext.importing import convert, import_checkpoint
from lenext.models import load_pretrained, model_methods, named_parameters, with_method
from tests.cli.conftest import untrained_run
from tests.training.common import REPOSITORY, read_metrics, snapshot, tiny_decoder_config

GOLDEN = REPOSITORY / "tests" / "importing" / "golden"


@pytest.fixture
def folder(tmp_path):
    """A Llama whose ids are bytes, and longer text than it was trained on."""
    folder = tmp_path / "llama"
    folder.mkdir()
    config = json.loads((GOLDEN / "llama_tied" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 258}))
    tensors = load_file(GOLDEN / "llama_tied" / "model.safetensors")
    rng = np.random.default_rng(0)
    tensors["model.embed_tokens.weight"] = rng.standard_normal((258, 16)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def text(tmp_path):
    words = " ".join(f"word{i % 97} of {i % 31}" for i in range(300))
    (tmp_path / "text.txt").write_text(words)
    return [
        "--config.data.dataset=text_files", f"--config.data.files={tmp_path / 'text.txt'}",
        "--config.data.tokenizer=bytes", f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.eval.tokens=128", "--config.eval.batch_tokens=128", "--config.eval.documents=2",
        "--config.eval.bootstrap=50", "--config.eval.probe_rows=2",
    ]  # fmt: skip


def test_from_a_folder_to_a_sweep_and_back(call, folder, text, tmp_path):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    said = call("import_checkpoint", f"--source={folder}", f"--workdir={run}")
    assert said.code == 0, said.err
    assert "method: softmax(base=10000.0,pairing='halves'), trained at 24 tokens" in said.out
    assert "tokenizer: none; the model takes token ids" in said.out

    swept = call(
        "evaluate", f"--workdir={run}", *text, "--config.eval.split=train",
        "--config.eval.lengths=24,48",
        "--config.eval.methods=trained,trained+infoscale,rerope,nope",
    )  # fmt: skip
    assert swept.code == 0, swept.err
    records = json.loads((run / "eval" / "results.json").read_text())["records"]
    loss = {(r["method"], r["length"]): r["value"] for r in records if r["metric"] == "loss"}
    assert loss["trained", 24] == loss["rerope", 24]  # its window is L; base and pairing are kept
    assert loss["trained", 24] == pytest.approx(loss["trained+infoscale", 24], abs=0.05)
    assert len({loss[method, 48] for method, _ in loss}) == 4
    unsuited = {r["method"]: r["unsuited"] for r in records}
    assert unsuited == {
        "trained": [], "trained+infoscale": [], "rerope": [], "nope": ["position"]
    }  # fmt: skip

    wanted = ["generate", f"--workdir={run}", "--prompt=word1", "--max_tokens=3", "--method=rerope"]
    drawn = call(*wanted)
    assert drawn.code == 2
    assert "no tokenizer is named, and the run has none; choose from: bytes" in drawn.err
    drawn = call(*wanted, "--tokenizer=bytes")
    assert drawn.code == 0, drawn.err
    assert drawn.out.startswith("word1")
    (folder / "big.txt").write_text("[UNK]\n" + "\n".join(f"w{i}" for i in range(300)))
    drawn = call(*wanted, f"--tokenizer={folder / 'big.txt'}")
    assert drawn.code == 2
    assert "big.txt: has 301 ids, and the model 258" in drawn.err

    trained = call(
        "train", f"--config=configs/finetune.py:{run}", f"--workdir={tuned}", *text,
        "--config.model.method=trained+ssmax",
        "--config.optimizer.frozen=*,!layers.*.attention.learned", "--config.training.steps=4",
        "--config.evaluators.validation.split=train", "--config.evaluators.validation.tokens=48",
        "--config.evaluators.validation.documents=2", "--config.optimizer.learning_rate=0.01",
        "--config.training.log_every=1", "--config.optimizer.warmup_steps=1",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "branching off step 0" in trained.out
    assert [record["step"] for record in read_metrics(tuned)] == [1, 2, 3, 4]
    before, after = load_pretrained(run), load_pretrained(tuned)
    np.testing.assert_array_equal(
        np.asarray(before.layers.mlp.up_proj.kernel[...]),
        np.asarray(after.layers.mlp.up_proj.kernel[...]),
    )
    scales, initial = (
        named_parameters(model)["layers.0.self_attention.attention.learned.temperature.slope"]
        for model in (after, with_method(before, model_methods(after)))
    )
    assert np.all(scales != initial)

    refused = call("export_checkpoint", f"--workdir={tuned}", f"--target={tmp_path / 'back'}")
    assert refused.code == 2
    said = "softmax(base=10000.0,pairing='halves')+ssmax, has no place in a config.json"
    assert said in refused.err
    assert not (tmp_path / "back").exists()


def test_a_tuned_model_goes_back(call, folder, text, tmp_path):
    run, tuned, back = tmp_path / "run", tmp_path / "tuned", tmp_path / "back"
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={run}").code == 0
    trained = call(
        "train", f"--config=configs/finetune.py:{run}", f"--workdir={tuned}", *text,
        "--config.training.steps=2", "--config.evaluators.validation.split=train",
        "--config.evaluators.validation.tokens=48", "--config.evaluators.validation.documents=2",
        "--config.data.train_length=16",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    config = json.loads((tuned / "config.json").read_text())
    assert config["evaluators"]["validation"]["length"] == 16  # as those that are trained on
    done = call("export_checkpoint", f"--workdir={tuned}", f"--target={back}")
    assert done.code == 0, done.err
    ours, theirs = load_file(back / "model.safetensors"), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    name = "model.layers.1.self_attn.q_proj.weight"
    assert 0 < np.max(np.abs(ours[name] - theirs[name])) < 1e-3
    again = call("import_checkpoint", f"--source={back}", f"--workdir={tmp_path / 'again'}")
    assert again.code == 0, again.err
    tokens = np.arange(24)[None]
    np.testing.assert_array_equal(
        load_pretrained(tmp_path / "again")(tokens), load_pretrained(tuned)(tokens)
    )


def test_imported_weights_are_not_trained_over(call, fails, folder, text, tmp_path):
    run = tmp_path / "run"
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={run}").code == 0
    before = snapshot(run)
    said = fails("train", "--config=configs/finetune.py", f"--workdir={run}")
    assert said == "config argument None: should be the workdir of a run to go on from"
    said = fails("train", f"--config=configs/finetune.py:{run}", f"--workdir={run}")
    assert said.startswith(f"workdir {run}: holds imported weights; go on from them in another")
    said = fails(
        "train", f"--config=configs/finetune.py:{run}", f"--workdir={tmp_path / 'tuned'}", *text,
        "--config.model.vocab_size=300", "--config.evaluators.validation.split=train",
        "--config.evaluators.validation.tokens=48", "--config.evaluators.validation.documents=2",
    )  # fmt: skip
    assert "parameter embedding.embedding is [258, 16] there and [300, 16] in the config's" in said
    assert snapshot(run) == before


def test_a_tokenizer_comes_along(call, folder, tmp_path):
    words = ["[PAD]", "[UNK]", "[MASK]", "word", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    run = tmp_path / "run"
    said = call("import_checkpoint", f"--source={folder}", f"--workdir={run}")
    assert said.code == 0, said.err
    assert f"tokenizer: {run / 'vocab.txt'}" in said.out
    drawn = call("generate", f"--workdir={run}", "--prompt=words", "--max_tokens=2", "--top_k=1")
    assert drawn.code == 0, drawn.err
    assert drawn.out.startswith("words")
    assert call("export_checkpoint", f"--workdir={run}", f"--target={tmp_path / 'back'}").code == 0
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()


def test_a_decoder_of_ours_goes_out_as_a_llama(call, data_dir, tmp_path):
    config = tiny_decoder_config(data_dir)
    config.model.update(method="softmax(pairing='halves',base=100)", qk_norm=True, tied_head=False)
    run, back, again = (tmp_path / name for name in ("run", "back", "again"))
    untrained_run(config, run)
    done = call("export_checkpoint", f"--workdir={run}", f"--target={back}")
    assert done.code == 0, done.err
    assert json.loads((back / "config.json").read_text())["model_type"] == "qwen3"
    assert call("import_checkpoint", f"--source={back}", f"--workdir={again}").code == 0
    tokens = np.arange(16)[None]
    np.testing.assert_array_equal(load_pretrained(again)(tokens), load_pretrained(run)(tokens))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "its method, softmax, has no place in a config.json that says softmax(base=10000.0,"),
        ({"mlp": "plain"}, "only a decoder with mlp=gated, norm=rms, no learned positions"),
        ({"use_bias": True}, "only a decoder with mlp=gated, norm=rms, no learned positions"),
    ],
)
def test_decoders_that_are_no_llama(fails, data_dir, tmp_path, model, message):
    config = tiny_decoder_config(data_dir)
    config.model.update(model)
    untrained_run(config, tmp_path / "run")
    said = fails("export_checkpoint", f"--workdir={tmp_path / 'run'}", f"--target={tmp_path / 'b'}")
    assert message in said
    assert not (tmp_path / "b").exists()


def test_gpt2_s_pair_of_files(call, tmp_path):
    """As byte-level BPE: a space is part of the word after it, merges come in their order."""
    folder, run = tmp_path / "gpt2", tmp_path / "run"
    shutil.copytree(GOLDEN / "gpt2", folder)
    words = ["a", "b", "c", "Ġ", "ab", "Ġc", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ c\n")
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={run}").code == 0
    tokenizer = get_tokenizer(str(run / "tokenizer.json"))
    np.testing.assert_array_equal(tokenizer.encode("abc c ba"), [4, 2, 5, 3, 1, 0])
    assert tokenizer.decode(np.array([4, 2, 5, 3, 1, 0])) == "abc c ba"
    assert tokenizer.frame.end == 6


def test_the_first_layers_alone(call, fails, tmp_path):
    folder, run = tmp_path / "qwen2", tmp_path / "run"
    shutil.copytree(GOLDEN / "qwen2_windows", folder)
    theirs = load_file(folder / "model.safetensors")
    for i in range(2):
        theirs[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(theirs, folder / "model.safetensors")
    source = f"--source={folder}"
    done = call("import_checkpoint", source, f"--workdir={run}", "--layers=1")
    assert done.code == 0, done.err
    assert "method: softmax(base=10000.0,pairing='halves'), trained" in done.out  # no window
    assert len(model_methods(load_pretrained(run))) == 1
    back = tmp_path / "back"
    assert call("export_checkpoint", f"--workdir={run}", f"--target={back}").code == 0
    config = json.loads((back / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (1, ["full_attention"])
    kept = {name for name in theirs if not name.startswith("model.layers.1.")}
    assert load_file(back / "model.safetensors").keys() == kept
    said = fails("import_checkpoint", source, f"--workdir={tmp_path / 'more'}", "--layers=3")
    assert said.startswith("--layers=3: should be from 1 to 2, which ")


def drop(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def add(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.2.extra": np.zeros(3)}, folder / "model.safetensors")


def reshape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.zeros(17, np.float32)
    save_file(tensors, folder / "model.safetensors")


def repeat(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = 3 * tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def eighths(folder):
    """A type that NumPy lacks, of a tensor that no parameter comes from."""
    path, name = folder / "model.safetensors", "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(path) | {name: np.zeros(4, np.int8)}, path)
    data = path.read_bytes()
    assert data.count(b'"dtype":"I8"') == 1
    size = int.from_bytes(data[:8], "little") + 5
    header = data[8 : size + 3].replace(b'"dtype":"I8"', b'"dtype":"F8_E4M3"')
    path.write_bytes(size.to_bytes(8, "little") + header + data[size + 3 :])


def whole_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.zeros(16, np.int8)
    save_file(tensors, folder / "model.safetensors")


def untie(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-9])


def contradict(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))


def widen(folder):
    (folder / "vocab.txt").write_text("[UNK]\n" + "\n".join(f"w{i}" for i in range(300)))


def vocabulary(folder):
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, "tensor model.layers.1.mlp.up_proj.weight is missing, by config.json"),
        (repeat, "tensors model.norm.weight and norm.weight are the same one"),
        (eighths, "model.layers.0.self_attn.rotary_emb.inv_freq is F8_E4M3, which is not known"),
        (add, "tensor model.layers.2.extra is not known in a model of"),
        (reshape, "tensor model.norm.weight is [17], and [16] by config.json"),
        (whole_numbers, "tensor model.norm.weight is int8; should be one of float32"),
        (untie, "tensor lm_head.weight differs from model.embed_tokens.weight, which it repeats"),
        (cut, "should be a whole safetensors file"),
        (contradict, "self_attn.k_proj.weight is [12, 16], and [24, 16] by config.json"),
        (widen, "vocab.txt: has ids up to 300, and the model has 258 by config.json"),
        (vocabulary, "should be a file that Hugging Face's tokenizers saved"),
    ],
)
def test_folders_that_will_not_do(fails, folder, tmp_path, spoil, message):
    spoil(folder)
    before = snapshot(tmp_path)
    said = fails("import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'run'}")
    assert message in said
    assert snapshot(tmp_path) == before


def test_an_end_on_the_way_leaves_nothing(call, folder, tmp_path, monkeypatch):
    """By SIGTERM; and by a failed write, of which threads still put back what is removed."""
    before, handler = snapshot(tmp_path), signal.getsignal(signal.SIGTERM)
    wanted = ["import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'run'}"]

    def stop(*_):
        assert snapshot(tmp_path) != before
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(convert, "_fill", stop)
    assert call(*wanted).code == 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, handler)
    assert snapshot(tmp_path) == before

    remove, removed = shutil.rmtree, []

    def remove_and_put_back(folder, **options):
        remove(folder, **options)
        removed.append(folder)
        if len(removed) < 4:
            (folder / "checkpoints").mkdir(parents=True)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_fill", fail)
    monkeypatch.setattr(shutil, "rmtree", remove_and_put_back)
    assert "cannot be written ([Errno 28] No space left on device)" in call(*wanted).err
    assert len(removed) == 4
    assert snapshot(tmp_path) == before


def test_a_table_that_the_model_would_compute_is_that_table(fails, tmp_path):
    folder = tmp_path / "roformer"
    shutil.copytree(GOLDEN / "roformer", folder)
    tensors = load_file(folder / "model.safetensors")
    name = "roformer.encoder.embed_positions.weight"
    narrow = tensors[name].astype(ml_dtypes.bfloat16)
    save_file(tensors | {name: narrow}, folder / "model.safetensors")
    import_checkpoint(folder, tmp_path / "narrow")
    save_file(tensors | {name: tensors[name][::-1].copy()}, folder / "model.safetensors")
    said = fails("import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'run'}")
    assert "embed_positions.weight holds other numbers than the model computes" in said


@pytest.mark.parametrize("content", ["{}", "[", "[]", '{"x": "float32"}', None])
def test_a_way_back_that_is_lost(call, fails, folder, tmp_path, content):
    run = tmp_path / "run"
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={run}").code == 0
    path = run / "source" / "tensors.json"
    path.unlink() if content is None else path.write_text(content)
    said = fails("export_checkpoint", f"--workdir={run}", f"--target={tmp_path / 'back'}")
    right = "should hold the type of each tensor that was imported"
    right = {"[": "should be JSON", None: "cannot be read"}.get(content, right)
    assert str(path) in said
    assert right in said
    assert not (tmp_path / "back").exists()


def test_a_workdir_may_be_moved_with_its_tokeniser(call, folder, tmp_path):
    (folder / "vocab.txt").write_text("[UNK]\nword\n##s\n")
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'a'}").code == 0
    (tmp_path / "a").rename(tmp_path / "b")
    wanted = ["generate", f"--workdir={tmp_path / 'b'}", "--prompt=words", "--max_tokens=2"]
    drawn = call(*wanted)
    assert drawn.code == 0, drawn.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_position_embeddings": 2**31}, "max_position_embeddings: should be below 2^31"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0,
                                 "original_max_position_embeddings": 12}},
            "option base=1.0: should be above 1",
        ),
    ],
)  # fmt: skip
def test_configs_that_cannot_be(fails, folder, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    before = snapshot(tmp_path)
    said = fails("import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'run'}")
    assert message in said
    assert snapshot(tmp_path) == before


def test_flags(fails, folder, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert fails("import_checkpoint", workdir) == "--source=DIR is missing"
    assert fails("import_checkpoint", f"--source={folder}") == "--workdir=DIR is missing"
    said = fails("import_checkpoint", f"--source={folder}", workdir, "--train_length=1")
    assert said == "--train_length=1: should be at least 2, or 0"
    assert "should be a folder" in fails("import_checkpoint", "--source=nowhere", workdir)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    assert "is there already" in fails("import_checkpoint", f"--source={folder}", workdir)
    assert fails("export_checkpoint", workdir) == "--target=DIR is missing"
    target = f"--target={tmp_path / 'back'}"
    assert "holds no run" in fails("export_checkpoint", workdir, target)


def test_learned_positions_do_not_go_on(call, fails, text, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "gpt2"
    shutil.copytree(GOLDEN / "gpt2", folder)
    (folder / "vocab.txt").write_text("[UNK]\nw\no\nr\nd\n##o\n##r\n##d\n")
    assert call("import_checkpoint", f"--source={folder}", f"--workdir={run}").code == 0
    assert json.loads((run / "config.json").read_text())["eval"]["lengths"] == "24"
    text = [word for word in text if "tokenizer" not in word]
    said = fails("evaluate", f"--workdir={run}", *text, "--config.eval.lengths=24,48")
    assert said.startswith("config.eval.lengths: 48 tokens; should be at most")
    said = fails("generate", f"--workdir={run}", "--prompt=word", "--max_tokens=24")
    assert said.startswith("--max_tokens, with the prompt: 28 tokens; should be at most")


PEAK = """
import sys, threading, time
from pathlib import Path
from lenext.importing import import_checkpoint

def own():  # kB of memory, without pages of files, which the kernel may drop
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while not ended:
        seen.append(own())
        time.sleep(0.001)

import_checkpoint(Path("tests/importing/golden/llama_tied"), Path(sys.argv[2] + "_warm"))
seen, ended = [own()], False
thread = threading.Thread(target=watch)
thread.start()
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
ended = True
thread.join()
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_copy_of_the_model(tmp_path):
    """Importing takes the parameters' memory, 200 MB here, and some tensors' besides.

    Of those, of 34 MB each, up to four were seen on their way to the disk where that is slow; with
    a second copy of all it would be more than twice as much.
    """
    folder, hidden, inside = tmp_path / "large", 512, 16384
    folder.mkdir()
    source = GOLDEN / "llama_tied"
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": inside}
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {16: hidden, 24: inside}
    tensors = {
        name: np.zeros(
            [sizes.get(n, n) if "mlp" in name or n == 16 else n for n in x.shape], np.float32
        )
        for name, x in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "run")],
        cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size = (folder / "model.safetensors").stat().st_size / 1024
    assert 0.9 * size < int(done.stdout) < 1.95 * size


def test_a_length_beyond_learned_positions(fails, tmp_path):
    words = [f"--source={GOLDEN / 'gpt2'}", f"--workdir={tmp_path / 'run'}", "--train_length=9999"]
    assert fails("import_checkpoint", *words).startswith(
        "--train_length: 9999 tokens; should be at most config.model.max_positions="
    )
    assert not (tmp_path / "run").exists()


def test_weights_kept_in_16_bits(call, folder, text, tmp_path):
    """Half the room on disk and in memory; tuned in float32, and back with what was rounded."""
    run, wide, tuned, out = (tmp_path / name for name in ("run", "wide", "tuned", "out"))
    said = call("import_checkpoint", f"--source={folder}", f"--workdir={wide}")
    assert said.code == 0, said.err
    said = call(
        "import_checkpoint", f"--source={folder}", f"--workdir={run}", "--param_dtype=bfloat16"
    )
    assert said.code == 0, said.err
    half, whole = named_parameters(load_pretrained(run)), named_parameters(load_pretrained(wide))
    for name, x in whole.items():
        np.testing.assert_array_equal(half[name], x.astype(half[name].dtype))
    assert half["layers.0.mlp.up_proj.kernel"].dtype == ml_dtypes.bfloat16
    assert half["layers.0.mlp_norm.scale"].dtype == np.float32

    def losses(workdir, *more):
        swept = call(
            "evaluate", f"--workdir={workdir}", *text, "--config.eval.split=train",
            "--config.eval.lengths=24,48", "--config.eval.methods=trained,rerope", *more,
        )  # fmt: skip
        assert swept.code == 0, swept.err
        records = json.loads((workdir / "eval" / "results.json").read_text())["records"]
        return [r["value"] for r in records if r["metric"] == "loss"]

    # Rounded when imported or when read: the same weights.
    np.testing.assert_allclose(
        losses(run), losses(wide, "--config.model.param_dtype=bfloat16"), rtol=1e-6
    )
    said = call("export_checkpoint", f"--workdir={run}", f"--target={out}")
    assert said.code == 0, said.err
    for name, x in load_file(folder / "model.safetensors").items():
        ours = load_file(out / "model.safetensors")[name]
        assert ours.dtype == x.dtype
        stays = "norm" in name
        np.testing.assert_array_equal(ours, x if stays else x.astype(ml_dtypes.bfloat16))

    said = call(
        "train", f"--config=configs/finetune.py:{run}", f"--workdir={tuned}", *text[:4],
        "--config.training.steps=2", "--config.data.batch_size=2",
        "--config.training.eval_every=2", "--config.training.checkpoint_every=2",
        "--config.evaluators.validation.tokens=48", "--config.evaluators.validation.documents=1",
        "--config.evaluators.validation.split=train",
    )  # fmt: skip
    assert said.code == 0, said.err
    stored = json.loads((tuned / "config.json").read_text())
    assert stored["model"]["param_dtype"] == "bfloat16"

    said = call(
        "import_checkpoint", f"--source={folder}", f"--workdir={tmp_path / 'no'}",
        "--param_dtype=int8",
    )  # fmt: skip
    assert said.code == 2
    assert "param_dtype" in said.err
    assert "float32|bfloat16" in said.err
    assert not (tmp_path / "no").exists()
