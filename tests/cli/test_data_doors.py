"""A user's own text from the command line: what it trains on, and what it refuses."""

import gzip
import json

import pytest

from tests.training.common import read_metrics


def jsonl(texts, field="text"):
    return "".join(json.dumps({field: text}) + "\n" for text in texts)


@pytest.fixture
def words(tmp_path, data_dir):
    """A good command line for one's own text; its files are in tmp_path/texts."""
    return [
        "--config=configs/decoder.py:tiny,smoke", f"--workdir={tmp_path / 'run'}",
        "--config.data.dataset=text_files", f"--config.data.files={tmp_path / 'texts'}",
        f"--config.data.data_dir={tmp_path / 'tfds'}", "--config.training.steps=4",
        "--config.training.eval_every=4", "--config.training.checkpoint_every=4",
        "--config.training.log_every=1", "--config.optimizer.warmup_steps=1",
    ]  # fmt: skip


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def test_trains_evaluates_and_generates(call, words, texts, tmp_path):
    for i in range(12):
        split = "train" if i < 11 else "dev"
        (texts / split).mkdir(exist_ok=True)
        text = f"line {i:02} of a text that goes on and on\n" * (10 + i)  # 38 bytes each
        (texts / split / f"{i}.txt").write_text(text)
    (texts / "._1.txt").write_text("no text")
    outcome = call("train", *words)
    assert outcome.code == 0, outcome.err
    train = "train 11 documents of 6,270 tokens, the longest 760 (train/10.txt)"
    validation = "validation 798 tokens, all of them from one document (dev/11.txt)"
    skipped = "skipped 1: ._1.txt\n"
    assert outcome.out.count("data: ") == 1
    assert f"data: text_files; {train}; {validation}; {skipped}" in outcome.out
    workdir = f"--workdir={tmp_path / 'run'}"
    outcome = call("evaluate", workdir, "--config.eval.methods=softmax,rerope")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"data: text_files; {validation}; {skipped}")
    assert outcome.out.count("data: ") == 1
    assert "loss" in outcome.out
    outcome = call("generate", workdir, "--prompt=line 1", "--max_tokens=5")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("line 1")


def test_short_documents_are_packed(call, words, texts, tmp_path):
    """Lines of a few words, compressed, under another name, with one long one to validate on."""
    folder = texts
    for split, count in (("train", 60), ("validation", 1)):
        (folder / split).mkdir()
        lines = jsonl([f"document {i} " * (1 if split == "train" else 40) for i in range(count)],
                      field="body")  # fmt: skip
        with gzip.open(folder / split / "part.jsonl.gz", "wt") as file:
            file.write(lines)
    words += ["--config.data.field=body", "--config.data.packing=True"]
    outcome = call("train", *words)
    assert outcome.code == 0, outcome.err
    assert len(read_metrics(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "text_files: "),
        ({"a.txt": ""}, "no text in a.txt of "),
        ({"a.jsonl": jsonl(["text"] * 3) + "not json\n"}, "a.jsonl, line 4: "),
        ({"a.jsonl": jsonl(["text"] * 3) + '{"body": "x"}\n'}, "a.jsonl, line 4: "),
        ({"a.jsonl": jsonl(["text"] * 3) + '{"text": 3}\n'}, "a.jsonl, line 4: "),
        ({"a.jsonl.gz": "no gzip"}, "a.jsonl.gz"),
        ({"a.txt": "short text", "b.txt": "short too"}, "packing would use "),
    ],
)
def test_texts_that_will_not_do(fails, words, texts, tmp_path, files, message):
    for name, content in files.items():
        (texts / name).write_text(content)
    assert message in fails("train", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.data.files=", "files"),
        ("--config.data.files=nowhere/*.txt", "nowhere/*.txt"),
        ("--config.data.dataset=text_file", "unknown dataset 'text_file'; choose from"),
        ("--config.data.tokenizer=nowhere.json", "nowhere.json"),
        ("--config.data.tokenizer=nowhere.txt", "nowhere.txt"),
        ("--config.data.tokenizer=words", "words"),
        ("--config.model.vocab_size=100", "config.model.vocab_size=100: should be at least 258"),
        ("--config.eval.protocol=mlm15", ""),
        ("--config.evaluators.validation.type=mlm15", "should be one of full_context"),
    ],
)
def test_settings_that_will_not_do(request, words, texts, tmp_path, word, message):
    (texts / "a.txt").write_text("a text that goes on and on\n" * 20)
    (texts / "b.txt").write_text("another text that goes on and on\n" * 20)
    if not message:  # evaluation's business: training does not ask
        assert request.getfixturevalue("call")("train", *words, word).code == 0
        return
    assert message in request.getfixturevalue("fails")("train", *words, word)
    assert not (tmp_path / "run").exists()
