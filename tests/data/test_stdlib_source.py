import logging
import sys

import pytest

from lenext.data import StdlibSource, load_corpus, open_builder, prepare, stdlib_source
from lenext.data.stdlib_source import source_files, source_fingerprint, split_of, stdlib_root
from lenext.errors import UserError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small library in place of Python's own: both splits, awkward bytes, things to leave out."""
    root = tmp_path / "library"
    files = {
        "ast.py": b"caf\xe9 is not UTF-8\r\n",
        "empty.py": b"",
        "this.py": b"import this\n",
        "json/decoder.py": b"# JSON\n",
        "json/notes.txt": b"no source",
        "json/test_data.py": b"the name of a file does not matter\n",
        "json/tests/test_it.py": b"left out",
        "test/support.py": b"left out",
        "site-packages/numpy.py": b"left out",
        "dist-packages/numpy.py": b"left out",
        "__pycache__/this.py": b"left out",
        "idlelib/run.py": b"left out",
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    monkeypatch.setattr(stdlib_source, "stdlib_root", lambda: root)
    return root


SPLITS = ("train", "validation")
KEPT = ["ast.py", "empty.py", "json/decoder.py", "json/test_data.py", "this.py"]
SIZES = {"train": 4, "validation": 1}


def read(data_dir, tokenizer):
    """Returns {path: bytes} of all splits."""
    corpora = [load_corpus("stdlib_source", s, tokenizer, data_dir) for s in SPLITS]
    return {
        name: corpus.document(i).astype("uint8").tobytes()
        for corpus in corpora
        for i, name in enumerate(corpus.names)
    }


def test_tests_and_installed_packages_are_left_out(library):
    assert source_files(library) == KEPT


def test_split_is_by_a_hash_of_the_path():
    golden = {
        "ast.py": "validation",
        "asyncio/locks.py": "validation",
        "distutils/command/config.py": "validation",
        "asyncio/tasks.py": "train",
        "json/decoder.py": "train",
        "typing.py": "train",
    }
    assert {path: split_of(path) for path in golden} == golden
    share = sum(split_of(f"module{i}.py") == "validation" for i in range(10_000)) / 10_000
    assert 0.085 < share < 0.115


def test_texts_are_the_files_bytes(library, tmp_path, tokenizer):
    texts = read(tmp_path, tokenizer)
    assert texts == {path: (library / path).read_bytes() for path in KEPT}


def test_a_changed_library_is_another_dataset(library, tmp_path, tokenizer):
    before = read(tmp_path, tokenizer)
    (library / "this.py").write_bytes(b"import that\n")
    after = read(tmp_path, tokenizer)
    assert after == before | {"this.py": b"import that\n"}
    assert len(list((tmp_path / "stdlib_source").iterdir())) == 2


def test_fingerprint_sees_names_contents_and_borders(tmp_path):
    libraries = [
        {"a.py": b"1", "b.py": b"2"},
        {"a.py": b"1", "c.py": b"2"},
        {"a.py": b"1", "b.py": b"3"},
        {"a.py": b"12", "b.py": b""},
        {"a.py": b"1b.py\x002"},
    ]
    seen = set()
    for number, files in enumerate(libraries):
        root = tmp_path / str(number)
        root.mkdir()
        for path, content in files.items():
            (root / path).write_bytes(content)
        seen.add(source_fingerprint(root))
        (root / "notes.txt").write_bytes(b"no source")
        assert source_fingerprint(root) in seen
    assert len(seen) == len(libraries)
    assert all(len(fingerprint) == 12 for fingerprint in seen)


def test_prepares_once_and_says_so_in_one_line(library, tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO, logger="lenext")
    first = open_builder(StdlibSource, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = open_builder(StdlibSource, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    assert first.info.splits["train"].num_examples == second.info.splits["train"].num_examples
    python = ".".join(map(str, sys.version_info[:3]))
    name = f"stdlib_source/{sys.implementation.name}-{python}-{source_fingerprint(library)}/1.0.0"
    assert [record.getMessage() for record in caplog.records] == [
        f"preparing {name} in {tmp_path / name}"
    ]
    assert capfd.readouterr() == ("", "")


def prepare_elsewhere(data_dir):
    """Does what another process would; TFDS's own noise is not what the test is about."""
    with prepare._quiet_tfds():
        StdlibSource(data_dir=data_dir).download_and_prepare(file_format="array_record")


def test_losing_a_race_at_the_start_uses_the_winners_data(library, tmp_path):
    made = []

    def make(data_dir):
        made.append(StdlibSource(data_dir=data_dir))
        if len(made) == 1:
            prepare_elsewhere(data_dir)
        return made[-1]

    loser = open_builder(make, tmp_path)
    assert {split: len(loser.as_data_source(split=split)) for split in SPLITS} == SIZES


def test_losing_a_race_at_the_end_uses_the_winners_data(library, tmp_path, tokenizer, monkeypatch):
    generate = StdlibSource._generate_examples

    def interrupted(self, split):
        monkeypatch.setattr(StdlibSource, "_generate_examples", generate)
        prepare_elsewhere(tmp_path)
        return generate(self, split)

    monkeypatch.setattr(StdlibSource, "_generate_examples", interrupted)
    loser = open_builder(StdlibSource, tmp_path)
    assert {split: len(loser.as_data_source(split=split)) for split in SPLITS} == SIZES
    assert not list(tmp_path.rglob("*incomplete*"))
    assert sorted(read(tmp_path, tokenizer)) == KEPT


def test_unwritable_data_dir(library, tmp_path, tokenizer):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot prepare stdlib_source/.*; give a writable data_"):
        load_corpus("stdlib_source", "train", tokenizer, tmp_path / "file")


def test_a_library_without_source(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib_source, "stdlib_root", lambda: tmp_path)
    with pytest.raises(
        UserError, match=r"^stdlib_source: no \.py file under .*; use a Python that"
    ):
        StdlibSource(data_dir=tmp_path)


def test_the_real_library(stdlib):
    train, validation = (set(stdlib[split].names) for split in SPLITS)
    assert not train & validation
    assert train | validation == set(source_files(stdlib_root()))
    assert 500 < len(train | validation) < 720  # 674 on a full CPython 3.11
    assert 0.06 < len(validation) / len(train | validation) < 0.15
    assert 9e6 < sum(len(stdlib[split].tokens) for split in SPLITS) < 13e6
    assert sum((stdlib[split].lengths > 16_000).sum() for split in SPLITS) > 150
