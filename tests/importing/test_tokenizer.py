"""What a folder says besides its weights: where texts start and end, and files that come along."""

import json
import shutil

import numpy as np
import pytest

from lenext.data import get_tokenizer, open_tokenizer, read_tokenizer_json
from lenext.errors import UserError
from lenext.importing import export_checkpoint, import_checkpoint
from lenext.importing.tokenizer import KEPT, read_tokenizer
from lenext.workdirs.pretrained import load_run
from tests.importing.conftest import GOLDEN, copy

WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(2, 37))]


def words(added=(), **changes):
    """A tokenizer.json of words with spaces between; `added` are (id, token, special)."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "added_tokens": [
            {"id": i, "content": token, "special": special, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for i, token, special in added
        ],
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {word: i for i, word in enumerate(WORDS)}},
    } | changes  # fmt: skip


BERT = {"type": "BertProcessing", "sep": ["w9", 9], "cls": ["w8", 8]}


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def without(folder, key, **changes):
    """Of its config.json."""
    content = json.loads((folder / "config.json").read_text())
    content.pop(key)
    write(folder, config=content | changes)


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, "2"),  # which its config.json says
        ({"generation_config": {"eos_token_id": [7, 2, 5]}}, "2,7,5"),
        ({"tokenizer_config": {"eos_token": "w9"}}, "9,2"),
        ({"tokenizer_config": {"eos_token": {"content": "w9"}, "bos_token": None}}, "9,2"),
        ({"special_tokens_map": {"eos_token": "w4"}}, "4,2"),
        ({"tokenizer": words(post_processor=BERT), "special_tokens_map": {"eos_token": "w4"}},
         "9,4,2"),
        ({"tokenizer_config": {"eos_token": "nowhere"}}, "2"),
    ],
)  # fmt: skip
def test_declared_ends(folder, capsys, files, eos):
    write(folder, **{"tokenizer": words()} | files)
    assert read_tokenizer(folder, 37).eos == eos
    assert capsys.readouterr().err == ""


def test_ends_that_nothing_declares(folder, capsys):
    without(folder, "eos_token_id")
    assert read_tokenizer(folder, 37).eos == "auto"  # of whatever tokeniser is named later
    write(folder, tokenizer=words())
    assert read_tokenizer(folder, 37).eos == "1"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "does not say what ends a document; '</s>' does, by its name (config.data.eos)" in said
    without(folder, "model_type", eos_token_id=None, model_type="llama")
    assert read_tokenizer(folder, 37).eos == "none"  # which it says
    without(folder, "eos_token_id", eos_token_id=99)
    assert read_tokenizer(folder, 37).eos == "none"
    assert "token 99 is said to end a text, and the model has 37" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize("value", ["</s>", [2, None], True, -1, 2**40, {"a": 1}])
def test_ends_that_are_no_ids(folder, name, value):
    path = folder / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"eos_token_id": value}))
    with pytest.raises(UserError, match=rf"{name}\.json: eos_token_id=.*: should be a token's id"):
        read_tokenizer(folder, 37)


@pytest.mark.parametrize("name", ["generation_config", "tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 10**5])
def test_files_beside_that_are_broken(folder, name, content):
    (folder / f"{name}.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.json: should be (a )?JSON"):
        read_tokenizer(folder, 37)


def test_what_came_along_stays_with_the_run_and_goes_out(folder, tmp_path):
    write(folder, tokenizer=words(post_processor=BERT))
    for i, name in enumerate(KEPT):
        (folder / name).write_text(json.dumps({"eos_token": "w7", "number": i}))
    run, tuned, back = (tmp_path / name for name in ("run", "tuned", "back"))
    import_checkpoint(folder, run)
    config = load_run(run).config
    assert (config.data.bos, config.data.eos) == ("auto", "9,7,2")
    frame = open_tokenizer(config).frame
    assert (frame.start, frame.end, frame.stops) == ((8,), 9, (9, 7, 2))
    shutil.rmtree(folder)
    run.rename(tuned)
    export_checkpoint(tuned, back)
    for i, name in enumerate(KEPT):
        assert json.loads((back / name).read_text()) == {"eos_token": "w7", "number": i}
    again = tmp_path / "again"
    import_checkpoint(back, again)
    assert load_run(again).config.data.eos == "9,7,2"


@pytest.mark.parametrize(
    ("settings", "start", "eos"),
    [
        ({}, (), "6,2"),
        ({"bos_token": "<s>", "add_bos_token": True}, (5,), "6,2"),
        ({"bos_token": "<s>", "add_bos_token": False}, (), "6,2"),
        ({"add_bos_token": True, "eos_token": "<s>"}, (6,), "5,2"),
    ],
)
def test_gpt2_s_pair_starts_as_its_settings_say(tmp_path, settings, start, eos):
    folder = copy(GOLDEN / "gpt2", tmp_path / "gpt2")
    vocabulary = {word: i for i, word in enumerate(["a", "b", "c", "Ġ", "ab", "<s>"])}
    vocabulary["<|endoftext|>"] = 6
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    write(folder, tokenizer_config={"eos_token": "<|endoftext|>"} | settings)
    found = read_tokenizer(folder, 37)
    assert found.eos == eos
    assert read_tokenizer_json(found.content, found.name, eos=eos).frame.start == start


def test_an_added_padding_beyond_the_model_counts_only_where_a_text_spells_it(folder, tmp_path):
    write(folder, tokenizer=words([(37, "[PAD]", False)]))
    import_checkpoint(folder, tmp_path / "run")
    tokenizer = open_tokenizer(load_run(tmp_path / "run").config)
    assert tokenizer.vocab_size == 37
    assert tokenizer.pad_id == 2  # the end, for 37 is no id of the model's
    np.testing.assert_array_equal(tokenizer.encode("w3 w36"), [3, 36])
    with pytest.raises(
        UserError, match=r"holds '\[PAD\]', which is token 37, and the model has 37"
    ):
        tokenizer.encode("w3 [PAD]")
    whole = get_tokenizer(str(folder / "tokenizer.json"), eos="2")
    assert whole.pad_id == 37
    assert tokenizer.document_identity != whole.document_identity  # what was kept is not believed
    assert tokenizer.fingerprint == whole.fingerprint
    write(folder, tokenizer=words([(37, "[PAD]", True)]))  # what no text yields
    np.testing.assert_array_equal(
        get_tokenizer(str(folder / "tokenizer.json"), eos="2").within(37).encode("[PAD]"), [0]
    )


def test_words_beyond_the_model_are_refused_at_once(folder):
    content = words()
    content["model"]["vocab"]["w37"] = 37
    write(folder, tokenizer=content)
    with pytest.raises(UserError, match=r"tokenizer\.json: has ids up to 37, and the model has 37"):
        read_tokenizer(folder, 37)
