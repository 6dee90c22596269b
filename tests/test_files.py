import os
from pathlib import Path

import pytest

from lenext.errors import UserError
from lenext.files import check_free, making_folder, write_atomically


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


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "target"
    check_free(target, "target")
    with making_folder(target, "target") as beside:
        (beside / "file").write_text("some")
        assert not target.exists()
    assert (target / "file").read_text() == "some"
    assert os.listdir(tmp_path / "deep") == ["target"]
    assert target.stat().st_mode & 0o777 == 0o755
    with pytest.raises(UserError, match=r"^target .*/target: is there already; take another$"):
        check_free(target, "target")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError("no space left"), UserError, "target .*/target: cannot be written .no space left"),
        (KeyError("a"), UserError, "target .*/target: cannot be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (ValueError("another"), ValueError, "another"),
    ],
)
def test_a_folder_that_failed_is_gone(tmp_path, error, raised, message):
    def fill():
        with making_folder(tmp_path / "target", "target", KeyError) as beside:
            (beside / "file").write_text("half")
            raise error

    with pytest.raises(raised, match=message):
        fill()
    assert os.listdir(tmp_path) == []
