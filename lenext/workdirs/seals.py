"""Seals of checkpoints: what each of their files held when it was written.

A seal is DIR/seals/STEP.json, {"file": [bytes, SHA-256], ...}. A file that was cut short or in
which a bit has turned does not fit it any more.
"""

import hashlib
import json
import os
from pathlib import Path

from lenext.errors import MISREAD
from lenext.files import write_atomically


def seal(checkpoint: Path, path: Path) -> None:
    """Writes the seal of a complete checkpoint."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, _text(checkpoint))


def identity(checkpoint: Path, path: Path) -> str:
    """SHA-256 of a checkpoint's seal, or of what that would say where there is none."""
    text = path.read_text() if path.exists() else _text(checkpoint)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(checkpoint: Path) -> str:
    """What a seal says."""
    found = {
        str(file.relative_to(checkpoint)): [file.stat().st_size, _digest(file)]
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file()
    }
    return json.dumps(found, indent=0) + "\n"


def damage(checkpoint: Path, path: Path) -> str | None:
    """The first file of a checkpoint that is not what its seal says, in words; None if all are.

    A checkpoint without a seal, whose run was killed before it got one, is taken as it is.
    """
    if not path.exists():
        return None
    try:
        said = [(str(name), *of) for name, of in json.loads(path.read_text()).items()]
        sealed = [(name, size, digest) for name, size, digest in said]
    except (OSError, *MISREAD):
        return f"{path} is no seal"
    for name, size, digest in sealed:
        file = checkpoint / name
        if not os.path.isfile(file):  # a name may be none that a file can have
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes and was written with {size}"
        if _digest(file) != digest:
            return f"{name} has changed since it was written"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
