"""Files of JSON read, and files written that are never half there."""

import json
import os
import tempfile
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
