import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lenext.data import load_corpus
from lenext.data.stdlib_source import source_fingerprint, stdlib_root
from lenext.errors import UserError


def test_documents_lie_end_to_end_in_the_order_of_their_names(stdlib):
    corpus = stdlib["validation"]
    assert corpus.names == sorted(corpus.names)
    assert corpus.lengths.sum() == len(corpus.tokens) == corpus.offsets[-1]
    assert len(corpus.names) == len(corpus.lengths)
    for i in range(0, len(corpus.names), 10):
        data = (stdlib_root() / corpus.names[i]).read_bytes()
        assert corpus.document(i).tolist() == list(data)
        assert corpus.lengths[i] == len(data)


def test_describe(stdlib):
    corpus = stdlib["train"]
    assert corpus.describe() == {
        "dataset": "stdlib_source",
        "split": "train",
        "documents": len(corpus.names),
        "tokens": len(corpus.tokens),
        "fingerprint": source_fingerprint(stdlib_root()),
        "python": platform.python_version(),
    }


def test_require_document(numbered_corpus):
    corpus = numbered_corpus(3, 50, 7)
    corpus.require_document(50, "training")
    with pytest.raises(
        UserError,
        match=r"^training length 51: no document in split 'train' of numbers is that long; "
        r"the longest, document01, has 50 tokens$",
    ):
        corpus.require_document(51, "training")
    with pytest.raises(UserError, match=r"^evaluation length must be at least 2, not 1$"):
        corpus.require_document(1, "evaluation")


def test_unknown_names(data_dir, stdlib, tokenizer):
    choices = "stdlib_source, stdlib_packages, text_files, tfds:NAME"
    with pytest.raises(UserError, match=f"^unknown dataset 'wiki'; choose from: {choices}$"):
        load_corpus("wiki", "train", tokenizer, data_dir)
    message = r"^unknown split 'test' of stdlib_source; choose from: train, validation$"
    with pytest.raises(UserError, match=message):
        load_corpus("stdlib_source", "test", tokenizer, data_dir)


def test_default_data_dir_is_tfds_own_and_a_bare_process_stays_quiet(
    monkeypatch, tokenizer, tmp_path
):
    # TFDS reads the variable once, when imported, hence another process. A fresh one also shows
    # that nothing imports TensorFlow and that iterators left open end in silence.
    program = """
import sys
from lenext.data import ByteTokenizer, load_corpus, masked_lm_batches

tokenizer = ByteTokenizer()
corpus = load_corpus("stdlib_source", "validation", tokenizer)
options = dict(length=64, batch_size=8, tokenizer=tokenizer)
iterators = [
    iter(masked_lm_batches(corpus, seed=seed, packing=seed % 2 == 1, **options))
    for seed in range(20)
]
print(next(iterators[0])["tokens"].shape)
for iterator in iterators[:10]:
    next(iterator)
print("tensorflow" in sys.modules)
"""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    command = [sys.executable, "-W", "error", "-c", program]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("(8, 64)\nFalse\n", "", 0)
    assert (tmp_path / "stdlib_source").is_dir()


def test_a_document_is_a_view(numbered_corpus):
    corpus = numbered_corpus(4, 0, 6)
    assert corpus.document(2).tolist() == [4, 5, 6, 7, 8, 9]
    assert corpus.document(1).size == 0
    assert np.shares_memory(corpus.document(2), corpus.tokens)
