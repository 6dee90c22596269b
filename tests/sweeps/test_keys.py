"""What a training is found again by, of files that it reads."""

import pytest

from lenext.data import TextFiles
from lenext.data.text_files import fingerprint_of
from lenext.errors import UserError
from lenext.sweeps.runs import Run
from tests.training.common import tiny_config


@pytest.fixture
def key(data_dir):
    """Returns the key of a training on files."""

    def key(files, tokenizer="bytes"):
        config = tiny_config(data_dir)
        config.data.update(dataset="text_files", files=str(files), tokenizer=tokenizer)
        return Run("", config, {}).key

    return key


def test_texts_count_by_what_they_hold(key, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one text")
    before = key(path)
    assert key(path) == before
    path.write_text("1 text of another kind")
    changed = key(path)
    assert changed != before
    path.write_text("one text")
    assert key(path) == before
    (tmp_path / "b.txt").write_text("and another")
    assert key(tmp_path) not in (before, changed)


def test_a_tokenizer_counts_by_what_it_holds(key, tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    words = tmp_path / "vocab.txt"
    found = set()
    for vocabulary in ("[UNK]", "[UNK]\none", "[UNK]\ntext"):
        words.write_text(vocabulary)
        found.add(key(tmp_path / "a.txt", str(words)))
    assert len(found) == 3
    assert key(tmp_path / "a.txt", "bytes") not in found


def test_the_fingerprint_is_that_of_the_dataset(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(f"a text for {split}")
    dataset = TextFiles(files=str(tmp_path), field="body", data_dir=tmp_path / "data")
    assert fingerprint_of(str(tmp_path), "body") == dataset.fingerprint
    assert fingerprint_of(str(tmp_path), "text") != dataset.fingerprint


def test_texts_that_are_not_there(key, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        key(tmp_path / "nowhere.txt")
