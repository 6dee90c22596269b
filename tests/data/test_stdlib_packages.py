import itertools

import pytest

from lenext.data import load_corpus, stdlib_source
from lenext.data.stdlib_packages import packages
from lenext.data.stdlib_source import source_files, stdlib_root

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def real(data_dir, tokenizer):
    return {split: load_corpus("stdlib_packages", split, tokenizer, data_dir) for split in SPLITS}


def test_packages_by_hand():
    files = [
        "_weakrefset.py", "abc.py", "argparse.py", "asyncio/__init__.py", "asyncio/base.py",
        "config-3.11-linux/python-config.py", "ctypes/macholib/dyld.py", "ctypes/__init__.py",
        "dis.py", "sched.py", "this.py", "Zipped.py", "zipapp.py",
    ]  # fmt: skip
    assert packages(files) == {
        "modules/_": ["_weakrefset.py"],
        "modules/a-c": ["abc.py", "argparse.py"],
        "asyncio": ["asyncio/__init__.py", "asyncio/base.py"],
        "ctypes": ["ctypes/__init__.py", "ctypes/macholib/dyld.py"],
        "modules/d-h": ["dis.py"],
        "modules/s-t": ["sched.py", "this.py"],
        "modules/u-z": ["Zipped.py", "zipapp.py"],
    }


def test_a_document_is_the_files_of_its_package(tmp_path, tokenizer, monkeypatch):
    root = tmp_path / "library"
    files = {
        "asyncio/__init__.py": b"first\n",
        "asyncio/z.py": b"caf\xe9",
        "json/__init__.py": b"",
        "json/tool.py": b"tool\r\n",
        "abc.py": b"abc",
        "cgi.py": b"cgi",
        "this.py": b"this",
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    monkeypatch.setattr(stdlib_source, "stdlib_root", lambda: root)
    found = {}
    for split in SPLITS:
        corpus = load_corpus("stdlib_packages", split, tokenizer, tmp_path / "data")
        found[split] = {
            name: corpus.document(i).astype("uint8").tobytes()
            for i, name in enumerate(corpus.names)
        }
    assert found == {
        "train": {"json": b"\ntool\r\n", "modules/a-c": b"abc\ncgi"},
        "validation": {"asyncio": b"first\n\ncaf\xe9", "modules/s-t": b"this"},
    }


def test_both_splits_of_the_real_library_have_long_documents(real):
    assert not set(real["train"].names) & set(real["validation"].names)
    for split, corpus in real.items():
        # Enough for evaluation at 131 072 tokens, one for a million.
        assert (corpus.lengths > 131_072).sum() >= 5, split
        assert corpus.lengths.max() >= 2**20, split
    assert len(real["train"].tokens) > 2 * len(real["validation"].tokens)


def test_no_file_is_in_two_documents(real):
    grouped = packages(source_files(stdlib_root()))
    files = list(itertools.chain(*grouped.values()))
    assert len(files) == len(set(files))
    assert set(grouped) == set(real["train"].names) | set(real["validation"].names)
    corpus = real["validation"]
    for i, name in enumerate(corpus.names):
        sizes = [(stdlib_root() / path).stat().st_size for path in grouped[name]]
        assert corpus.lengths[i] == sum(sizes) + len(sizes) - 1
