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

from lenext.errors import UserError


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: should be JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
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


def check_writable(folder: Path) -> None:
    """Makes a folder, if need be, and checks that files can be written there.

    Raises:
      UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def check_free(folder: Path, name: str) -> None:
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
        raise UserError(f"{name} {folder}: cannot be read ({error.strerror})") from None
    if not free:
        raise UserError(f"{name} {folder}: is there already; take another")


@contextlib.contextmanager
def making_folder(folder: Path, name: str, *errors: type[Exception]) -> Iterator[Path]:
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield beside
        beside.chmod(0o755)  # mkdtemp's own is closed to others
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside `path` and renames, so that readers see the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
