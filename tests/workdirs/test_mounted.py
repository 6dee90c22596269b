"""A bucket that is mounted as a folder: its file system renames files, and no folders."""

import errno
import os
from pathlib import Path

import pytest

from lenext import files
from lenext.files import file_system_type, making_folder
from lenext.training import train
from lenext.workdirs.pretrained import load_run
from tests.training.common import read_metrics
from tests.training.runs import interruption


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A folder on such a file system."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def kind(path):
        return "fuse.gcsfuse" if path.is_relative_to(folder) else file_system_type(path)

    def refusing(function):
        def refuse(source, target, **kwargs):
            if Path(os.path.abspath(source)).is_relative_to(folder) and os.path.isdir(source):
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(source))
            return function(source, target, **kwargs)

        return refuse

    monkeypatch.setattr(files, "file_system_type", kind)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return folder


def test_a_run_is_that_of_a_disk(config, mounted, on_disk, capsys):
    workdir = mounted / "run"
    with interruption(8, "step"):
        train(config, workdir)
    assert (workdir / "checkpoints" / "6" / "commit_success.txt").exists()
    # Killed within a checkpoint: all of it is there but the last file.
    (workdir / "checkpoints" / "6" / "commit_success.txt").unlink()
    (workdir / "seals" / "6.json").unlink(missing_ok=True)
    train(config, workdir)
    assert f"resuming from step 3 of {workdir}" in capsys.readouterr().out
    assert read_metrics(workdir) == read_metrics(on_disk)
    assert load_run(workdir).step == 12


def test_a_damaged_checkpoint_is_set_aside(config, mounted, on_disk, capsys):
    workdir = mounted / "run"
    with interruption(8, "step"):
        train(config, workdir)
    files = [path for path in (workdir / "checkpoints" / "6").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    train(config, workdir)
    assert "damaged, and not used: 6: " in capsys.readouterr().err
    assert read_metrics(workdir) == read_metrics(on_disk)
    assert not (workdir / "checkpoints" / "6").exists()
    assert [path.name[:2] for path in (workdir / "damaged").iterdir()] == ["6-"]


def test_a_run_that_was_copied_there(config, mounted, on_disk):
    files.copy_folder(on_disk, mounted / "copy")
    assert load_run(mounted / "copy").step == 12
    config.training.steps = 14
    config.training.branch_from = str(mounted / "copy")
    train(config, mounted / "branch")
    assert [record["step"] for record in read_metrics(mounted / "branch")] == [13, 14]


def test_a_folder_that_is_made(mounted):
    with making_folder(mounted / "made", "target") as beside:
        (beside / "in").mkdir()
        (beside / "in" / "file").write_text("x")
    assert (mounted / "made" / "in" / "file").read_text() == "x"
    assert [path.name for path in mounted.iterdir()] == ["made"]


def test_types_of_file_systems(tmp_path, monkeypatch):
    assert file_system_type(Path("/proc/self")) == "proc"
    lines = [
        "/dev/root / ext4 rw 0 0",
        f"bucket {tmp_path} fuse.gcsfuse rw 0 0",
        f"other {tmp_path}/with\\040space fuse.s3fs rw 0 0",
        f"last {tmp_path}/twice ext4 rw 0 0",
        f"last {tmp_path}/twice xfs rw 0 0",
    ]
    monkeypatch.setattr(Path, "read_text", lambda self: "\n".join(lines))
    assert file_system_type(tmp_path / "a" / "b") == "fuse.gcsfuse"
    assert file_system_type(tmp_path / "with space" / "b") == "fuse.s3fs"
    assert file_system_type(tmp_path / "twice") == "xfs"
    assert file_system_type(tmp_path.parent) == "ext4"
