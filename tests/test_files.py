import os
from pathlib import Path

import pytest

from lenext.files import write_atomically


@pytest.mark.parametrize("content", ["", "text: γ\n", b"\x00\xff"])
def test_writes_what_it_was_given(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("something longer that was there before")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(*(os, "fsync") if failing == "fsync" else (Path, "replace"), fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []
    real = os.fsync

    def look(descriptor):
        seen.append(path.read_text())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"
