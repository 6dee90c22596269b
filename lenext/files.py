"""Files of JSON read, and files and folders written that are never half there."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lenext.buckets import AnyPath, checksums, filesystem, in_bucket, is_of_bucket
from lenext.errors import UserError, reason_of

MOUNTED = ("fuse.gcsfuse", "fuse.mountpoint-s3", "fuse.s3fs", "fuse.rclone", "fuse.goofys")
"""Types of file systems that are buckets, in which a folder is not renamed at once, if at all."""


def read_json(path: AnyPath) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: should be JSON ({error})") from None


def read_object(path: AnyPath) -> dict[str, Any]:
    """The JSON object of a file; an empty one where there is no such file.

    Raises:
      UserError: it is none, or cannot be read.
    """
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: should be a JSON object")
    return content


def make_folder(folder: AnyPath) -> None:
    """Makes a folder with those above it, unless it is there; a bucket wants none made."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def renames_folders(folder: AnyPath) -> bool:
    """Whether a folder there can take its place at once, by a new name.

    Not so in a bucket, nor in one that is mounted.
    """
    return not in_bucket(folder) and file_system_type(Path(folder)) not in MOUNTED


def file_system_type(path: Path) -> str:
    """Of what a path is on, as the kernel calls it; "" where it does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:  # another system
        return ""
    place = path.absolute().resolve()
    # Of several at one place the last is seen; spaces are spelt out.
    above = {
        where: kind
        for _, said, kind, *_ in mounts
        if place.is_relative_to(where := Path(said.replace("\\040", " ")))
    }
    return above[max(above, key=lambda where: len(where.parts))] if above else ""


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copies a file; from a bucket to one of another kind through memory."""
    come, go = str(source), str(target)
    if in_bucket(source) and not in_bucket(target):
        filesystem(source).get_file(come, go)
    elif in_bucket(target) and not in_bucket(source):
        filesystem(target).put_file(come, go)
    elif in_bucket(source) and come[:2] == go[:2]:
        filesystem(source).cp_file(come, go)
    else:
        write_atomically(target, source.read_bytes())


def copy_folder(source: AnyPath, target: AnyPath) -> None:
    """Copies what is below a folder to where none need be, over what is there."""
    if not in_bucket(source) and not in_bucket(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    if in_bucket(source):
        names = [*checksums(source)]
    else:
        files = (file for file in sorted(Path(source).rglob("*")) if file.is_file())
        names = [str(file.relative_to(source)) for file in files]
    for name in names:
        make_folder((target / name).parent)
        copy_file(source / name, target / name)


def move_folder(source: AnyPath, target: AnyPath) -> None:
    """Moves a folder to where none is; where that cannot be done at once, file by file."""
    make_folder(target.parent)
    if in_bucket(source):
        copy_folder(source, target)
        filesystem(source).rm(str(source), recursive=True)
    elif renames_folders(source):
        source.rename(target)
    else:
        copy_folder(source, target)
        shutil.rmtree(source)


def check_writable(folder: AnyPath) -> None:
    """Makes a folder, if need be, and checks that files can be written there.

    Raises:
      UserError: they cannot.
    """
    try:
        make_folder(folder)
        if in_bucket(folder):
            probe = folder / f".{os.getpid()}"
            write_atomically(probe, b"")
            probe.unlink()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except Exception as error:
        if not isinstance(error, OSError) and not is_of_bucket(error):
            raise
        raise UserError(f"{folder}: cannot be written ({reason_of(error)})") from None


def check_free(folder: AnyPath, name: str) -> None:
    """Checks that a folder may be made: it is not there, or empty.

    Args:
      folder: which.
      name: what it is called in messages: "workdir" or "target".

    Raises:
      UserError: something is there.
    """
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{name} {folder}: cannot be read ({reason_of(error)})") from None
    if not free:
        raise UserError(f"{name} {folder}: is there already; take another")


@contextlib.contextmanager
def making_folder(folder: AnyPath, name: str, *errors: type[Exception]) -> Iterator[Path]:
    """Gives a folder to fill, which takes its place at the end, or is gone if there is an error.

    Args:
      folder: to make; see `check_free`.
      name: what it is called in messages.
      *errors: what is raised where something cannot be written, beside OSError.

    Raises:
      UserError: it cannot be written.
    """
    beside = None
    try:
        make_folder(folder.parent)
        near = None if in_bucket(folder) else folder.parent
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=near))
        yield beside
        beside.chmod(0o755)  # mkdtemp's own is closed to others
        if in_bucket(folder):
            try:
                copy_folder(beside, folder)
            except BaseException:
                filesystem(folder).rm(str(folder), recursive=True)
                raise
        else:
            if folder.exists():
                folder.rmdir()
            move_folder(beside, folder)
    except (OSError, *errors) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} {folder}: cannot be written ({reason})") from None
    finally:
        # Of a write that failed, threads may still be at work, and put back what is removed.
        for _ in range(250):
            if beside is None or not beside.exists():
                break
            shutil.rmtree(beside, ignore_errors=True)
            time.sleep(0.02)


def write_atomically(path: AnyPath, content: str | bytes) -> None:
    """Writes beside `path` and renames, so that readers see the old file or the new one.

    An object in a bucket is replaced as a whole.
    """
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        # By one request, which may be made again; what is opened is written by several.
        filesystem(path).pipe_file(str(path), data)
        return
    beside = Path(path).with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
